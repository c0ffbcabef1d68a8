// What suites of checks stand on: nodes as processes, and a runner. It needs no package.
//
// A check waits for conditions with a deadline and never for a fixed time to be safe; where it shows that something
// does NOT happen, it watches for a stated while. Everything that a check opens is closed when it ends.
import { spawn, execFile } from "node:child_process";
import { appendFileSync, mkdtempSync, mkdirSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";

export const PATIENCE = 15_000;
const LIMIT = 110_000; // of one check
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
export const show = (value) => (value instanceof ArrayBuffer ? `<${hex(value)}>` : JSON.stringify(value));
export const hex = (bytes) => Buffer.from(bytes).toString("hex");
export const unhex = (text) => new Uint8Array(Buffer.from(text, "hex")).buffer;

export function demand(condition, why) {
  if (!condition) throw new Error(typeof why === "function" ? why() : why);
}

// Like assert.deepEqual, but short about what was there instead.
export function same(got, wanted, what = "value") {
  demand(isDeepStrictEqual(got, wanted), () => `${what}: ${show(got)}, not ${show(wanted)}`);
}

// Asks until the answer is truthy; the answer.
export async function until(what, ask, patience = PATIENCE) {
  const end = performance.now() + patience;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (performance.now() > end) throw new Error(`not in time: ${typeof what === "function" ? what() : what}`);
    await sleep(10);
  }
}

// What a check returns that was none, because the machine lacks what it needs: said, and counted like that of
// tests/kit/skip.rs.
const SKIPPED = Symbol("skipped");
export function skip(need, why) {
  const line = `SKIPPED: ${need}: ${why}`;
  const required = (process.env.XPANDO_REQUIRE ?? "").split(",").some((one) => one.trim() === need);
  demand(!required, `${line}, and it is required`);
  console.log(line);
  if (process.env.XPANDO_SKIPS) appendFileSync(process.env.XPANDO_SKIPS, `${line}\n`);
  return SKIPPED;
}

// ---- nodes

export class Cluster {
  constructor(program, example) {
    Object.assign(this, { program, example, nodes: [] });
    this.dir = mkdtempSync(join(tmpdir(), "xpando-suite."));
    this.certs = join(this.dir, "certs");
    mkdirSync(join(this.dir, "run"));
    this.env = { HOME: this.dir, XDG_RUNTIME_DIR: join(this.dir, "run"), PATH: process.env.PATH };
  }

  run(...args) {
    return new Promise((done, fail) =>
      execFile(this.program, args, { env: this.env }, (error, out, said) =>
        error ? fail(new Error(`${args.join(" ")}: ${said.trim() || error.message}`)) : done(out),
      ),
    );
  }

  // A node of the program, on loopback.
  async node(name, ...args) {
    return this.launch(name, [], ...args).start("127.0.0.1:0", "127.0.0.1:0");
  }

  // A node to start, by a command that runs the program somewhere else perhaps.
  launch(name, through, ...args) {
    const full = name.includes("@") ? name : `${name}@127.0.0.1`;
    const joins = this.nodes.filter((one) => one.runs && one.listen).map((one) => one.listen);
    const own = ["--name", full, "--certs", this.certs, "--data-dir", join(this.dir, full), "--no-beacon"];
    const seeds = joins.slice(0, 1).flatMap((at) => ["--join", at]);
    const [program, ...more] = [...through, this.program, ...own, ...seeds, ...args];
    return new Node(this, name, program, more);
  }

  // The example's service, a node too.
  async service(name) {
    const at = this.nodes.find((one) => one.runs && one.listen).listen;
    return new Node(this, name, this.example, [this.dir, at, `${name}@127.0.0.1`, "127.0.0.1:0"]).start();
  }

  async token(sub, ...args) {
    const token = await this.run("token", "create", "--sub", sub, "--certs", this.certs, ...args);
    return token.trim();
  }

  async linked(nodes) {
    for (const node of nodes)
      await until(`${node.name} sees all`, async () => {
        const peers = (await node.status())?.peers ?? [];
        const online = peers.filter((peer) => peer.status === "online").map((peer) => peer.name);
        return nodes.every((other) => other === node || online.includes(other.full));
      }, 60_000);
  }

  close() {
    for (const node of this.nodes) node.kill();
    rmSync(this.dir, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
  }
}

class Node {
  constructor(cluster, name, program, args) {
    Object.assign(this, { cluster, name, program, args, full: name.includes("@") ? name : `${name}@127.0.0.1`, runs: false });
    this.log = join(cluster.dir, `${name}.log`);
    cluster.nodes.push(this);
  }

  async start(listen = this.listen, http = this.http) {
    const log = openSync(this.log, "a");
    const where = this.program === this.cluster.example ? [] : ["--listen", listen, "--http", http];
    this.child = spawn(this.program, [...this.args, ...where], {
      env: this.cluster.env, cwd: this.cluster.dir, stdio: ["ignore", "ignore", log],
    });
    this.runs = true;
    this.ended = new Promise((done) => this.child.on("exit", (code) => { this.runs = false; done(code); }));
    const status = await until(() => `${this.name} is up; its log: ${this.tail()}`, async () => {
      demand(this.runs, () => `${this.name} ended: ${this.tail()}`);
      return this.status();
    }, 60_000);
    this.listen = status.listen;
    this.http = status.http;
    return this;
  }

  get url() {
    return `ws://${this.http}/socket`;
  }

  tail() {
    return readFileSync(this.log, "utf8").split("\n").slice(-8).join("\n");
  }

  async status() {
    const data = join(this.cluster.dir, this.full);
    return this.cluster.run("status", "--json", "--data-dir", data).then(JSON.parse, () => undefined);
  }

  metrics() {
    return this.cluster.run("metrics", "--data-dir", join(this.cluster.dir, this.full));
  }

  async counter(kind) {
    const text = await this.metrics();
    const line = text.split("\n").find((one) => one.includes(`channel_events_total{event="${kind}"}`));
    return Number(line?.split(" ").pop() ?? 0);
  }

  kill(signal = "SIGKILL") {
    if (this.runs) this.child.kill(signal);
    return this.ended;
  }
}

// ---- the runner

export class Suite {
  constructor(cluster, only) {
    Object.assign(this, { cluster, only, passed: 0, failed: [], lanes: [] });
  }

  // What a check of this name gets: `keep` closes what it is given when the check is over.
  place(name, keep) {
    return { keep };
  }

  // One named check. `body` gets a place to open things in, closed at the end.
  async check(name, body) {
    if (this.only && !name.includes(this.only)) return;
    const open = [];
    const place = this.place(name, (one) => { open.push(one); return one; });
    const began = performance.now();
    let clock;
    const late = new Promise((_, fail) => { clock = setTimeout(() => fail(new Error("took too long")), LIMIT); });
    try {
      if ((await Promise.race([body(place), late])) === SKIPPED) return;
      this.passed++;
      console.log(`ok ${name} (${Math.round(performance.now() - began)} ms)`);
    } catch (error) {
      this.failed.push(name);
      console.log(`FAIL ${name} ${error.message.replaceAll("\n", " | ")}`);
    } finally {
      clearTimeout(clock);
      for (const one of open) await one.close();
    }
  }
}
