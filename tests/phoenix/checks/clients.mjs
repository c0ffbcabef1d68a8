// What the official client does on a good day and on a bad one, for each of its release lines. One client is on one
// node and the other on another one.
import { demand, hex, push, same, show, sleep, unhex, until } from "../kit.mjs";

const PLAIN = { x: 1, deep: { list: [1, "é", null, true] }, text: "a\"b\\c\n" };

export async function run(suite, { a, b, s, t, alice, bob }, version, library) {
  const check = (name, body) => suite.check(`${version} ${name}`, body);
  const params = { token: alice };
  const pair = (place, [one, other] = [s, t], more = {}) => [
    place.client(library, one, { params: { token: alice }, ...more }),
    place.client(library, other, { params: { token: bob }, ...more }),
  ];
  const topic = (place) => place.room().replace("room:", "test:");

  await check("joins with parameters, nested ones in the address too", async (place) => {
    const client = place.client(library, s, { params: { ...params, "a b": "c&d", n: { x: 1 }, l: [1, 2] } });
    const channel = await client.joined(topic(place), { who: "me", n: [1] });
    same(channel.response, { welcome: "alice", params: { who: "me", n: [1] } });
  });

  await check("answers a ping", async (place) => {
    const client = place.client(library, a, { params });
    await until("open", () => client.socket.isConnected());
    if (typeof client.socket.ping === "function")
      demand((await new Promise((done) => client.socket.ping(done))) >= 0, "no time");
    else {
      client.socket.sendHeartbeat();
      await until("a beat's answer", () => client.got.some((frame) => frame[2] === "phoenix" && frame[4].status === "ok"));
    }
  });

  await check("echoes a push, and refuses one", async (place) => {
    const channel = await place.client(library, s, { params }).joined(topic(place));
    same(await push(channel, "echo", PLAIN), { status: "ok", response: PLAIN });
    same(await push(channel, "fail"), { status: "error", response: { reason: "as you wish" } });
  });

  await check("times a push out that is not answered, and goes on", async (place) => {
    const channel = await place.client(library, s, { params }).joined(topic(place));
    same((await push(channel, "silent", {}, 200)).status, "timeout");
    same((await push(channel, "echo", PLAIN)).status, "ok");
  });

  await check("a slow answer holds up no other topic", async (place) => {
    const client = place.client(library, s, { params });
    const [slow, quick] = [await client.joined(topic(place)), await client.joined(`${topic(place)}2`)];
    let done = false;
    const answer = push(slow, "slow", { ms: 1500 }).then((it) => { done = true; return it; });
    same((await push(quick, "echo")).status, "ok");
    demand(!done, "the slow answer came first");
    same(await answer, { status: "ok", response: { ms: 1500 } });
  });

  await check("binary: push, reply and broadcast to another node", async (place) => {
    const [mine, other] = pair(place);
    const [one, two] = [await mine.joined(topic(place)), await other.joined(topic(place))];
    const { status, response } = await push(one, "echo", unhex("00ff10"));
    same([status, hex(response)], ["ok", "00ff10"]);
    same((await push(one, "shout", unhex("c10100ff"))).status, "ok");
    for (const channel of [one, two]) {
      const [[, payload]] = await until("the bytes", () => channel.says("shout")[0] && channel.says("shout"));
      same(hex(payload), "c10100ff");
    }
  });

  await check("a broadcast reaches both nodes once, the sender too, in order", async (place) => {
    const [mine, other] = pair(place, [a, b]);
    const [one, two] = [await mine.joined(place.room()), await other.joined(place.room())];
    for (let n = 0; n < 50; n++) (n % 2 ? two : one).push("say", { n });
    const all = [...Array(50).keys()];
    for (const channel of [one, two]) {
      await until(() => `50 messages, not ${channel.says("say").length}`, () => channel.says("say").length >= 50);
      const numbers = channel.says("say").map(([, payload]) => payload.n);
      same([...numbers].sort((x, y) => x - y), all);
      for (const of of [0, 1]) {
        const its = numbers.filter((n) => n % 2 === of);
        same(its, [...its].sort((x, y) => x - y), "order of one sender");
      }
    }
    // The reply to a later push comes after all that was there before it.
    same((await push(one, "last")).status, "ok");
    await until("the last", () => two.says("last").length);
    same([one.says("say").length, two.says("say").length], [50, 50], "counts afterwards");
  });

  await check("a refused join says why, and is tried again", async (place) => {
    const client = place.client(library, s, { params });
    const channel = client.channel(topic(place), { deny: true });
    same(await client.join(channel), { status: "error", response: { reason: "denied" } });
    await until("a second join", () => channel.answers.length > 1, 5000);
    const crashing = client.channel(`${topic(place)}2`, { crash: true });
    same(await client.join(crashing), { status: "error", response: { reason: "join crashed" } });
    same((await client.join(client.channel("nobody:1"))).response, { reason: "unmatched topic" });
  });

  await check("presence: the state at the join, then who comes and goes on another node", async (place) => {
    const [mine, other] = pair(place);
    const one = await mine.joined(topic(place));
    await until("myself", () => one.who().alice);
    const two = await other.joined(topic(place));
    for (const channel of [one, two]) {
      await until(() => `both, not ${show(channel.who())}`, () => Object.keys(channel.who()).join() === "alice,bob");
      for (const metas of Object.values(channel.who())) {
        same(metas.length, 1, "metas");
        demand(typeof metas[0].phx_ref === "string", "no phx_ref");
      }
    }
    demand(one.says("presence_state").length === 1 && two.says("presence_state").length === 1, "one state each");
    two.leave();
    await until("bob's leave", () => Object.keys(one.who()).join() === "alice");
    same(one.says("presence_diff").at(-1)[1].leaves.bob.metas.length, 1, "who left");
  });

  await check("a crash of the handler: an error, a new join, and the channel goes on", async (place) => {
    const client = place.client(library, s, { params });
    const [channel, beside] = [await client.joined(topic(place)), await client.joined(`${topic(place)}2`)];
    channel.push("crash", {});
    await until("an error", () => channel.errors.length);
    await until("a new join", () => channel.answers.length > 1);
    same((await push(channel, "echo", PLAIN)).status, "ok");
    same([beside.errors.length, client.closes.length], [0, 0], "others");
    await until("one of me", () => channel.who().alice?.length === 1);
  });

  await check("closed by the server: no new join, and gone for the others", async (place) => {
    const [mine, other] = pair(place);
    const [one, two] = [await mine.joined(topic(place)), await other.joined(topic(place))];
    await until("both", () => Object.keys(two.who()).length === 2);
    one.push("close", {});
    await until("the close", () => one.closed);
    await until("alice's leave", () => Object.keys(two.who()).join() === "bob", 5000);
    await sleep(1500); // a new join would come after one second
    same(mine.sent.filter((frame) => frame[3] === "phx_join").length, 1, "joins");
    same(mine.closes, []);
  });

  await check("leave: ok, then closed, and nothing more comes", async (place) => {
    const [mine, other] = pair(place, [a, b]);
    const [one, two] = [await mine.joined(place.room()), await other.joined(place.room())];
    one.leave();
    await until("the close's frame", () => mine.got.some((frame) => frame[3] === "phx_close"));
    const frames = mine.got.filter((frame) => frame[2] === place.room() && ["phx_reply", "phx_close"].includes(frame[3]));
    same(frames.map((frame) => [frame[3], frame[4].status]), [["phx_reply", "ok"], ["phx_reply", "ok"], ["phx_close", undefined]]);
    const before = mine.got.length;
    same((await push(two, "say")).status, "ok");
    await until("bob's own", () => two.says("say").length);
    const again = await mine.joined(`${place.room()}2`);
    same((await push(again, "say")).status, "ok");
    same(mine.got.slice(before).filter((frame) => frame[2] === place.room()), [], "after the leave");
  });

  await check("two channels of one topic: the later one lives", async (place) => {
    const client = place.client(library, a, { params });
    const first = await client.joined(place.room());
    const second = await client.joined(place.room());
    same((await push(second, "say")).status, "ok");
    await until("its own", () => second.says("say").length);
    same([first.says("say").length, second.says("say").length], [0, 1]);
    await until("one of me", () => second.who().alice?.length === 1);
  });

  await check("what was pushed while joining arrives", async (place) => {
    const client = place.client(library, s, { params });
    const channel = client.channel(topic(place));
    client.join(channel);
    same(await push(channel, "echo", PLAIN), { status: "ok", response: PLAIN });
  });

  await check("heartbeats are answered, one by one", async (place) => {
    const client = place.client(library, a, { params, heartbeatIntervalMs: 300 });
    await until("five answers", () => client.got.filter((frame) => frame[2] === "phoenix").length >= 5);
    same(client.closes, []);
    same(client.got[0], [null, client.sent[0][1], "phoenix", "phx_reply", { status: "ok", response: {} }]);
  });

  await causes(check, library, { a, params });

  await check("a refused upgrade: tried again and again, never let in", async (place) => {
    const client = place.client(library, b, { params: { token: "bad.bad.bad" } });
    await until("four attempts", () => client.closes.length >= 4);
    same(client.opens, 0, "opens");
    demand(client.closes.every((code) => code === 1006), `${client.closes}`);
  });
}

