// Tokens and roles, the topics of the nodes themselves, and clients of the old protocol.
import { createRequire } from "node:module";
import { address, demand, inOrder, push, Raw, same, show, until } from "../kit.mjs";

const old = createRequire(import.meta.url)("phoenix-channels");

export async function run(suite, world) {
  await Promise.all([ends(suite, world), roles(suite, world), ways(suite, world), views(suite, world), first(suite, world)]);
  await slowed(suite, world);
}

// What ends a right during a session.
async function ends(suite, { cluster, a, b, libraries }) {
  for (const version of ["1.8.16", "1.7.21"]) {
    const library = libraries[version];

    await suite.check(`${version} a token that expires ends the session, with a reason that the client can read`, async (place) => {
      const token = await cluster.token("eve", "--topics", "room:*", "--ttl", "3s");
      const [client, witness] = [place.client(library, a, { params: { token } }), await place.raw(b)];
      await witness.joined("1", place.room());
      const channel = await client.joined(place.room());
      await until("an error", () => channel.errors.length, 8000);
      const error = client.got.find((frame) => frame[3] === "phx_error");
      same(error?.[4], { reason: "token expired" }, "the error's frame");
      await until("another join", () => channel.answers.length > 1, 8000);
      same(channel.answers[1], { status: "error", response: { reason: "token expired" } });
      same(client.closes, [], "the connection stays");
      const gone = (frame) => frame[3] === "presence_diff" && frame[4].leaves.eve;
      await witness.next(gone, "eve's leave");
    });

    await suite.check(`${version} a token that is revoked ends the session on every node`, async (place) => {
      const token = await cluster.token("mallory", "--topics", "room:*", "--ttl", "1h");
      const clients = [a, b].map((node) => place.client(library, node, { params: { token } }));
      const channels = await Promise.all(clients.map((client) => client.joined(place.room())));
      await cluster.run("token", "revoke", token, "--certs", cluster.certs);
      for (const [k, channel] of channels.entries()) {
        await until("an error", () => channel.errors.length);
        await until("another join", () => channel.answers.length > 1);
        same(channel.answers[1], { status: "error", response: { reason: "token revoked" } });
        same(clients[k].closes, []);
      }
      const again = place.keep(new Raw(address(a, { token })));
      same(await again.open, { refused: 403 });
    });
  }
}

async function roles(suite, { cluster, a, alice, operator, libraries }) {
  const check = (name, body) => suite.check(`roles: ${name}`, body);
  const library = libraries["1.8.16"];
  const unauthorized = { status: "error", response: { reason: "unauthorized" } };
  const tries = async (place, token, topic) => {
    const client = place.client(library, a, token ? { params: { token } } : {});
    return client.join(client.channel(topic));
  };

  await check("a user may not join the nodes' topics", async (place) => {
    for (const topic of ["network:updates", "node:heartbeat", `node:${a.full}`])
      same(await tries(place, alice, topic), unauthorized, topic);
  });

  await check("without a token, only what is open to anybody", async (place) => {
    same((await tries(place, undefined, "room:open")).status, "ok");
    same(await tries(place, undefined, "network:updates"), unauthorized);
    same(await tries(place, undefined, "test:x"), unauthorized);
  });

  await check("a token's topics and verbs narrow what it is for", async (place) => {
    const token = await cluster.token("nora", "--topics", "room:nora=join", "--topics", "room:loud", "--ttl", "1h");
    const client = place.client(library, a, { params: { token } });
    const quiet = await client.joined("room:nora");
    same(await push(quiet, "say"), unauthorized);
    same(await push(await client.joined("room:loud"), "say"), { status: "ok", response: {} });
    same(await client.join(client.channel("room:other")), unauthorized);
  });

  await check("a node operator may join them all", async (place) => {
    for (const topic of ["network:updates", "node:heartbeat", `node:${a.full}`])
      same((await tries(place, operator, topic)).status, "ok", topic);
  });
}

