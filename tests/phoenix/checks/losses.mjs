// Nodes that die, restart and stop under joined clients. Node b and then node c: the others stay.
import { demand, push, same, show, until } from "../kit.mjs";

export async function run(suite, { cluster, a, b, c, s, t, alice, bob, operator, libraries }) {
  const versions = Object.entries(libraries);
  const both = (channel, what = "alice,bob") =>
    until(() => `${what}, not ${show(channel.who())}`, () => {
      const who = channel.who();
      return Object.keys(who).join() === what && Object.values(who).every((metas) => metas.length === 1);
    }, 30_000);

  // A client of each release on the node, and one that watches from node a.
  const settle = async (place, node, params = {}) => {
    const all = [];
    for (const [version, library] of versions) {
      const room = `${place.room()}-${version}`;
      const watcher = await place.client(library, a, { params: { token: alice } }).joined(room);
      const client = place.client(library, node, { params: { token: bob }, ...params });
      const channel = await client.joined(room);
      await both(watcher);
      all.push({ version, watcher, client, channel });
    }
    return all;
  };
  const talks = async ({ version, watcher, client, channel }) => {
    await until(() => `${version}: a new join`, () => channel.answers.length > 1, 30_000);
    await both(watcher);
    await both(channel);
    same((await push(channel, "back", { version })).status, "ok");
    await until(`${version}: heard here`, () => watcher.says("back", { version }).length === 1);
    demand(client.closes.length >= 1, "it was never closed");
  };

  await suite.check("a node is killed and restarted under its clients: they come back, presence is right", async (place) => {
    const all = await settle(place, b);
    const view = await place.client(libraries["1.8.16"], a, { params: { token: operator } }).joined("network:updates");
    await b.kill();
    for (const { watcher } of all) await both(watcher, "alice");
    await until("a change in network:updates", () => view.says("change").some(([, change]) => JSON.stringify(change).includes(b.full)));
    await b.start();
    for (const one of all) await talks(one);
    demand(all.every(({ client }) => client.closes[0] === 1006), () => show(all.map(({ client }) => client.closes)));
  });

  await suite.check("a node stops under its clients: they are told 1012 and come back when it does", async (place) => {
    const all = await settle(place, c);
    await c.kill("SIGTERM");
    await c.start();
    for (const one of all) {
      await talks(one);
      same(one.client.closes[0], 1012, `${one.version} close code`);
    }
  });

  await suite.check("a node dies for good: its clients come back at another, presence is right again", async (place) => {
    const all = await settle(place, c, { heartbeatIntervalMs: 2000 });
    for (const { client } of all) {
      // What a page does that knows several nodes: the next address for the next attempt.
      client.socket.onClose(() => { client.socket.endPoint = `${b.url}/websocket`; });
    }
    await c.kill();
    for (const one of all) {
      await until(() => `${one.version}: a new join`, () => one.channel.answers.length > 1);
      const [meta] = await until("bob at the other node alone", () => {
        const metas = one.watcher.who().bob;
        return metas?.length === 1 && metas[0].node === b.full && metas;
      });
      demand(meta, "a meta");
    }
    for (const one of all) await talks(one);
    await c.start();
    await cluster.linked([a, b, c, s, t]);
  });
}
