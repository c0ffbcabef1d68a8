// Clients that poll. The official client polls from 1.8 on in Node (1.7 has no way without a browser).
import { demand, push, query, same, show, until } from "../kit.mjs";

const LIFE = 20_000;
const PAST = 15_000;

export async function run(suite, world) {
  await Promise.all([expiry(suite, world), official(suite, world), bare(suite, world)]);
}

async function official(suite, { a, s, t, alice, bob, libraries }) {
  const library = libraries["1.8.16"];
  const check = (name, body) => suite.check(`longpoll: ${name}`, body);
  const polls = { transport: library.LongPoll, params: { token: alice } };

  await check("join, echo, error, time-out, refusal, crash and close", async (place) => {
    const client = place.client(library, s, polls);
    const channel = await client.joined("test:poll", { x: 1 });
    same(channel.response, { welcome: "alice", params: { x: 1 } });
    same(await push(channel, "echo", { é: "ü" }), { status: "ok", response: { é: "ü" } });
    same((await push(channel, "fail")).status, "error");
    same((await push(channel, "silent", {}, 100)).status, "timeout");
    same((await client.join(client.channel("test:no", { deny: true }))).response, { reason: "denied" });
    channel.push("crash", {});
    await until("a new join", () => channel.answers.length > 1);
    channel.push("close", {});
    await until("the close", () => channel.closed);
  });

  await check("broadcasts and presence between a poller and a socket on another node", async (place) => {
    const poller = place.client(library, s, polls);
    const other = place.client(library, t, { params: { token: bob } });
    const [one, two] = [await poller.joined("test:both"), await other.joined("test:both")];
    for (const channel of [one, two]) await until("both", () => Object.keys(channel.who()).join() === "alice,bob");
    for (let n = 0; n < 20; n++) (n % 2 ? one : two).push("shout", { n });
    for (const channel of [one, two])
      await until(() => `20, not ${channel.says("shout").length}`, () => channel.says("shout").length === 20);
    one.leave();
    await until("alice's leave", () => Object.keys(two.who()).join() === "bob");
  });

  await check("what is pushed as bytes is understood", async (place) => {
    const poller = place.client(library, s, polls);
    const other = place.client(library, t, { params: { token: bob } });
    const [one, two] = [await poller.joined("test:bytes"), await other.joined("test:bytes")];
    one.push("shout", new Uint8Array([0, 255, 16]).buffer);
    const [[, payload]] = await until("the bytes", () => two.says("shout").length && two.says("shout"));
    same(Buffer.from(payload).toString("hex"), "00ff10");
  });

  await check("the fallback from a socket that cannot open", async (place) => {
    class Broken {
      constructor() { setTimeout(() => this.onerror?.(new Error("no sockets here")), 0); }
      close() {}
    }
    const client = place.client(library, a, { transport: Broken, longPollFallbackMs: 200, params: { token: alice } });
    await client.joined("room:fallback");
  });

  await check("a token in the header, and a bad one", async (place) => {
    const client = place.client(library, a, { transport: library.LongPoll, authToken: alice });
    await client.joined("room:header");
    const refused = place.client(library, a, { transport: library.LongPoll, params: { token: "x.y.z" } });
    await until("a refusal", () => refused.closes.length);
    same(refused.closes[0], 1008);
  });
}

// What of a session's token is the same in each answer.
const named = (token) => token.slice(0, token.lastIndexOf("~"));

const ask = async (node, params, options) => {
  const answer = await fetch(`http://${node.http}/socket/longpoll?${query(params)}`, options);
  same([answer.status, answer.headers.get("cache-control")], [200, "no-store"], "answer");
  return answer.json();
};
const ndjson = (lines) => ({ method: "POST", headers: { "content-type": "application/x-ndjson" }, body: lines.join("\n") });

