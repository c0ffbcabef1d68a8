// Three nodes behind a balancer that sends each request to the next one, while they are killed and restarted in turn.
import { demand, push, same, show, until } from "../phoenix/kit.mjs";

const BETWEEN = 5; // ms between two messages

// A channel that goes on where it was with each join of its own.
async function resumes(client, room) {
  let last = null;
  const channel = client.channel(room, () => ({ last_seq: last }));
  const keep = (from) => { last = from.seq ?? last; };
  channel.on("say", keep);
  const joined = client.join(channel);
  // The official client calls these again for each join of its own.
  channel.joinPush.receive("ok", keep);
  same((await joined).status, "ok", "join");
  return channel;
}

export async function run(suite, { cluster, a, balanced, phoenix }) {
  await publishers(suite, { cluster, a, balanced, phoenix });
  await suite.check("clients of a balancer miss nothing and hear nothing twice while nodes die in turn", async (place) => {
    const room = place.room();
    const kinds = { sockets: {}, polls: { transport: phoenix.LongPoll } };
    const members = [];
    for (const [kind, options] of Object.entries(kinds))
      for (let n = 0; n < 3; n++) members.push({ kind, channel: await resumes(place.client(phoenix, balanced, options), room) });
    // On a node that stays.
    const publisher = await place.client(phoenix, a).joined(room, { presence: "watch" });
    const there = () => Object.values(publisher.who()).flat().length;
    await until(() => `all are there, not ${there()}`, () => there() === members.length);

    let [sent, over] = [0, false];
    const publishes = (async () => {
      while (!over) {
        same((await push(publisher, "say", { n: sent })).status, "ok");
        sent++;
        await new Promise((done) => setTimeout(done, BETWEEN));
      }
    })();
    // Who has heard nothing yet has a seq that its own node alone knows.
    await until("all hear", () => members.every(({ channel }) => channel.says("say").length));
    for (const node of balanced.nodes) {
      const [answers, before] = [members.map(({ channel }) => channel.answers.length), sent];
      await node.kill();
      await until("messages meanwhile", () => sent > before + 20);
      await node.start();
      await cluster.linked([a, ...balanced.nodes]);
      // Who was on it is back, and everybody hears on.
      const mark = sent;
      await until(() => `all hear on; ${show(members.map(({ channel }) => channel.says("say").length))} of ${sent}`, () => members.every(({ channel }) => channel.says("say").some(([, { n }]) => n > mark)), 60_000);
      demand(members.some(({ channel }, at) => channel.answers.length > answers[at]), "nobody was on the node");
    }
    over = true;
    await publishes;
    for (const { kind, channel } of members) {
      const numbers = () => channel.says("say").map(([, { n }]) => n);
      await until(() => `${kind}: ${sent} messages, not ${numbers().length}: ${show([...Array(sent).keys()].filter((n) => !numbers().includes(n)))} after ${show(channel.answers.map(({ response }) => response))}`, () => numbers().length >= sent);
      same(numbers(), [...Array(sent).keys()], `${kind}: messages`);
      demand(channel.answers.every(({ response }) => !response.gap), () => `${kind}: ${show(channel.answers)}`);
    }
    await until(() => `no ghost: ${there()}`, () => there() === members.length, 40_000);
  });
}

// Who publishes is on a node that dies, too. What came to a node that stays comes to everybody, once; what a killed node told nobody
// but its own clients may be lost, and is a gap to those of them who come back.
async function publishers(suite, { cluster, a, balanced, phoenix }) {
  await suite.check("what clients of a balancer say while nodes die in turn comes to all, once", async (place) => {
    const room = place.room();
    const watcher = await resumes(place.client(phoenix, a), room);
    const members = [];
    for (const options of [{}, {}, {}, { transport: phoenix.LongPoll }, { transport: phoenix.LongPoll }])
      members.push(await resumes(place.client(phoenix, balanced, options), room));
    const heard = (channel) => channel.says("say").map(([, { id }]) => id);
    let over = false;
    const publish = async (who) => {
      const channel = await place.client(phoenix, balanced).joined(room, { presence: "off" });
      for (let n = 0; !over; n++) {
        await push(channel, "say", { id: `${who}:${n}` }, 500);
        await new Promise((done) => setTimeout(done, BETWEEN));
      }
    };
    const publishing = ["p", "q", "r"].map(publish);
    for (const node of [...balanced.nodes, ...balanced.nodes]) {
      const before = heard(watcher).length;
      await until("messages", () => heard(watcher).length > before + 50);
      await node.kill();
      await node.start();
      await cluster.linked([a, ...balanced.nodes]);
    }
    over = true;
    await Promise.all(publishing);
    const all = heard(watcher);
    same(new Set(all).size, all.length, "messages of the one that stays");
    const resumed = members.filter((channel) => channel.answers.every(({ response }) => !response.gap));
    demand(resumed.length * 2 > members.length, () => show(members.map((channel) => channel.answers)));
    for (const channel of members) {
      same(heard(channel).filter((id, at, ids) => ids.indexOf(id) !== at), [], "messages that came twice");
      const missing = () => { const ids = new Set(heard(channel)); return all.filter((id) => !ids.has(id)); };
      if (resumed.includes(channel))
        await until(() => `all of ${all.length}: ${show(missing())} after ${show(channel.answers.map(({ response }) => response))}`, () => !missing().length);
    }
  });
}
