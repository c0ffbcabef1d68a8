// What a minute of silence does. Runs beside everything else.
import { demand, push, same, sleep, until } from "../kit.mjs";

const IDLE = 60_000;

export async function run(suite, { a, alice, libraries }) {
  const checks = [
    suite.check("a bare socket that is silent for 60 s is closed with 1002", async (place) => {
      const raw = await place.raw(a);
      const began = performance.now();
      await raw.joined("1", place.room());
      const { code } = await Promise.race([raw.end, sleep(IDLE + 30_000).then(() => ({ code: "still open" }))]);
      const took = performance.now() - began;
      same(code, 1002, "close code");
      demand(took >= IDLE, () => `after ${took} ms`);
    }),
  ];
  for (const [version, library] of Object.entries(libraries)) {
    checks.push(suite.check(`${version} its own heartbeats hold the link for over 60 s`, async (place) => {
      const client = place.client(library, a, { params: { token: alice } });
      const channel = await client.joined(place.room());
      await sleep(IDLE + 6_000);
      same([client.closes, channel.errors], [[], []], "closes and errors");
      demand(client.got.filter((frame) => frame[2] === "phoenix").length >= 1, "no heartbeat was answered");
      same((await push(channel, "say")).status, "ok");
    }));
    checks.push(suite.check(`${version} closed for being idle: 1002, and back again`, async (place) => {
      const client = place.client(library, a, { params: { token: alice }, heartbeatIntervalMs: 10 * IDLE });
      const channel = await client.joined(place.room());
      await until("a close", () => client.closes.length, IDLE + 30_000);
      same(client.closes[0], 1002, "close code");
      await until("a new join", () => channel.answers.length > 1);
    }));
  }
  await Promise.all(checks);
}
