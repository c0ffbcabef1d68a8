// Pages that do something wrong and go on doing it, with the official clients over both transports: none of them comes
// back more than twenty times in a minute, and what else a page does goes on. Runs for a minute, beside everything else.
import { createRequire } from "node:module";
import { demand, inOrder, push, same, show, sleep, until } from "../kit.mjs";

const MINUTE = 60_000;
const MOST = 20; // connections of a page in a minute
const require = createRequire(import.meta.url);

// What the older releases poll with; Node has none.
class Request {
  open(method, url) { Object.assign(this, { method, url, headers: {} }); }
  setRequestHeader(name, value) { this.headers[name] = value; }
  abort() { this.stop?.abort(); }
  send(body) {
    this.stop = new AbortController();
    const clock = setTimeout(() => { this.stop.abort(); this.ontimeout?.(); }, this.timeout || 60_000);
    const { method, headers } = this;
    fetch(this.url, { method, headers, body: body ?? undefined, signal: this.stop.signal }).then(async (answer) => {
      Object.assign(this, { responseText: await answer.text(), status: answer.status, readyState: 4 });
      this.onreadystatechange?.();
    }).catch((error) => { if (error.name !== "AbortError") this.onerror?.(); }).finally(() => clearTimeout(clock));
  }
}

// A release as a browser has it: it looks for what it needs when it is loaded.
function browsers(name) {
  globalThis.self = Object.assign(Object.create(globalThis), { XMLHttpRequest: Request });
  delete require.cache[require.resolve(name)];
  const library = require(name);
  delete globalThis.self;
  return library.LongPoll;
}

// What a page does wrong: the options of its socket, a channel that it joins, or something that it does again and again.
function wrongs({ expired, alice }) {
  const deep = JSON.parse("[".repeat(200) + "]".repeat(200));
  const raw = (bytes, binary = false) => ({ wire }) => wire?.readyState === 1 && wire._sender.send(bytes, { fin: true, mask: true, binary, compress: false });
  const junk = (text) => ({ wire }) => wire?.readyState === 1 && wire._socket.write(Buffer.from(text, "latin1"));
  const good = { params: { token: alice } };
  return {
    "a topic of 300 bytes": { ...good, joins: [`room:${"x".repeat(300)}`] },
    "an empty topic": { ...good, joins: [""] },
    "a topic that it may not join": { ...good, joins: ["network:updates"] },
    "a topic that is nobody's": { ...good, joins: ["nobody:1"] },
    "an expired token in a join": { ...good, joins: ["room:expired", { token: expired }] },
    "a bad token in a join": { ...good, joins: ["room:bad", { token: "x.y.z" }] },
    "a join that nests too deep": { ...good, joins: ["room:deep", { deep }] },
    "a join that is too long": { ...good, joins: ["room:long", { text: "x".repeat(1_100_000) }], every: 10_000 },
    "a frame that is too long": { ...good, every: 10_000, does: (_, fine) => fine.push("say", { text: "x".repeat(1_100_000) }) },
    "an event of 300 bytes": { ...good, does: (_, fine) => fine.push("e".repeat(300), {}) },
    "text that is no frame": { ...good, sockets: true, does: raw(Buffer.from("[1,2,3")) },
    "bytes of an unknown kind": { ...good, sockets: true, does: raw(Buffer.from("0301010b0500016161", "hex"), true) },
    "bytes whose lengths lie": { ...good, sockets: true, does: raw(Buffer.from("00ffffffff", "hex"), true) },
    "text that is not UTF-8": { ...good, sockets: true, comesBack: true, does: raw(Buffer.from([0x5b, 0xff, 0x5d])) },
    "a frame with a reserved bit": { ...good, sockets: true, comesBack: true, does: junk("\xc1\x80\0\0\0\0") },
    "a bad token": { params: { token: "bad.bad.bad" }, refused: true },
    "an expired token": { params: { token: expired }, refused: true },
    "a version that nobody speaks": { ...good, vsn: "9.0.0", refused: true },
  };
}

export async function run(suite, world) {
  const { cluster, a, alice, libraries } = world;
  const expired = await cluster.token("late", "--ttl", "1s");
  await sleep(1_500);
  await pending(suite, world, expired);
  const checks = [];
  for (const [version, library] of Object.entries(libraries)) {
    const LongPoll = version.startsWith("1.8") ? library.LongPoll : browsers(`phoenix-${version.slice(0, 3)}`);
    for (const [name, wrong] of Object.entries(wrongs({ expired, alice }))) {
      checks.push(suite.check(`storms: ${version} ${name}`, (place) => storm(place, { a, library, ...wrong })));
      if (!wrong.sockets)
        checks.push(suite.check(`storms: ${version} polling, ${name}`, (place) => storm(place, { a, library, LongPoll, ...wrong })));
    }
  }
  await Promise.all(checks);
}

