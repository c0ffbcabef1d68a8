// What no official client would send, on bare sockets against node c: the socket is answered or closed as it should be,
// the node goes on, and a witness who talks on the same node all the while notices nothing.
import { connect } from "node:net";
import { address, demand, Raw, same, show, sleep, until } from "../kit.mjs";

const TAG = { status: "ok", response: {} };

// A binary frame whose lengths may lie.
const binary = (kind, lengths, text) => new Uint8Array([kind, ...lengths, ...Buffer.from(text, "latin1")]);

export async function run(suite, world) {
  const witness = await watch(world);
  await session(suite, world);
  await refusals(suite, world);
  await malformed(suite, world);
  await origins(suite, world);
  await suite.check("the witness on the same node noticed nothing", () => witness.notices());
}

// Says something every 50 ms until it is asked, and counts what comes back.
async function watch({ c }) {
  const raw = new Raw(address(c));
  await raw.open;
  await raw.joined("w", "room:witness");
  let said = 0;
  const timer = setInterval(() => raw.say(["w", `${++said}`, "room:witness", "tick", { said }]), 50);
  return {
    async notices() {
      clearInterval(timer);
      const ticks = () => raw.frames.filter((frame) => frame[3] === "tick").map((frame) => frame[4].said);
      await until(() => `${said} ticks, not ${ticks().length}`, () => ticks().length >= said);
      same(ticks(), Array.from({ length: said }, (_, k) => k + 1), "ticks");
      same(raw.code, undefined, "closed");
      raw.close();
    },
  };
}

