#!/usr/bin/env node
// nginx in front of real nodes, with the settings that are met in the field, and the official client and a real Chromium
// behind it.
//
//   node proxies.mjs PROGRAM [--only TEXT]
//
// PROGRAM is xpando-node; TEXT narrows to checks whose name has it. Prints `ok NAME` or `FAIL NAME why` for each check; the
// exit status is 1 when one failed. Without Chromium, the checks that need it are skipped.
import process from "node:process";
import * as phoenix from "../phoenix/node_modules/phoenix/priv/static/phoenix.mjs";
import { Cluster, Suite } from "../phoenix/kit.mjs";
import * as balanced from "./balanced.mjs";
import * as browsers from "./browsers.mjs";
import * as clients from "./clients.mjs";
import { Nginx, certificate, free } from "./nginx.mjs";

const [program, option, only] = process.argv.slice(2);
if (!program || (option && option !== "--only")) {
  process.stderr.write("usage: node proxies.mjs PROGRAM [--only TEXT]\n");
  process.exit(2);
}
process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0"; // the certificate vouches for itself
process.removeAllListeners("warning").on("warning", () => {});
const cluster = new Cluster(program);
let nginx;
process.on("exit", () => { nginx?.close(); cluster.close(); });
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));
process.on("uncaughtException", (error) => { console.log(`FAIL the suite itself ${error.stack}`); process.exit(1); });

const open = ["--allow-anonymous", "room:*,network:updates"];
const a = await cluster.node("a", ...open);
const below = await cluster.node("b", ...open, "--http-prefix", "/app");
const many = [];
for (const name of ["x", "y", "z"]) many.push(await cluster.node(name, ...open));
const ports = { balanced: await free(), bare: await free(), sound: await free(), stripped: await free(), passed: await free(), tls: await free() };
const to = (node, path = "") => `proxy_pass http://${node.http}${path};`;
const SOUND = `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";
  proxy_set_header Host $http_host;`;
const tls = certificate(cluster.dir);
if (!tls) console.log("SKIPPED: openssl: no certificate can be made for a proxy that speaks TLS");
nginx = await Nginx.start(cluster.dir, [
  // Each request to the next node, and to another one where that is not there.
  [ports.balanced, `location / { proxy_connect_timeout 2s; ${SOUND} proxy_pass http://many; }`],
  // As a proxy is before anybody has read about WebSockets.
  [ports.bare, `location / { proxy_http_version 1.0; ${to(a)} }`],
  [ports.sound, `location / { proxy_buffering on; ${SOUND} ${to(a)} }`],
  [ports.stripped, `location /xpando/ { ${SOUND} proxy_set_header X-Forwarded-Prefix /xpando; ${to(a, "/")} }`],
  [ports.passed, `location /app { ${SOUND} ${to(below)} }`],
  ...(tls ? [[ports.tls, `ssl_certificate ${tls.cert}; ssl_certificate_key ${tls.key}; location / { ${SOUND} ${to(a)} }`, true]] : []),
], `upstream many { ${many.map((node) => `server ${node.http} max_fails=0;`).join(" ")} }`);
const at = (port, path = "") => ({ port, page: `http://localhost:${port}${path}/`, url: `ws://localhost:${port}${path}/socket` });
const ways = {
  bare: at(ports.bare), sound: at(ports.sound), stripped: at(ports.stripped, "/xpando"), passed: at(ports.passed, "/app"),
  ...(tls ? { tls: { port: ports.tls, page: `https://localhost:${ports.tls}/`, url: `wss://localhost:${ports.tls}/socket` } } : {}),
};
const world = { cluster, a, below, nginx, ways, phoenix };

const suite = new Suite(cluster, only);
await clients.run(suite, world);
await browsers.run(suite, world);
await cluster.linked([a, ...many]);
await balanced.run(suite, { cluster, a, balanced: { ...at(ports.balanced), nodes: many }, phoenix });
console.log(`${suite.passed} passed, ${suite.failed.length} failed${suite.failed.map((name) => `\n  ${name}`).join("")}`);
if (suite.failed.length) for (const node of cluster.nodes) console.log(`--- ${node.full}\n${node.tail()}`);
process.exit(suite.failed.length || !suite.passed ? 1 : 0);
