#!/usr/bin/env node
// Looks at the dashboard of real nodes with a real Chromium.
//
//   node dashboard.mjs PROGRAM [--only TEXT | --picture FILE]
//
// PROGRAM is xpando-node; TEXT narrows to checks whose name has it; FILE gets the picture of README instead. Nodes run in
// directories of their own and end with the checks. Prints `ok NAME` or `FAIL NAME why` for each check; the exit status
// is 1 when one failed, and 77 where there is no Chromium.
import process from "node:process";
import { Cluster, Suite } from "../phoenix/nodes.mjs";
import { Browser, installed } from "./browser.mjs";
import { Lab } from "./lab.mjs";
import { take } from "./picture.mjs";
import * as cuts from "./checks/cuts.mjs";
import * as fed from "./checks/fed.mjs";
import * as live from "./checks/live.mjs";

const [program, option, value] = process.argv.slice(2);
if (!program || (option && !["--only", "--picture"].includes(option)) || Boolean(option) !== Boolean(value)) {
  process.stderr.write("usage: node dashboard.mjs PROGRAM [--only TEXT | --picture FILE]\n");
  process.exit(2);
}
if (!installed()) {
  process.stderr.write("scripts/dashboard: Chromium is not installed: nothing was checked\n");
  process.exit(77);
}
const clusters = [];
const cluster = () => clusters[clusters.push(new Cluster(program)) - 1];
process.on("exit", () => clusters.forEach((one) => one.close()));
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));
process.on("uncaughtException", (error) => { console.log(`FAIL the suite itself ${error.stack}`); process.exit(1); });

if (option === "--picture") {
  await take(cluster(), value);
  process.exit(0);
}
const near = cluster(), suite = new Suite(near, value);
const a = await near.node("a"), b = await near.node("b"), c = await near.node("c");
await near.linked([a, b, c]);
const token = await near.token("olga", "--ttl", "1h", "--role", "node_operator");
const browser = await Browser.open();
await live.run(suite, { browser, cluster: near, a, b, c, token });
await fed.run(suite, { browser, a });
await browser.close();
const lab = Lab.up(3);
if (lab instanceof Lab) {
  await cuts.run(suite, { lab, cluster: cluster() });
  await lab.close();
} else if ((process.env.XPANDO_REQUIRE ?? "").split(",").includes("netlab")) suite.failed.push(`cuts of a network: ${lab}, and netlab is required`);
else console.log(`SKIPPED: cuts of a network: ${lab}`);
console.log(`${suite.passed} passed, ${suite.failed.length} failed${suite.failed.map((name) => `\n  ${name}`).join("")}`);
if (suite.failed.length) for (const node of clusters.flatMap((one) => one.nodes)) console.log(`--- ${node.full}\n${node.tail()}`);
process.exit(suite.failed.length || !suite.passed ? 1 : 0);
