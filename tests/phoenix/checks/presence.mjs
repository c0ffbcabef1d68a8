// Presence with meaning: what members say of themselves, what they want to see, and what services add.
import { createRequire } from "node:module";
import { address, demand, push, Raw, same, show, until } from "../kit.mjs";

const old = createRequire(import.meta.url)("phoenix-channels");

// The key of a presence, and its metas without what the node says.
const said = (who) => Object.fromEntries(Object.entries(who).map(([key, metas]) =>
  [key, metas.map(({ node, online_at, phx_ref, phx_ref_prev, ...fields }) => fields)]));

export async function run(suite, world) {
  await Promise.all([
    ...Object.entries(world.libraries).map(([version, library]) => fields(suite, world, version, library)),
    services(suite, world), large(suite, world),
  ]);
}

async function fields(suite, { a, b, c, alice, bob }, version, library) {
  const check = (name, body) => suite.check(`${version} presence: ${name}`, body);
  const client = (place, node, token) => place.client(library, node, { params: { token } });

  await check("fields at the join, and an update in place on another node", async (place) => {
    const mine = await client(place, a, alice).joined(place.room(), { presence: { name: "Ann", is: "here" } });
    const other = await client(place, b, bob).joined(place.room());
    const [changes, { presence }] = [[], other];
    presence.onJoin((key, current, now) => changes.push(["join", key, current?.metas.length, now.metas[0]]));
    presence.onLeave((key, current, left) => changes.push(["leave", key, current.metas.length, left.metas[0]]));
    await until(() => `both, not ${show(other.who())}`, () => Object.keys(other.who()).join() === "alice,bob");
    same(said(other.who()), { alice: [{ name: "Ann", is: "here" }], bob: [{}] });
    const before = other.who().alice[0];
    changes.length = 0;
    same(await push(mine, "presence_meta", { is: "away" }), { status: "ok", response: {} });
    await until("the update", () => changes.length === 2);
    const now = other.who().alice[0];
    same(said(other.who()).alice, [{ is: "away" }]);
    same([now.phx_ref_prev, now.online_at, now.node], [before.phx_ref, before.online_at, before.node]);
    same(changes.map(([what, key, metas, meta]) => [what, key, metas, meta.phx_ref]),
      [["join", "alice", 1, now.phx_ref], ["leave", "alice", 1, before.phx_ref]]);
    same((await push(mine, "presence_meta", { node: "b@h" })).status, "error");
    same(said(other.who()).alice, [{ is: "away" }]);
    demand(!other.heard.some(([event]) => event === "presence_meta"), "a member heard the push");
  });

  await check("counts alone, watching unseen, and nothing", async (place) => {
    const ways = ["count", "watch", "off"];
    const [count, watch, off] = await Promise.all(ways.map((presence, k) =>
      client(place, [a, b, c][k], bob).joined(place.room(), { presence })));
    const last = () => count.says("presence_count").at(-1)?.[1].count;
    await until(() => `one, not ${last()}`, () => last() === 1 && Object.keys(watch.who()).join() === "bob");
    const two = await client(place, c, alice).joined(place.room());
    const again = await client(place, a, alice).joined(place.room());
    await until(() => `two keys, not ${last()}`, () => last() === 2 && watch.who().alice?.length === 2);
    [two, again].forEach((channel) => channel.leave());
    await until(() => `one, not ${last()}`, () => last() === 1 && Object.keys(watch.who()).join() === "bob");
    same([count, off].flatMap((channel) => channel.heard).filter(([event]) => /state|diff/.test(event)), []);
    same(off.heard, []);
    const refused = client(place, a, bob);
    const answer = await refused.join(refused.channel(place.room(), { presence: "of" }));
    same(answer.status, "error");
    demand(/watch/.test(answer.response.reason), show(answer));
  });
}

async function services(suite, { s, t, alice, bob, libraries }) {
  await suite.check("presence: a service is there, changes and leaves, and sees who is, on other nodes", async (place) => {
    const topic = place.room().replace("room:", "test:");
    const library = libraries["1.8.16"];
    const mine = await place.client(library, s, { params: { token: alice } }).joined(topic);
    const other = await place.client(library, t, { params: { token: bob } }).joined(topic);
    same((await push(mine, "appear", { is: "ready" })).status, "ok");
    same((await push(other, "appear", { is: "idle" })).status, "ok");
    const bots = (channel) => show((said(channel.who()).bot ?? []).map(({ is }) => is).sort());
    for (const channel of [mine, other]) await until(() => `two, not ${bots(channel)}`, () => bots(channel) === '["idle","ready"]');
    same((await push(mine, "appear", { is: "busy" })).status, "ok");
    await until(() => `another, not ${bots(other)}`, () => bots(other) === '["busy","idle"]');
    demand(other.who().bot.some((meta) => meta.phx_ref_prev), "an update");
    const listed = async () => (await push(other, "who")).response.keys?.sort().join();
    await until(listed, async () => await listed() === "alice,bob,bot,bot");
    same((await push(mine, "vanish")).status, "ok");
    await until(() => `one, not ${bots(other)}`, () => bots(other) === '["idle"]');
    // With the join its state goes, and what it tracks.
    other.leave();
    await until(() => `none, not ${show(mine.who())}`, () => Object.keys(mine.who()).join() === "alice");
  });
}

async function large(suite, { a, b, libraries }) {
  await suite.check("presence: a state of several parts, while members leave and come, is what is there", async (place) => {
    const [room, pad] = [place.room(), "x".repeat(800)];
    const member = async (node, k) => {
      const raw = place.keep(new Raw(address(node, {})));
      await raw.open;
      await raw.joined("1", room, { presence: { k, pad } });
      return raw;
    };
    const members = await Promise.all([...Array(120).keys()].map((k) => member(k % 2 ? a : b, k)));
    const there = (who) => Object.values(who).flat().map((meta) => meta.k).sort((x, y) => x - y).join();
    const all = (from, to) => [...Array(to).keys()].slice(from).join();
    // First one that waits for all of them.
    const watch = { presence: "watch" };
    const witness = await place.client(libraries["1.8.16"], a).joined(room, watch);
    await until(() => `all, not ${there(witness.who())}`, () => there(witness.who()) === all(0, 120));
    const joining = Object.values(libraries).map((library) => place.client(library, b).joined(room, watch));
    const client = place.keep(Object.assign(new old.Socket(b.url, { transport: witness.socket.transport }), { close() { this.disconnect(); } }));
    client.connect();
    const channel = client.channel(room, watch);
    let [first, diffs] = [undefined, 0];
    channel.on("presence_state", (state) => { first = old.Presence.syncState(first ?? {}, state); });
    channel.on("presence_diff", (diff) => { diffs++; first = old.Presence.syncDiff(first, diff); });
    channel.join();
    for (const raw of members.slice(0, 40)) raw.close();
    await Promise.all([...Array(40).keys()].map((k) => member(k % 2 ? a : b, 120 + k)));
    const clients = await Promise.all(joining);
    for (const one of [witness, ...clients])
      await until(() => `those that are there, not ${there(one.who())}`, () => there(one.who()) === all(40, 160));
    for (const one of clients) {
      same(one.says("presence_state").length, 1, "states");
      demand(Object.keys(one.says("presence_state")[0][1]).length < 100, "one part");
    }
    const v1 = () => there(Object.fromEntries(Object.entries(first ?? {}).map(([key, { metas }]) => [key, metas])));
    await until(() => `those that are there, not ${v1()}`, () => v1() === all(40, 160));
    demand(diffs > 0, "parts");
  });
}