async function storm(place, { a, library, LongPoll, params, vsn, joins, does, every = 1_500, refused, comesBack }) {
  let sessions = 0;
  class Poll extends (LongPoll ?? Object) {
    constructor(...args) { super(...args); sessions++; }
  }
  const began = performance.now();
  const client = place.client(library, a, { params, ...(vsn && { vsn }), ...(LongPoll && { transport: Poll }) });
  const connections = () => (LongPoll ? sessions : client.attempts);
  const fine = refused ? undefined : await client.joined(place.room());
  const bad = joins && client.channel(...joins);
  if (bad) {
    const { status, response } = await client.join(bad);
    same(status, "error", `the join: ${show(response).slice(0, 99)}`);
    demand(typeof response.reason === "string" && response.reason, "no reason is given");
  }
  let answered = 0;
  while (performance.now() - began < MINUTE) {
    does?.(client, fine);
    if (fine && !comesBack) {
      same((await push(fine, "say", { x: 1 })).status, "ok", "its other channel");
      answered++;
    }
    demand(connections() <= MOST, () => `${connections()} connections after ${Math.round(performance.now() - began)} ms`);
    await sleep(Math.min(every, MINUTE - (performance.now() - began)));
  }
  if (refused) return demand(connections() >= 5, () => `only ${connections()} connections`);
  if (comesBack) {
    demand(connections() >= 2, "it never came back");
    return;
  }
  same([connections(), client.closes, fine.errors], [1, [], []], "connections, closes and errors");
  demand(answered >= 5, () => `only ${answered} answers on its other channel`);
}