async function session(suite, { c }) {
  const { check } = { check: (name, body) => suite.check(`frames: ${name}`, body) };

  await check("join, push, broadcast and leave, byte for byte", async (place) => {
    const [raw, room] = [await place.raw(c), place.room()];
    raw.say(["6", "6", room, "phx_join", {}]);
    same(await raw.reply("6"), ["6", "6", room, "phx_reply", TAG]);
    const state = await raw.next((frame) => frame[3] === "presence_state");
    same(state.slice(0, 2), ["6", null], "whose state");
    raw.say(["6", "7", room, "say", { x: 1 }]);
    // Which of the two comes first is nobody's business.
    await until("reply and broadcast", () => ["phx_reply", "say"].every((event) => raw.frames.slice(raw.seen).some((frame) => frame[3] === event)));
    same(raw.frames.slice(raw.seen).find((frame) => frame[3] === "phx_reply"), ["6", "7", room, "phx_reply", TAG]);
    same(raw.frames.slice(raw.seen).find((frame) => frame[3] === "say"), [null, null, room, "say", { x: 1 }]);
    raw.say(["6", "8", room, "phx_leave", {}]);
    same(await raw.reply("8"), ["6", "8", room, "phx_reply", TAG]);
    same(await raw.next((frame) => frame[3] === "phx_close"), ["6", "6", room, "phx_close", {}]);
    raw.say(["6", "9", room, "phx_leave", {}]);
    same((await raw.reply("9"))[4], TAG, "a leave of what is not joined");
    raw.say([null, "10", "phoenix", "heartbeat", {}]);
    same(await raw.reply("10"), [null, "10", "phoenix", "phx_reply", TAG]);
  });

  await check("a push to what is not joined, and an unknown topic", async (place) => {
    const raw = await place.raw(c);
    const unmatched = { status: "error", response: { reason: "unmatched topic" } };
    raw.say(["1", "2", "room:x", "say", {}]);
    same(await raw.reply("2"), [null, "2", "room:x", "phx_reply", unmatched]);
    raw.say([null, "3", "phoenix", "nonsense", {}]);
    same(await raw.reply("3"), [null, "3", "phoenix", "phx_reply", unmatched]);
  });

  await check("a join again: the old join is closed, the new one lives, stale frames count for nothing", async (place) => {
    const [raw, room] = [await place.raw(c), place.room()];
    await raw.joined("1", room);
    raw.say(["2", "2", room, "phx_join", {}]);
    await raw.reply("2");
    const closes = raw.frames.filter((frame) => frame[3] === "phx_close");
    same(closes, [["1", "1", room, "phx_close", {}]]);
    raw.say(["1", "3", room, "say", { stale: true }]).say(["1", "4", room, "phx_leave", {}]);
    raw.say(["2", "5", room, "say", { stale: false }]).say([null, "6", room, "say", { none: true }]);
    same((await raw.reply("5"))[4].status, "ok");
    same((await raw.reply("6"))[4].status, "ok", "no join_ref at all");
    await until("both", () => raw.frames.filter((frame) => frame[3] === "say").length >= 2);
    const said = raw.frames.filter((frame) => frame[3] === "say").map((frame) => frame[4]);
    same(said, [{ stale: false }, { none: true }]);
    same(raw.frames.filter((frame) => ["3", "4"].includes(frame[1])), [], "answers to stale frames");
  });

  await check("leave and join back to back, as the client does for a second channel", async (place) => {
    const [raw, room] = [await place.raw(c), place.room()];
    await raw.joined("1", room);
    raw.say(["1", "2", room, "phx_leave", {}]).say(["3", "3", room, "phx_join", {}]);
    await raw.reply("3");
    raw.say(["3", "4", room, "say", {}]);
    same((await raw.reply("4"))[4].status, "ok");
  });

  await check("a hundred topics and not one more", async (place) => {
    const raw = await place.raw(c);
    for (let n = 1; n <= 101; n++) raw.say([`${n}`, `${n}`, `${place.room()}${n}`, "phx_join", {}]);
    // In any order: no topic waits for another.
    const replies = () => new Map(raw.frames.filter((frame) => frame[3] === "phx_reply").map((frame) => [frame[1], frame[4]]));
    await until(() => `101 replies, not ${replies().size}`, () => replies().size === 101);
    for (let n = 1; n <= 100; n++) same(replies().get(`${n}`).status, "ok", `join ${n}`);
    same(replies().get("101"), { status: "error", response: { reason: "too many channels joined" } });
    raw.say(["5", "x", `${place.room()}5`, "phx_leave", {}]).say(["y", "y", `${place.room()}101`, "phx_join", {}]);
    same((await raw.reply("y"))[4].status, "ok", "after one was left");
  });

  await check("references of other clients: numbers, unequal ones, none", async (place) => {
    const [raw, room] = [await place.raw(c), place.room()];
    raw.say(["1", "0", room, "phx_join", {}]);
    same((await raw.reply("0")).slice(0, 2), ["1", "0"]);
    raw.say([1, 2, `${room}2`, "phx_join", {}]);
    same((await raw.reply(2)).slice(0, 2), [1, 2]);
    raw.say(["1", null, room, "phx_leave", null]);
    same((await raw.next((frame) => frame[3] === "phx_reply" && frame[1] === null))[4].status, "ok");
  });

  await check("nobody can say what only the server may", async (place) => {
    const [raw, room] = [await place.raw(c), place.room()];
    const other = await place.raw(c);
    await raw.joined("1", room);
    await other.joined("1", room);
    for (const event of ["phx_reply", "phx_close", "phx_error", "presence_state", "presence_diff"]) {
      raw.say(["1", event, room, event, { joins: {}, leaves: {} }]);
      same((await raw.reply(event))[4].status, "error", event);
    }
    raw.say(["1", "last", room, "say", {}]);
    await other.next((frame) => frame[3] === "say");
    same(other.frames.filter((frame) => /^phx_(close|error)/.test(frame[3])), []);
  });
}

async function refusals(suite, { c }) {
  const check = (name, body) => suite.check(`upgrade: ${name}`, body);
  const get = (path, options) => fetch(`http://${c.http}${path}`, options);

  await check("what is no upgrade to this protocol is refused by status", async () => {
    same((await get("/socket/websocket?vsn=2.0.0")).status, 426, "no upgrade");
    same((await get("/socket/websocket?vsn=2.0.0", { method: "POST" })).status, 426, "not GET");
    same((await get("/nowhere")).status, 404, "elsewhere");
    for (const [params, status] of [[{ vsn: "3.0.0" }, 403], [{ vsn: "" }, 403], [{ token: "a.b.c" }, 403]]) {
      const raw = new Raw(address(c, params));
      same(await raw.open, { refused: status }, show(params));
      raw.close();
    }
  });

  await check("the subprotocol is answered when it is offered, and only then", async (place) => {
    const offered = async (protocols) => (await place.keep(new Raw(address(c), { protocols })).open).protocol;
    same(await offered(["phoenix"]), "phoenix");
    same(await offered([]), "");
    // A server that selects nothing fails such a client, which is right: it asked for something else.
    same(await offered(["graphql"]), undefined);
  });
}