async function back(client, channel, code) {
  await until(() => `a close, not ${client.closes}`, () => client.closes.length, 30_000);
  same(client.closes[0], code, "close code");
  await until("a new join", () => channel.answers.length > 1, 30_000);
  same((await push(channel, "after")).status, "ok");
}

// How the server ends a connection while it goes on; the client comes back each time. (Those of a node that ends, 1006
// and 1012, are in `losses`, the idle one in `idle`.)
async function causes(check, library, { a, params }) {
  await check("closed for text that is not UTF-8: 1007, and back again", async (place) => {
    const client = place.client(library, a, { params });
    const channel = await client.joined(place.room());
    client.wire._sender.send(Buffer.from([0x5b, 0xff]), { fin: true, opcode: 1, mask: true, binary: false, compress: false });
    await back(client, channel, 1007);
  });

  await check("a frame that is too long is refused, and nothing else changes", async (place) => {
    const client = place.client(library, a, { params });
    const channel = await client.joined(place.room());
    same(await push(channel, "say", { text: "x".repeat(1_100_000) }), { status: "error", response: { reason: "a frame has at most 1048576 bytes" } });
    same((await push(channel, "after")).status, "ok");
    same([client.closes, channel.errors], [[], []]);
  });
}

// One release after the other: it is the node's own counter that tells when one was too slow.
export async function slow(suite, { a, b, alice, libraries }) {
  const params = { token: alice };
  for (const [version, library] of Object.entries(libraries)) await suite.check(`${version} closed for being slow: 1013, and back again`, async (place) => {
    const client = place.client(library, a, { params });
    const channel = await client.joined(place.room());
    const other = await place.client(library, b, { params }).joined(place.room());
    const slow = await a.counter("dropped_slow");
    client.wire._socket.pause();
    const text = "x".repeat(200_000);
    for (let n = 0; n < 400 && (await a.counter("dropped_slow")) === slow; n++) await push(other, "say", { text });
    client.wire._socket.resume();
    await back(client, channel, 1013);
    same((await push(other, "say")).status, "ok", "the other");
  });
}
