// The picture of README: five nodes with some life in them, one of them killed, and a cut pair where there is a laboratory.
import { spawn } from "node:child_process";
import { Browser } from "./browser.mjs";
import { Lab } from "./lab.mjs";
import { sleep } from "../phoenix/nodes.mjs";

const LIFE = 45_000; // milliseconds of traffic that the plots show

export async function take(cluster, path) {
  const lab = Lab.up(5), real = lab instanceof Lab;
  try {
    const nodes = real ? await lab.nodes(cluster, [1, 2, 3, 4, 5]) : [];
    for (const name of real ? [] : ["a", "b", "c", "d", "e"]) nodes.push(await cluster.node(name));
    await cluster.linked(nodes);
    const token = await cluster.token("olga", "--ttl", "1h", "--role", "node_operator");
    const where = (node) => ["--data-dir", `${cluster.dir}/${node.full}`];
    const listening = nodes.slice(0, 3).map((node) => spawn(cluster.program, ["subscribe", "room:*", ...where(node)], { env: cluster.env, stdio: "ignore" }));
    const browser = await Browser.open(cluster.dir, real ? lab.on(1) : []);
    try {
      const page = await browser.page(`http://${nodes[0].http}/#token=${token}`, { viewport: { width: 1280, height: 800 }, deviceScaleFactor: 1.25 });
      await page.until("five nodes", ({ links }) => links === 20);
      if (real) lab.does("cut", "2", "3", "--oneway");
      const end = Date.now() + LIFE;
      for (let k = 0; Date.now() < end; k++) {
        const by = nodes[k % 3];
        await cluster.run("publish", "room:lobby", "x".repeat(2000 + 1500 * Math.round(3 * (1 + Math.sin(k / 60)))), ...where(by));
        if (k === 20) await nodes[4].kill();
        await sleep(50);
      }
      await page.until("the dead node", ({ nodes: shown }) => shown[nodes[4].full].kind === "bad");
      if (real) await page.until("the cut pair", ({ pairs }) => Object.values(pairs).some(({ lost }) => lost));
      await page.at.screenshot({ path });
      page.clean();
    } finally {
      await browser.close();
      for (const one of listening) one.kill();
    }
  } finally {
    for (const node of cluster.nodes) node.kill();
    if (real) await lab.close();
  }
}
