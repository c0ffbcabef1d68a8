// Coming back to a topic without having missed anything: the join parameter `last_seq`.
import { demand, push, same, show, until } from "../kit.mjs";

export async function run(suite, { a, b, alice, bob, libraries }) {
  const check = (name, body) => suite.check(`resume: ${name}`, body);
  const library = libraries["1.8.16"];
  const events = (raw) => raw.frames.filter((frame) => frame[3] === "say").map((frame) => frame[4]);

  await check("who does not ask for numbers gets none", async (place) => {
    const raw = await place.raw(a);
    same(await raw.joined("1", place.room()), {});
    raw.say(["1", "2", place.room(), "say", { x: 1 }]);
    same((await raw.next((frame) => frame[3] === "say"))[4], { x: 1 });
  });

  await check("who asks gets them, comes back with one, and has what it missed, in order, and then the rest", async (place) => {
    const room = place.room();
    const speaker = await place.raw(b);
    await speaker.joined("s", room);
    const say = async (n) => {
      speaker.say(["s", `${n}`, room, "say", { n }]);
      same((await speaker.reply(`${n}`))[4].status, "ok");
    };
    const first = await place.raw(a);
    await first.joined("0", room);
    const begun = await first.joined("1", room, { last_seq: "" });
    demand(begun.gap === undefined, "a gap for a first join");
    for (const n of [1, 2, 3]) await say(n);
    await until(() => `three, not ${show(events(first))}`, () => events(first).length === 3);
    const seen = events(first);
    demand(seen.every(({ seq }) => typeof seq === "string" && seq), () => `no seq: ${show(seen)}`);
    same(new Set(seen.map(({ seq }) => seq)).size, 3, "different ones");
    first.close();
    // Whose node has heard the last one has what the second one missed.
    const witness = await place.raw(a);
    await witness.joined("w", room);
    for (const n of [4, 5, 6]) await say(n);
    await until("the sixth", () => events(witness).some(({ n }) => n === 6));
    witness.close();
    const second = await place.raw(a);
    const response = await second.joined("1", room, { last_seq: seen[1].seq });
    same(response.replayed, 4, "replayed");
    await say(7);
    await until(() => `five, not ${show(events(second))}`, () => events(second).length >= 5);
    same(events(second).map(({ n }) => n), [3, 4, 5, 6, 7]);
    const last = events(second).at(-1).seq;
    second.close();
    const third = await place.raw(a);
    same((await third.joined("1", room, { last_seq: last })).replayed, 0, "nothing missed");
  });

  await check("what another client says of numbers counts for nothing, and nothing is missed", async (place) => {
    const room = place.room();
    const [speaker, victim] = [await place.raw(b), await place.raw(a)];
    await speaker.joined("s", room);
    await victim.joined("1", room, { last_seq: null });
    speaker.say(["s", "1", room, "say", { n: 1 }]);
    await until("the first", () => events(victim).length === 1);
    const { seq } = events(victim)[0];
    const ahead = seq.replace(/:1:/, ":6:");
    const forged = [`{"n":2,"seq":"${ahead}"}`, `{"seq":"${ahead}","n":3,"seq":"${ahead}"}`, `{"n":4,"\\u0073\\u0065\\u0071" : "${ahead}"}`];
    for (const [k, payload] of forged.entries()) speaker.say(`["s","f${k}","${room}","say",${payload}]`);
    await until("all four", () => events(victim).length === 4);
    const last = events(victim).at(-1).seq;
    same([new Set(events(victim).map((one) => one.seq)).size, last === ahead], [4, false], "numbers of the node's own");
    victim.close();
    for (let n = 5; n <= 9; n++) {
      speaker.say(["s", `${n}`, room, "say", { n }]);
      await speaker.reply(`${n}`);
    }
    const again = await place.raw(a);
    same((await again.joined("1", room, { last_seq: last })).replayed, 5, "nothing was missed");
    await until("all five", () => events(again).length === 5);
    same(again.frames.filter((frame) => frame[3] === "say").map((frame) => frame[0]), Array(5).fill("1"), "whose");
    // Nobody was sent such a cursor.
    for (const cursor of [ahead, last.replace(/:[0-9a-f]+$/, ":0")])
      same((await (await place.raw(a)).joined("1", room, { last_seq: cursor })).gap, true, cursor);
  });

  await check("bytes are numbered by an event that follows them", async (place) => {
    const [raw, room] = [await place.raw(a), place.room()];
    await raw.joined("1", room, { last_seq: "" });
    raw.say(new Uint8Array([0, 1, 1, room.length, 4, ...Buffer.from(`12${room}blob`), 1, 2, 3]));
    await raw.next((frame) => frame.hex?.endsWith("010203"));
    const after = await raw.next((frame) => frame[3] === "seq");
    demand(typeof after[4].seq === "string", show(after));
  });

  await check("what is too old, or no number at all, is a gap", async (place) => {
    const room = place.room();
    const speaker = await place.raw(a);
    await speaker.joined("s", room, { last_seq: "" });
    speaker.say(["s", "1", room, "say", { n: 1 }]);
    const { seq } = (await speaker.next((frame) => frame[3] === "say"))[4];
    for (let n = 2; n <= 602; n++) speaker.say(["s", `${n}`, room, "say", { n }]);
    await until("all of them", () => events(speaker).length === 602);
    for (const [k, last_seq] of [seq, "nonsense", 17, "x".repeat(5000)].entries()) {
      const raw = await place.raw(a);
      const response = await raw.joined(`${k}`, room, { last_seq });
      same(response.gap, true, `gap of ${show(last_seq).slice(0, 40)}`);
      demand(typeof response.seq === "string", "nowhere to go on from");
    }
  });

  await check("1.8.16 the unchanged client resumes after its connection was lost", async (place) => {
    const room = place.room();
    const speaker = await place.client(library, b, { params: { token: bob } }).joined(room);
    const client = place.client(library, a, { params: { token: alice }, reconnectAfterMs: () => 1000 });
    let seq = "";
    const channel = client.channel(room, () => ({ last_seq: seq }));
    channel.on("say", (payload) => { seq = payload.seq; });
    same((await client.join(channel)).status, "ok");
    same((await push(speaker, "say", { n: 1 })).status, "ok");
    await until("the first", () => channel.says("say").length === 1);
    client.wire.terminate();
    await until("the loss", () => client.closes.length);
    for (const n of [2, 3]) same((await push(speaker, "say", { n })).status, "ok");
    await until("a new join", () => channel.answers.length > 1);
    same(channel.answers[1].response.replayed, 2, "replayed");
    same((await push(speaker, "say", { n: 4 })).status, "ok");
    await until("all", () => channel.says("say").length >= 4);
    same(channel.says("say").map(([, { n }]) => n), [1, 2, 3, 4]);
  });
}
