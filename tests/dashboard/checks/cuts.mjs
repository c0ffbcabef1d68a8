// Cuts of a real network, seen from a third host.
import { demand } from "../../phoenix/nodes.mjs";
import { Browser } from "../browser.mjs";

const PATIENCE = 60_000; // of a verdict, and of a link that comes back

export async function run(suite, { lab, cluster }) {
  const nodes = await lab.nodes(cluster, [1, 2, 3]), names = nodes.map((node) => node.full);
  const token = await cluster.token("olga", "--ttl", "1h", "--role", "node_operator");
  const pair = `${names[0]} ${names[1]}`;

  for (const [what, ways] of [["a cut", []], ["a cut of one way", ["--oneway"]]]) {
    await suite.check(`${what} turns exactly that pair red, and back`, async ({ keep }) => {
      const browser = keep(await Browser.open(cluster.dir, lab.on(3)));
      const page = await browser.page(`http://127.0.0.1:4000/#token=${token}`);
      const well = ({ nodes, pairs, links }) => links === 6 && !Object.keys(pairs).length && names.every((name) => nodes[name]?.kind === "ok");
      await page.until("three nodes", well, PATIENCE);
      lab.does("cut", "1", "2", ...ways);
      await page.until("the pair in red, and it alone", ({ nodes, pairs, links }) => {
        demand(Object.entries(pairs).every(([name, { kind }]) => name === pair || kind === "ok"), "another pair is touched");
        return pairs[pair]?.kind === "cut" && pairs[pair].crosses && links === 4 && names.every((name) => nodes[name].kind === "ok");
      }, PATIENCE);
      await page.shows("the verdict", "#verdict", "1 cut pair: n1 – n2");
      await page.shows("the table", "#pairs", "cut");
      if (ways.length) {
        await page.until("the broken way", ({ pairs }) => pairs[pair]?.lost === pair);
        await page.shows("the table", "#pairs", "the way n1 → n2 is broken");
      }
      lab.does("heal", "1", "2");
      await page.until("all well", well, PATIENCE);
      await page.shows("the verdict", "#verdict", "All 3 nodes see each other");
      page.clean();
    });
  }
}