// How a token is shown.
async function ways(suite, { a, alice, bob, libraries }) {
  for (const [version, library] of Object.entries(libraries)) {
    await suite.check(`${version} a token as a join parameter`, async (place) => {
      const client = place.client(library, a);
      await client.joined("room:param", { token: alice });
      const refused = await client.join(client.channel("room:param2", { token: "x.y.z" }));
      same(refused, { status: "error", response: { reason: "unauthorized" } });
      const own = await client.joined("room:param3", { token: bob });
      await until("bob, not alice", () => Object.keys(own.who()).join() === "bob");
    });
  }

  await suite.check("1.8.16 a token as a subprotocol, which the server answers with phoenix", async (place) => {
    const client = place.client(libraries["1.8.16"], a, { authToken: alice });
    const channel = await client.joined("room:auth");
    same(client.wire.protocol, "phoenix");
    await until("alice", () => channel.who().alice);
    const raw = place.keep(new Raw(address(a), { protocols: ["phoenix", "base64url.bearer.phx.YmFk"] }));
    same(await raw.open, { refused: 403 }, "a bad one");
  });
}

// The topics of the nodes themselves.
async function views(suite, { a, b, operator, libraries }) {
  const check = (name, body) => suite.check(`nodes: ${name}`, body);
  const client = (place, node) => place.client(libraries["1.8.16"], node, { params: { token: operator } });

  await check("network:updates begins with a snapshot", async (place) => {
    const channel = await client(place, a).joined("network:updates");
    const [[, snapshot]] = await until("a snapshot", () => channel.says("snapshot").length && channel.says("snapshot"));
    const peers = snapshot.status.peers.map((peer) => peer.name);
    demand(peers.includes(b.full) && snapshot.topology, () => show(peers));
  });

  await check("network:updates shows any node's view when it is asked, and figures each second", async (place) => {
    const channel = await client(place, a).joined("network:updates");
    for (const [asked, seen] of [[{}, a], [{ node: a.full }, a], [{ node: b.full }, b]]) {
      const { status, response } = await push(channel, "view", asked);
      same([status, response.status.name, response.topology.as_seen_by], ["ok", seen.full, seen.full], show(asked));
    }
    same((await push(channel, "view", { node: "nobody@127.0.0.1" })).status, "error", "a node that is not there");
    same((await push(channel, "view", { node: 7 })).status, "error", "no name");
    const figures = () => channel.says("figures").map(([, one]) => one);
    await until("figures", () => figures().length >= 2);
    const [before, after] = figures();
    demand(after.bytes_in > before.bytes_in && after.messages_out > 0, () => show([before, after]));
  });

  await check("network:updates carries what clients say, but for the node's own events", async (place) => {
    const [one, two] = [await client(place, a).joined("network:updates"), await client(place, b).joined("network:updates")];
    for (const event of ["snapshot", "change", "figures"])
      same(await push(one, event, { made: "up" }), { status: "error", response: { reason: "reserved" } }, event);
    same((await push(one, "notice", { x: 1 })).status, "ok");
    await until("the notice", () => two.says("notice", { x: 1 }).length === 1);
    same(two.heard.filter(([, payload]) => payload.made), [], "nothing made up");
  });

  await check("node:heartbeat has a beat of each node by turns", async (place) => {
    const channel = await client(place, a).joined("node:heartbeat");
    const beats = (node) => channel.says("heartbeat").filter(([, beat]) => beat.node === node.full).length;
    await until("four beats of two nodes", () => beats(a) >= 4 && beats(b) >= 4);
    const order = channel.says("heartbeat").map(([, beat]) => beat.node).filter((node) => [a.full, b.full].includes(node));
    demand(order.every((node, at) => node !== order[at + 1]), () => `one node's beats without the other's between them: ${order}`);
  });

  await check("node:<name> carries data to anyone who joined it on any node, and only that", async (place) => {
    const topic = `node:${a.full}`;
    const [one, two] = [await client(place, a).joined(topic), await client(place, b).joined(topic)];
    same(await push(one, "data", { x: 1 }), { status: "ok", response: {} });
    await until("the data", () => two.says("data", { x: 1 }).length === 1);
    same((await push(one, "heartbeat")).status, "error", "another event");
    await until("a beat", () => two.says("heartbeat").some(([, beat]) => beat.node === a.full));
  });
}

