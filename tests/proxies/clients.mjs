// The official client behind each proxy.
import { PATIENCE, demand, push, same, until } from "../phoenix/kit.mjs";

export async function run(suite, { a, ways, phoenix, nginx }) {
  const { bare, ...good } = ways;
  for (const [name, way] of Object.entries(good)) {
    await suite.check(`the client talks over a WebSocket: ${name}`, async (place) => {
      const clients = [1, 2].map(() => place.client(phoenix, way));
      const [one, other] = await Promise.all(clients.map((client) => client.joined(`room:${name}`)));
      same((await push(one, "say", { n: 1 })).status, "ok");
      await until("it arrives", () => other.says("say", { n: 1 }).length === 1);
      same(clients.map((client) => client.attempts), [1, 1], "attempts");
    });
  }

  await suite.check("a proxy that speaks HTTP/1.0 to the node: refused before 101, with a reason, and not repeated in a storm", async (place) => {
    const answer = await fetch(`${bare.page}socket/websocket?vsn=2.0.0`);
    const { cause, remedy } = await answer.json();
    same([answer.status, cause], [426, "no_upgrade"]);
    demand(remedy.includes("proxy_http_version 1.1"), remedy);
    // The client waits longer from try to try: 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1, 2, then 5 s. In the first two
    // seconds there are nine tries at most, and none of them is answered with 101.
    const client = place.client(phoenix, bare);
    await until("several tries", () => client.attempts >= 5);
    await new Promise((done) => setTimeout(done, 2_000));
    demand(client.attempts <= 10 && client.opens === 0, `${client.attempts} tries, ${client.opens} opened`);
    demand(!nginx.said("access.log").includes('" 101 '.concat("0 \"-\" \"HTTP/1.0")), "no 101 for HTTP/1.0");
  });

  await suite.check("long polling works through such a proxy", async (place) => {
    const client = place.client(phoenix, bare, { transport: phoenix.LongPoll });
    const channel = await client.joined("room:poll");
    const other = await place.client(phoenix, ways.sound).joined("room:poll");
    same((await push(channel, "say", { n: 2 })).status, "ok");
    await until("it arrives", () => other.says("say", { n: 2 }).length === 1);
    await push(other, "say", { n: 3 });
    await until("it arrives over the poll", () => channel.says("say", { n: 3 }).length === 1);
  });

  await suite.check("events pass a proxy that gathers answers", async (place) => {
    const stop = place.keep(new AbortController());
    stop.close = () => stop.abort();
    const late = setTimeout(() => stop.abort(), PATIENCE);
    const answer = await fetch(`${ways.sound.page}api/events?after=0`, { headers: { accept: "text/event-stream" }, signal: stop.signal });
    same(answer.status, 200);
    // nginx takes the header for itself, so that the node is asked, too.
    const direct = await fetch(`http://${a.http}/api/events`, { headers: { accept: "text/event-stream" }, signal: stop.signal });
    same(direct.headers.get("x-accel-buffering"), "no");
    const { value } = await answer.body.getReader().read();
    clearTimeout(late);
    demand(new TextDecoder().decode(value).includes("data: "), "an event");
  });

  await suite.check("the API names the path that it is below", async () => {
    const server = async (way) => (await (await fetch(`${way.page}api/openapi.json`)).json()).servers[0].url;
    same(await server(ways.sound), "/");
    same(await server(ways.stripped), "/xpando");
    same(await server(ways.passed), "/app");
  });
}