// What is no frame is answered on its topic where that can be read, else on the socket's own; the connection goes on.
async function malformed(suite, { c }) {
  const check = (name, body) => suite.check(`malformed: ${name}`, body);
  const refused = async (place, frame, head, reason) => {
    const [raw, room] = [await place.raw(c), place.room()];
    await raw.joined("1", room);
    raw.say(frame);
    const error = { status: "error", response: { reason } };
    same(await raw.next((one) => one[3] === "phx_reply"), [...head, "phx_reply", error]);
    raw.say(["1", "9", room, "say", {}]);
    same((await raw.reply("9"))[4].status, "ok", "afterwards");
    same(raw.code, undefined, "closed");
  };
  const [shape, word] = ["not a frame of this version of the protocol", "topic and event have 1 to 255 bytes"];
  const reference = "a reference is a string or a number of at most 255 bytes";
  const deep = "the payload nests more than 128 levels";
  const nobody = [null, null, "phoenix"];
  const long = "t".repeat(300);
  const texts = {
    "no JSON": ["hello", nobody, shape], nothing: ["", nobody, shape],
    "cut off": ['["1","2","room:1","say",{}', ["1", "2", "room:1"], shape],
    "four members": ['["1","2","room:1","say"]', ["1", "2", "room:1"], shape],
    "six members": ['["1","2","room:1","say",{},1]', ["1", "2", "room:1"], shape],
    "an object in V2": ['{"topic":"room:1","event":"say","payload":{},"ref":"1"}', nobody, shape],
    "an event that is a number": ['["1","2","room:1",3,{}]', ["1", "2", "room:1"], shape],
    "a reference that is an object": ['["1",{},"room:1","say",{}]', ["1", null, "room:1"], reference],
    "a reference of 100,000 bytes": [`["1","${"9".repeat(100_000)}","room:1","say",{}]`, ["1", null, "room:1"], reference],
    "a number of 100,000 digits": [`["1",${"9".repeat(100_000)},"room:1","say",{}]`, ["1", null, "room:1"], reference],
    "no topic": ['["1","2","","say",{}]', ["1", "2", ""], word],
    "a topic of 300 bytes": [`["1","2","${long}","say",{}]`, ["1", "2", long], word],
    "an event of 300 bytes": [`["1","2","room:1","${long}",{}]`, ["1", "2", "room:1"], word],
    "200 levels": [`["1","2","room:1","say",${"[".repeat(200)}${"]".repeat(200)}]`, ["1", "2", "room:1"], deep],
    "300,000 levels": [`["1","2","room:1","say",${"[".repeat(300_000)}${"]".repeat(300_000)}]`, ["1", "2", "room:1"], deep],
    "300,000 levels for a topic": [`["1","2",${"[".repeat(300_000)}${"]".repeat(300_000)},"say",{}]`, ["1", "2", "phoenix"], shape],
    "two values": ['["1","2","room:1","say",{}] []', ["1", "2", "room:1"], shape],
    "a byte order mark": ['\ufeff["1","2","room:1","say",{}]', nobody, shape],
    "over 1 MiB": [`["1","2","room:1","say",{"x":"${"x".repeat(1_100_000)}"}]`, ["1", "2", "room:1"], "a frame has at most 1048576 bytes"],
    "over 1 MiB, the topic itself": [`["1","2","${"t".repeat(1_100_000)}","say",{}]`, ["1", "2", "phoenix"], "a frame has at most 1048576 bytes"],
  };
  for (const [name, [text, head, why]] of Object.entries(texts)) await check(name, (place) => refused(place, text, head, why));

  const lengths = "a binary frame with lengths that do not fit";
  const [kind, there] = ["a binary frame of an unknown kind", ["1", "2", "room:1"]];
  const bytes = {
    "an empty binary frame": [new Uint8Array([]), nobody, lengths],
    "lengths and nothing else": [binary(0, [255, 255, 255, 255], ""), nobody, lengths],
    "a length too many": [binary(0, [1, 1, 6, 5], "12room:1say"), there, lengths],
    "three lengths": [binary(0, [1, 1, 6], ""), nobody, lengths],
    "words that are not UTF-8": [binary(0, [1, 1, 6, 3], "12room:\xffsay!"), ["1", "2", "phoenix"], lengths],
    "no words": [binary(0, [0, 0, 0, 0], "data"), [null, null, ""], word],
    "a length modulo 256 (1.7 with an event of 300 bytes)": [binary(0, [1, 1, 6, 300 % 256], `12room:1${"e".repeat(300)}`.slice(0, 30)), there, lengths],
    "a binary frame of kind 3": [new Uint8Array(Buffer.from("0301010b0500016161", "hex")), nobody, kind],
    "a binary frame of kind 255": [binary(255, [1, 2, 3], ""), nobody, kind],
    "a binary frame of over 1 MiB": [Buffer.concat([binary(0, [1, 1, 6, 3], "12room:1say"), Buffer.alloc(1_100_000)]), there, "a frame has at most 1048576 bytes"],
  };
  for (const [name, [frame, head, why]] of Object.entries(bytes)) await check(name, (place) => refused(place, frame, head, why));

  await check("a binary join is refused", async (place) => {
    const [raw, room] = [await place.raw(c), place.room()];
    raw.say(binary(0, [1, 1, room.length, 8], `11${room}phx_join`));
    same((await raw.reply("1"))[4].status, "error");
  });

  await check("invalid UTF-8 in a text frame: 1007", async (place) => {
    const raw = await place.raw(c);
    raw.ws._sender.send(Buffer.from([0x5b, 0xff, 0xfe, 0x5d]), { fin: true, opcode: 1, mask: true, binary: false, compress: false });
    await raw.closed(1007);
  });

  await check("a frame of over 1 MiB in pieces is passed over", async (place) => {
    const raw = await place.raw(c);
    raw.ws.send('["1","2","room:1","say",{"x":"', { fin: false });
    for (let n = 0; n < 20; n++) raw.ws.send("x".repeat(60_000), { fin: false });
    raw.ws.send('"}]', { fin: true });
    same((await raw.next((one) => one[3] === "phx_reply")).slice(0, 3), ["1", "2", "room:1"]);
    raw.say([null, "3", "phoenix", "heartbeat", {}]);
    same((await raw.reply("3"))[4].status, "ok");
  });

  await check("a frame of almost 1 MiB arrives", async (place) => {
    const [raw, room] = [await place.raw(c), place.room()];
    await raw.joined("1", room);
    const text = "x".repeat(1_000_000);
    raw.say(["1", "2", room, "say", { text }]);
    same((await raw.next((frame) => frame[3] === "say"))[4].text.length, text.length);
  });

  await check("bytes that are no WebSocket frames end that connection alone", async () => {
    for (const junk of ["\xff".repeat(20), "\x81\x05hello" /* not masked */, "\xc1\x80\0\0\0\0" /* reserved bit */]) {
      const [host, port] = c.http.split(":");
      const socket = connect(Number(port), host);
      socket.on("error", () => {});
      let heard = "";
      socket.on("data", (data) => { heard += data.toString("latin1"); });
      const ended = new Promise((done) => socket.on("close", done));
      socket.write(`GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: ${c.http}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n`);
      await until("101", () => heard.startsWith("HTTP/1.1 101"));
      socket.write(Buffer.from(junk, "latin1"));
      const gone = await Promise.race([ended.then(() => true), sleep(10_000)]);
      socket.destroy();
      demand(gone, `still open after ${show(junk)}`);
    }
  });
}