// Version 1 of the protocol.
async function first(suite, { a, b, alice, libraries }) {
  await suite.check("V1: phoenix-channels 1.0.0 joins, talks, beats and leaves", async (place) => {
    const socket = new old.Socket(a.url, { params: { token: alice }, heartbeatIntervalMs: 1000 });
    place.keep({ close: () => socket.disconnect() });
    let beats = 0;
    socket.onMessage((message) => { if (message.topic === "phoenix") beats++; });
    socket.connect();
    const other = await place.client(libraries["1.8.16"], b, { params: { token: alice } }).joined("room:v1");
    const channel = socket.channel("room:v1", {});
    const heard = [];
    for (const event of ["say", "presence_state"]) channel.on(event, (payload) => heard.push([event, payload]));
    const answer = (push) => new Promise((done) => ["ok", "error", "timeout"].forEach((status) => push.receive(status, () => done(status))));
    same(await answer(channel.join()), "ok", "join");
    same(await answer(channel.push("say", { from: 1 })), "ok", "push");
    await until("what V1 said", () => other.says("say", { from: 1 }).length === 1);
    same((await push(other, "say", { from: 2 })).status, "ok");
    const said = () => heard.filter(([event]) => event === "say").map(([, payload]) => payload);
    await until(() => `what V2 said, not ${show(said())}`, () => said().length === 2);
    same(said(), [{ from: 1 }, { from: 2 }]);
    demand(heard.some(([event, state]) => event === "presence_state" && state.alice), "no presence");
    await until("beats", () => beats >= 3);
    let closed = 0;
    channel.onClose(() => closed++);
    channel.leave();
    await until("its leave", () => closed && other.who().alice.length === 1);
  });

  await suite.check("V1: no version means the first, references may be null, bytes are not for it", async (place) => {
    const raw = place.keep(new Raw(`${a.url}/websocket`));
    await raw.open;
    raw.say({ topic: "phoenix", event: "heartbeat", payload: {}, ref: null, join_ref: null });
    await raw.next((frame) => frame.event === "phx_reply" && frame.ref === null);
    raw.say({ topic: "room:v1raw", event: "phx_join", payload: {}, ref: "1" });
    same((await raw.next((frame) => frame.ref === "1")).payload, { status: "ok", response: {} });
    const other = await place.raw(b);
    await other.joined("1", "room:v1raw");
    other.say(Buffer.concat([Buffer.from([0, 1, 1, 10, 4]), Buffer.from("12room:v1rawblob"), Buffer.from([0, 255])]));
    same((await other.reply("2"))[4].status, "ok");
    other.say(["1", "3", "room:v1raw", "say", { after: true }]);
    same((await raw.next((frame) => frame.event === "say")).payload, { after: true });
    same(raw.frames.filter((frame) => frame.hex), [], "bytes");
  });
}

// More than five bad tokens a second of one address are answered late, and good ones are not.
async function slowed(suite, { c, alice }) {
  await suite.check("tokens: an address with many bad ones waits for its answers, good ones do not", (place) =>
    inOrder(async (n) => {
      const open = async (token) => (await place.keep(new Raw(address(c, { token }))).open).refused;
      let answered = 0;
      const bad = Array.from({ length: 12 }, () => open(`x.${n}.z`).finally(() => answered++));
      await until("the answers that come at once", () => answered >= 5);
      same(await open(alice), undefined, "a good token");
      const before = answered;
      same(await Promise.all(bad), Array(12).fill(403), "bad tokens");
      return before > 5 && `a good one was answered after ${before} of 12 bad ones`;
    }));
}