// What takes its time holds up nothing else on the same socket.
async function pending(suite, { a, s, alice }, expired) {
  const joined = (raw, prefix) => raw.frames.filter((frame) => frame[3] === "phx_reply" && String(frame[1]).startsWith(prefix));
  // Joins, and asks again and again for a beat and on another topic until all joins are answered. How many of them had
  // been answered when the first beat and the first answer of the other topic had come.
  async function beside(place, node, other, joins, expected) {
    const raw = await place.raw(node, { token: alice });
    await raw.joined("o", other);
    for (const [k, [topic, params]] of joins.entries()) raw.say([`j${k}`, `j${k}`, topic, "phx_join", params]);
    let early;
    for (let n = 0; n < 20 || joined(raw, "j").length < joins.length; n++) {
      demand(n < 600, () => `${joined(raw, "j").length} of ${joins.length} answered`);
      raw.say([null, `b${n}`, "phoenix", "heartbeat", {}]).say(["o", `p${n}`, other, "echo", {}]);
      const both = () => [`b${n}`, `p${n}`].map((ref) => raw.frames.findIndex((frame) => frame[1] === ref));
      await until("both answers", () => both().every((at) => at >= 0));
      early ??= joined({ frames: raw.frames.slice(0, Math.max(...both())) }, "j").length;
      await sleep(50);
    }
    const answers = joined(raw, "j").map((frame) => frame[4]);
    same([answers.length, answers.filter(expected).length], [joins.length, joins.length], "joins answered and as expected");
    return { raw, early };
  }
  const many = (params, length = 45) => Array.from({ length }, (_, k) => [`room:pending${k}`, params]);
  const says = (reason) => ({ status, response }) => status === "error" && response.reason === reason;
  await suite.check("pending: joins with an expired token are answered before one whose answer is late", (place) =>
    inOrder(async (n) => {
      const raw = await place.raw(a, { token: alice });
      for (let k = 0; k < 6; k++) raw.say([`k${k}`, `k${k}`, `room:bad${k}`, "phx_join", { token: `e.${n}.z` }]);
      for (const [k, [topic, params]] of many({ token: expired }, 39).entries()) raw.say([`j${k}`, `j${k}`, topic, "phx_join", params]);
      await until("all answers", () => joined(raw, "j").length === 39 && joined(raw, "k").length === 6);
      same(joined(raw, "j").filter((frame) => says("token expired")(frame[4])).length, 39, "as expected");
      const order = joined(raw, "").map((frame) => frame[1][0]);
      return order.lastIndexOf("j") > order.lastIndexOf("k") && `the order of the answers: ${order.join("")}`;
    }));
  // Five bad tokens a second are answered at once.
  await suite.check("pending: 45 joins with a bad token delay nothing else", (place) =>
    inOrder(async (n) => {
      const { early } = await beside(place, a, place.room(), many({ token: `x.${n}.z` }), says("unauthorized"));
      return early > 5 && `others were answered after ${early} of the joins`;
    }));
  await suite.check("pending: a handler that takes its time holds up its own topic alone, whose frames wait in order", async (place) => {
    const slow = Array.from({ length: 5 }, (_, k) => [`test:slow${k}`, { wait: 5_000 }]);
    const { raw, early } = await beside(place, s, "test:quick", slow, ({ status }) => status === "ok");
    same(early, 0, "slow joins that were answered before others");
    raw.say(["x", "x", "test:ordered", "phx_join", { wait: 500 }]);
    for (let n = 0; n < 5; n++) raw.say(["x", `x${n}`, "test:ordered", "echo", { n }]);
    await raw.reply("x4");
    same(joined(raw, "x").map((frame) => frame[1]), ["x", "x0", "x1", "x2", "x3", "x4"], "the order of the replies");
    // Left and joined again while pending: all is answered in order, and only the last one lives.
    const again = (...frames) => frames.forEach(([join, ref, event, payload = {}]) => raw.say([join, ref, "test:again", event, payload]));
    again(["y", "y", "phx_join", { wait: 500 }], ["y", "y1", "shout", { n: 1 }], ["y", "y2", "phx_leave"], ["y", "y3", "echo"]);
    again(["z", "z", "phx_join", { wait: 500 }], ["z", "z1", "echo"], ["w", "w", "phx_join"], ["z", "z2", "echo"], ["w", "w1", "echo"]);
    await Promise.all(["y1", "z1", "w1"].map((ref) => until(`the reply to ${ref}`, () => raw.frames.some((frame) => frame[1] === ref))));
    const told = raw.frames.filter((frame) => frame[2] === "test:again");
    const order = (event) => told.filter((frame) => frame[3] === event).map((frame) => (event === "phx_reply" ? `${frame[1]} ${frame[4].status}` : frame[0]));
    // A service answers when it has come to it.
    same(order("phx_reply").filter((reply) => !/^(y|z|w)1 ok$/.test(reply)), ["y ok", "y2 ok", "y3 error", "z ok", "w ok"], "the replies");
    same(order("phx_close"), ["y", "z"], "the joins that are over");
  });
  // In an inline family, and in a service whose joins take their time; however the client goes.
  await suite.check("pending: what a client says before it goes is carried out", async (place) => {
    const member = await place.raw(s, { token: alice });
    for (const [at, topic] of [place.room(), "test:parting"].entries()) {
      await member.joined(`m${at}`, topic);
      for (const way of ["leave", "close", "end"]) {
        const raw = await place.raw(s, { token: alice });
        raw.say(["1", "1", topic, "phx_join", { wait: 300 }]).say(["1", "2", topic, "shout", { way, topic }]);
        if (way === "leave") raw.say(["1", "3", topic, "phx_leave", {}]);
        if (way === "close") raw.ws.close(1000);
        if (way === "end") raw.ws._socket.end();
        await member.next((frame) => frame[3] === "shout" && frame[4].way === way && frame[4].topic === topic, `${way} in ${topic}`);
        if (way === "leave") await until("all replies", () => raw.frames.filter((frame) => frame[3] === "phx_reply").length === 3);
        if (way === "close") await raw.closed(1005);
        const replies = raw.frames.filter((frame) => frame[3] === "phx_reply").map((frame) => `${frame[1]} ${frame[4].status}`);
        // A service answers a push when it has come to it, though its client may be gone.
        const wanted = { leave: ["1 ok", "2 ok", "3 ok"], close: at ? ["1 ok"] : ["1 ok", "2 ok"], end: [] }[way];
        same((at ? replies.sort() : replies).slice(0, wanted.length), wanted, `the replies, ${way} in ${topic}`);
      }
    }
  });
  await suite.check("pending: a bad token behind the same address makes no other one wait", (place) =>
    inOrder(async (n) => {
      const [last, ...raws] = await Promise.all(Array.from({ length: 13 }, () => place.raw(a)));
      const join = async (raw, token) => {
        raw.say(["1", "1", "room:shared", "phx_join", { token }]);
        same((await raw.reply("1"))[4].status, "error", token);
      };
      let answered = 0;
      const repeated = raws.map((raw) => join(raw, `q.${n}.q`).then(() => answered++));
      await until("the answers that come at once", () => answered >= 5);
      await join(last, `r.${n}.r`);
      const before = answered;
      await Promise.all(repeated);
      return before > 5 && `another one was answered after ${before} of 12`;
    }));
}