async function origins(suite, { a, c }) {
  const check = (name, body) => suite.check(`origin: ${name}`, body);
  const opened = async (node, Origin) => {
    const raw = new Raw(address(node), { headers: { Origin } });
    const { refused } = await raw.open;
    raw.close();
    return refused ?? "open";
  };

  await check("without a list, the node's own pages", async () => {
    same(await opened(a, `http://${a.http}`), "open");
    same(await opened(a, `http://127.0.0.1:1`), 403, "another port");
    for (const other of ["http://evil.example", "null", "http://127.0.0.1.evil.example", "http://127.0.0.1@evil"])
      same(await opened(a, other), 403, other);
  });

  await check("with a list, those on it, too", async () => {
    for (const [origin, outcome] of [
      ["https://app.example", "open"], ["https://app.example:8443", 403], ["http://app.example", 403],
      ["http://x.pages.example:81", "open"], ["http://pages.example", "open"], ["http://badpages.example", 403],
      [`http://${c.http}`, "open"], ["http://127.0.0.1:1", 403],
    ]) same(await opened(c, origin), outcome, origin);
  });

  await check("longpoll tells other pages 403 in its body", async () => {
    const ask = async (node, Origin) => {
      const answer = await fetch(`http://${node.http}/socket/longpoll?vsn=2.0.0`, { headers: { Origin } });
      return [answer.status, (await answer.json()).status, answer.headers.get("access-control-allow-origin")];
    };
    same(await ask(c, "https://evil.example"), [200, 403, "https://evil.example"]);
    same(await ask(c, "https://app.example"), [200, 410, "https://app.example"]);
  });
}
