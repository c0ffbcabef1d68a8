#!/usr/bin/env node
// The conformance suite: the official Phoenix clients, an old one and bare sockets against a real cluster.
//
//   node conformance.mjs PROGRAM EXAMPLE [--only TEXT]
//
// PROGRAM is xpando-node, EXAMPLE the built examples/channels.rs; TEXT narrows to checks whose name has it. Starts three
// plain nodes a, b, c, two services s, t, and a node i that knows tokens of other systems, linked and in a directory of
// their own, and ends them all. Prints `ok NAME` or `FAIL NAME why` for each check; the exit status is 1 when one failed.
import process from "node:process";
import * as phoenix18 from "phoenix";
import * as phoenix17 from "phoenix-1.7";
import * as phoenix16 from "phoenix-1.6";
import { Cluster, Suite } from "./kit.mjs";
import * as acquainted from "./checks/acquainted.mjs";
import * as clients from "./checks/clients.mjs";
import * as frames from "./checks/frames.mjs";
import * as identity from "./checks/identity.mjs";
import * as idle from "./checks/idle.mjs";
import * as longpoll from "./checks/longpoll.mjs";
import * as losses from "./checks/losses.mjs";
import * as presence from "./checks/presence.mjs";
import * as resume from "./checks/resume.mjs";
import * as rights from "./checks/rights.mjs";
import * as storms from "./checks/storms.mjs";

const [program, example, option, only] = process.argv.slice(2);
if (!program || !example || (option && option !== "--only")) {
  process.stderr.write("usage: node conformance.mjs PROGRAM EXAMPLE [--only TEXT]\n");
  process.exit(2);
}
// CommonJS builds come as one default export.
const plain = (library) => (library.Socket ? library : library.default);
const libraries = { "1.8.16": plain(phoenix18), "1.7.21": plain(phoenix17), "1.6.16": plain(phoenix16) };

const cluster = new Cluster(program, example);
process.on("exit", () => cluster.close());
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));
process.on("uncaughtException", (error) => { console.log(`FAIL the suite itself ${error.stack}`); process.exit(1); });

const open = ["--allow-anonymous", "room:*"];
const a = await cluster.node("a", ...open);
const b = await cluster.node("b", ...open);
const c = await cluster.node("c", ...open, "--http-origin", "https://app.example,//*.pages.example");
const s = await cluster.service("s");
const t = await cluster.service("t");
const alice = await cluster.token("alice", "--ttl", "1h");
const bob = await cluster.token("bob", "--ttl", "1h");
const operator = await cluster.token("olga", "--ttl", "1h", "--role", "node_operator");
const i = await identity.node(cluster);
await cluster.linked([a, b, c, s, t, i]);
const world = { cluster, a, b, c, s, t, i, alice, bob, operator, libraries };
console.log("six nodes are linked");

const suite = new Suite(cluster, only);
await acquainted.run(suite, world);
// What waits for a minute runs beside what does not, on nodes a, s and t; what kills b and c comes last.
const quiet = [idle.run(suite, world), longpoll.run(suite, world), storms.run(suite, world)];
const lanes = Object.entries(libraries).map(([version, library]) => clients.run(suite, world, version, library));
const others = [frames, identity, presence, resume, rights].map((checks) => checks.run(suite, world));
await Promise.all([...lanes, ...others]);
await clients.slow(suite, world);
await Promise.all([...quiet, losses.run(suite, world)]);
await suite.check("every node ran on through all of it", async () => {
  for (const node of [a, s, t, i]) if (!node.runs) throw new Error(`${node.name} ended: ${node.tail()}`);
});
console.log(`${suite.passed} passed, ${suite.failed.length} failed${suite.failed.map((name) => `\n  ${name}`).join("")}`);
if (suite.failed.length) for (const node of cluster.nodes) console.log(`--- ${node.full}\n${node.tail()}`);
process.exit(suite.failed.length || !suite.passed ? 1 : 0);