async function bare(suite, { a, b, s, alice, bob, libraries }) {
  const check = (name, body) => suite.check(`longpoll: ${name}`, body);
  const begin = async () => (await ask(a, {})).token;

  await check("the first poll opens a session, the second waits for 10 s at most", async () => {
    const opened = await ask(a, { token: alice });
    same([opened.status, opened.messages, typeof opened.token], [410, [], "string"]);
    const began = performance.now();
    const nothing = await ask(a, { token: opened.token });
    same(nothing, { status: 204, token: opened.token, messages: [] });
    demand(performance.now() - began > 8_000, "it did not wait");
  });

  await check("a session without a token or a join is over after 10 s", async () => {
    const token = await begin();
    let answer = await ask(a, { token });
    if (answer.status === 204) {
      // The poll and the session ended in the same moment. The next poll may find none, and open another session.
      const { token: another, ...rest } = await ask(a, { token });
      demand(another !== token, show(another));
      answer = rest;
    }
    same(answer, { status: 410, messages: [] });
  });

  await check("lines of a post, and messages as texts", async () => {
    let token = await begin();
    const lines = ["1", "2"].map((ref) => JSON.stringify([ref, ref, `room:lines${ref}`, "phx_join", {}]));
    same(await ask(a, { token }, ndjson(lines)), { status: 200 });
    const texts = [];
    while (texts.filter((text) => JSON.parse(text)[3] === "phx_reply").length < 2) {
      const answer = await ask(a, { token });
      same([answer.status, named(answer.token)], [200, named(token)], "each answer names the session");
      token = answer.token;
      texts.push(...answer.messages);
    }
    demand(texts.every((text) => typeof text === "string"), show(texts));
  });

  await check("what is malformed or too much is answered, and the session goes on", async () => {
    let token = await begin();
    const beats = Array(101).fill('[null,"1","phoenix","heartbeat",{}]');
    const long = `["1","2","room:1","say",{"x":"${"x".repeat(1_100_000)}"}]`;
    for (const [bad, head] of [
      [["{"], [null, null, "phoenix"]], [["[1,2]"], [1, 2, "phoenix"]], [["AP////8="], [null, null, "phoenix"]],
      [["!"], [null, null, "phoenix"]], [[long], ["1", "2", "room:1"]], [beats, [null, "1", "phoenix"]],
    ]) {
      same(await ask(a, { token }, ndjson(bad)), { status: 200 }, show(bad).slice(0, 40));
      const answer = await ask(a, { token });
      token = answer.token;
      const answers = answer.messages.map((text) => JSON.parse(text));
      same([answers.length, answers.at(-1)[4].status], [bad.length, "error"], "answers");
      same(answers.at(-1).slice(0, 3), head, "whose");
    }
    const huge = await fetch(`http://${a.http}/socket/longpoll?${query({ token })}`, ndjson(["x".repeat(3_000_000)])).then((it) => it.status, () => "closed");
    demand([413, "closed"].includes(huge), `3 MB: ${huge}`);
    same(await ask(a, { token }, ndjson(['[null,"1","phoenix","heartbeat",{}]'])), { status: 200 });
    same((await ask(a, { token })).messages.length, 1);
  });

  await check("any node takes the next request of a session, and judges a token that it shows", async (place) => {
    let { token } = await ask(a, { token: alice });
    const other = await place.client(libraries["1.8.16"], b, { params: { token: bob } }).joined("room:any");
    same(await ask(b, { token }, ndjson([JSON.stringify(["1", "1", "room:any", "phx_join", {}])])), { status: 200 });
    await until("alice is there", () => "alice" in other.who());
    const heard = [];
    for (let n = 0; n < 12; n++) {
      other.push("say", { n });
      await until(`number ${n}`, async () => {
        const answer = await ask([s, b, a][n % 3], { token });
        same(named(answer.token), named(token), "each answer names the session");
        token = answer.token;
        heard.push(...answer.messages.map((text) => JSON.parse(text)).filter(([, , , event]) => event === "say").map(([, , , , { n }]) => n));
        return heard.length === n + 1;
      });
    }
    same(heard, [...Array(12).keys()]);
    // In the query before the session's, as clients put it.
    const shown = (shown) => fetch(`http://${b.http}/socket/longpoll?vsn=2.0.0&token=${shown}&token=${token}`, ndjson(['[null,"9","phoenix","heartbeat",{}]'])).then((it) => it.json());
    same((await shown(alice)).status, 200);
    same((await shown("x.y.z")).status, 403);
    // Nobody's session, of a node that is not there, and of one that never had it.
    for (const none of [`${"0".repeat(32)}~${Buffer.from("nobody@h").toString("base64url")}~0`, `${"0".repeat(32)}${token.slice(32)}`]) {
      same((await ask(b, { token: none }, ndjson(["[]"]))).status, 410);
      const { status, token: another } = await ask(b, { token: none });
      demand(status === 410 && another && another !== none, "a session of its own");
    }
  });

  await check("an answer that a proxy lost is brought again, at any node, and once", async () => {
    const beat = (ref) => ndjson([`[null,"${ref}","phoenix","heartbeat",{}]`]);
    const refs = ({ messages }) => messages.map((text) => JSON.parse(text)[1]);
    let token = await begin();
    const lost = [];
    for (let n = 0; n < 4; n++) {
      await ask(a, { token }, beat(`${n}`));
      same(refs(await ask(n % 2 ? a : b, { token })), [`${n}`]);
      const again = await ask(n % 2 ? b : a, { token });
      same(refs(again), [`${n}`], "again");
      lost.push(token = again.token);
    }
    same(new Set(lost).size, 4, "tokens");
    // One that never takes another token is brought an answer three times again, and no other one after that.
    const first = await begin();
    await ask(a, { token: first }, beat("x"));
    for (let n = 0; n < 4; n++) same(refs(await ask(n % 2 ? a : b, { token: first })), ["x"]);
    await ask(a, { token: first }, beat("y"));
    same(refs(await ask(a, { token: first })), ["y"]);
    await ask(a, { token: first }, beat("z"));
    same(refs(await ask(a, { token: first })), ["z"]);
  });

  await check("an unknown session, a post without one, another version", async () => {
    same((await ask(a, { token: "00ff" })).status, 410);
    same((await ask(a, { token: "00ff" }, ndjson(["[]"]))).status, 410);
    same((await ask(a, {}, ndjson(["[]"]))).status, 410);
    same((await ask(a, { vsn: "9.0.0" })).status, 403);
  });

  await check("the session's token in a header, as 1.9 sends it", async () => {
    const token = await begin();
    const headers = { "x-phoenix-longpoll-token": token };
    const { headers: kind, ...post } = ndjson(['[null,"1","phoenix","heartbeat",{}]']);
    same((await ask(a, {}, { ...post, headers: { ...kind, ...headers } })).status, 200);
    same((await ask(a, {}, { headers })).messages.length, 1);
  });

  await check("a page's preflight", async () => {
    const origin = `http://${a.http}`;
    const headers = { Origin: origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-phoenix-authtoken" };
    const answer = await fetch(`http://${a.http}/socket/longpoll`, { method: "OPTIONS", headers });
    demand(answer.ok, `${answer.status}`);
    same(answer.headers.get("access-control-allow-origin"), origin);
    demand(/POST/.test(answer.headers.get("access-control-allow-methods")), "methods");
    demand(/x-phoenix-authtoken/i.test(answer.headers.get("access-control-allow-headers")), "headers");
    const other = await fetch(`http://${a.http}/socket/longpoll`, { method: "OPTIONS", headers: { ...headers, Origin: "http://evil.example" } });
    same(other.headers.get("access-control-allow-origin"), null, "another page");
  });
}

async function expiry(suite, { a, s, alice, libraries }) {
  await suite.check("longpoll: a session that nobody polls is over, after 15 s at least, and its client is gone", async (place) => {
    const library = libraries["1.8.16"];
    const watcher = await place.client(library, s, { params: { token: alice } }).joined("room:expiry");
    const { token } = await ask(a, { token: "" });
    same(await ask(a, { token }, ndjson([JSON.stringify(["1", "1", "room:expiry", "phx_join", {}])])), { status: 200 });
    const began = performance.now();
    await ask(a, { token });
    await until("it is there", () => Object.keys(watcher.who()).length === 2);
    await until("it is gone", () => Object.keys(watcher.who()).join() === "alice", LIFE + PAST);
    const took = performance.now() - began;
    demand(took >= PAST, () => `after ${took} ms`);
    same((await ask(a, { token })).status, 410);
  });
}
