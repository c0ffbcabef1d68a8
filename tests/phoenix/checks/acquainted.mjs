// Anyone who has been told that it joined is known to the other nodes: one message, said there at that moment, arrives.
// Runs before everything else, for a join waits for the other nodes no longer than a busy machine may take to answer.
import { demand, until } from "../kit.mjs";

const TOPICS = 100; // as many as a socket may join
const WAIT = 250; // ms that a join waits for the other nodes at most
const ENOUGH = TOPICS / 2;

export async function run(suite, { a, b }) {
  // `first` joins a fresh topic, then `second` does, and the moment that it is answered `speaker` says something, once.
  const each = async (place, speak) => {
    const [x, y] = [await place.raw(a), await place.raw(b)];
    const lost = [];
    let counted = 0;
    for (let n = 0; n < TOPICS; n++) {
      const topic = `${place.room()}-${n}`;
      const { first, second, speaker, listener } = speak(x, y);
      const before = await answered(first, `${n}`, topic);
      const then = await answered(second, `${n}`, topic, () => speaker.say([`${n}`, null, topic, "once", {}]));
      // What the same one says later comes after it.
      const heard = (event) => listener.frames.some((frame) => frame[2] === topic && frame[3] === event);
      await until("what is said later", () => heard("later") || void speaker.say([`${n}`, null, topic, "later", {}]));
      const came = heard("once");
      // Where the wait was cut short, nothing was promised.
      if (came || Math.max(before, then) < WAIT) counted++;
      if (!came && Math.max(before, then) < WAIT) lost.push(n);
    }
    demand(lost.length === 0, () => `lost ${lost.length} of ${counted}: ${lost}`);
    demand(counted >= ENOUGH, () => `only ${counted} of ${TOPICS} were heard or joined within ${WAIT} ms`);
  };

  await suite.check("acquainted: who joins a topic that another node knows hears what is said there next", (place) =>
    each(place, (x, y) => ({ first: y, second: x, speaker: y, listener: x })));
  await suite.check("acquainted: who joined first hears what a later member says first", (place) =>
    each(place, (x, y) => ({ first: x, second: y, speaker: y, listener: x })));
}

// Joins; `then` is called at the very moment of the answer. How long the answer took, in ms.
function answered(raw, ref, topic, then = () => {}) {
  const began = performance.now();
  return new Promise((done, fail) => {
    const hear = (data) => {
      const [, its, , event, payload] = JSON.parse(data);
      if (its !== ref || event !== "phx_reply") return;
      raw.ws.off("message", hear);
      if (payload.status !== "ok") fail(new Error(`join of ${topic}: ${payload.status}`));
      then();
      done(performance.now() - began);
    };
    raw.ws.on("message", hear);
    raw.say([ref, ref, topic, "phx_join", {}]);
  });
}
