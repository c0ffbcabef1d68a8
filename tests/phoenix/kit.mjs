// What the checks stand on: nodes as processes, sockets of the official clients and bare ones, and a runner.
//
// A check waits for conditions with a deadline and never for a fixed time to be safe; where it shows that something
// does NOT happen, it watches for a stated while. Everything that a check opens is closed when it ends.
import { spawn, execFile } from "node:child_process";
import { mkdtempSync, mkdirSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import WebSocket from "ws";

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

// ---- nodes

export class Cluster {
  constructor(program, example) {
    Object.assign(this, { program, example, nodes: [] });
    this.dir = mkdtempSync(join(tmpdir(), "xpando-phoenix."));
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

  // A node of the program; where it listened before when it ran already.
  async node(name, ...args) {
    const joins = this.nodes.filter((one) => one.runs && one.listen).map((one) => one.listen);
    const own = ["--name", `${name}@127.0.0.1`, "--certs", this.certs, "--no-beacon"];
    const seeds = joins.slice(0, 1).flatMap((at) => ["--join", at]);
    const node = new Node(this, name, this.program, [...own, "--data-dir", join(this.dir, `${name}@127.0.0.1`), ...seeds, ...args]);
    return node.start("127.0.0.1:0", "127.0.0.1:0");
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
    Object.assign(this, { cluster, name, program, args, full: `${name}@127.0.0.1`, runs: false });
    this.log = join(cluster.dir, `${name}.log`);
    cluster.nodes.push(this);
  }

  async start(listen = this.listen, http = this.http) {
    const log = openSync(this.log, "a");
    const where = this.program === this.cluster.program ? ["--listen", listen, "--http", http] : [];
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

  async counter(kind) {
    const text = await this.cluster.run("metrics", "--data-dir", join(this.cluster.dir, this.full));
    const line = text.split("\n").find((one) => one.includes(`channel_events_total{kind="${kind}"}`));
    return Number(line?.split(" ").pop() ?? 0);
  }

  kill(signal = "SIGKILL") {
    if (this.runs) this.child.kill(signal);
    return this.ended;
  }
}

// ---- clients

// The official client on a socket whose frames are kept, both ways.
export class Client {
  constructor(library, node, { headers = {}, transport, ...options } = {}) {
    const client = this;
    Object.assign(this, { library, sent: [], got: [], closes: [], opens: 0, attempts: 0, wire: undefined });
    class Wire extends WebSocket {
      constructor(address, protocols) {
        super(address, protocols, { headers });
        client.attempts++;
        client.wire = this;
        this.on("message", (data, binary) => client.got.push(binary ? { hex: hex(data) } : JSON.parse(data)));
      }
      send(data, ...rest) {
        client.sent.push(typeof data === "string" ? JSON.parse(data) : { hex: hex(data) });
        return super.send(data, ...rest);
      }
    }
    this.socket = new library.Socket(node.url, { transport: transport ?? Wire, ...options });
    this.socket.onOpen(() => this.opens++);
    this.socket.onClose((event) => this.closes.push(event?.code));
    this.socket.onError(() => {});
    this.socket.connect();
  }

  // A channel; what comes on it is in `heard`, its presence in `who`.
  channel(topic, params = {}) {
    const channel = this.socket.channel(topic, params);
    Object.assign(channel, { heard: [], answers: [], errors: [], closed: 0 });
    channel.onMessage = (event, payload) => {
      if (!/^(phx_|chan_reply_)/.test(event)) channel.heard.push([event, payload]);
      return payload;
    };
    channel.onError((why) => channel.errors.push(why));
    channel.onClose(() => channel.closed++);
    const presence = new this.library.Presence(channel);
    channel.who = () => Object.fromEntries(presence.list((key, { metas }) => [key, metas]).sort());
    channel.says = (event, wanted) => channel.heard.filter(([name, payload]) => name === event && (wanted === undefined || isDeepStrictEqual(payload, wanted)));
    return channel;
  }

  // Joins; resolves with the first answer, and keeps those of later joins.
  join(channel) {
    return new Promise((done) => {
      const push = channel.join();
      for (const status of ["ok", "error", "timeout"])
        push.receive(status, (response) => { channel.answers.push({ status, response }); done({ status, response }); });
    });
  }

  async joined(topic, params) {
    const channel = this.channel(topic, params);
    const answer = await this.join(channel);
    demand(answer.status === "ok", () => `join of ${topic}: ${show(answer)}`);
    return Object.assign(channel, { response: answer.response });
  }

  close() {
    this.socket.disconnect();
    this.wire?.terminate();
  }
}

export function push(channel, event, payload = {}, timeout = PATIENCE) {
  return new Promise((done) => {
    const push = channel.push(event, payload, timeout);
    for (const status of ["ok", "error", "timeout"]) push.receive(status, (response) => done({ status, response }));
  });
}

// A bare WebSocket.
export class Raw {
  constructor(url, { protocols, headers } = {}) {
    this.frames = [];
    this.seen = 0;
    this.ws = new WebSocket(url, protocols ?? [], { headers, maxPayload: 1 << 24 });
    this.ws.on("message", (data, binary) => this.frames.push(binary ? { hex: hex(data) } : JSON.parse(data)));
    this.ws.on("error", () => {});
    this.end = new Promise((done) => {
      this.ws.on("close", (code, reason) => { this.code = code; done({ code, reason: String(reason) }); });
    });
    this.open = new Promise((done) => {
      this.ws.on("open", () => done({ protocol: this.ws.protocol }));
      this.ws.on("unexpected-response", (request, response) => {
        done({ refused: response.statusCode });
        request.destroy();
      });
      this.ws.on("close", () => done({ refused: "closed" }));
    });
  }

  say(frame) {
    this.ws.send(typeof frame === "string" || frame instanceof Uint8Array ? frame : JSON.stringify(frame));
    return this;
  }

  // The next frame that fits, after the last one found.
  async next(fits, what = String(fits)) {
    const frame = await until(() => `${what}; there came ${show(this.frames.slice(this.seen))} ${this.code ?? ""}`, () => {
      const at = this.frames.findIndex((one, k) => k >= this.seen && fits(one));
      if (at < 0) return undefined;
      this.seen = at + 1;
      return { frame: this.frames[at] };
    });
    return frame.frame;
  }

  reply(ref) {
    return this.next((frame) => frame[1] === ref && frame[3] === "phx_reply", `reply to ${ref}`);
  }

  async joined(ref, topic, params = {}) {
    const [, , , , { status, response }] = await this.say([ref, ref, topic, "phx_join", params]).reply(ref);
    demand(status === "ok", () => `join of ${topic}: ${status} ${show(response)}`);
    return response;
  }

  async closed(...codes) {
    const { code: got, reason } = await Promise.race([this.end, sleep(PATIENCE).then(() => ({ code: "still open" }))]);
    demand(codes.includes(got), () => `closed with ${got} ${reason ?? ""}, not ${codes}`);
  }

  close() {
    this.ws.terminate();
  }
}

export const query = (params) => new URLSearchParams({ vsn: "2.0.0", ...params });
export const address = (node, params) => `${node.url}/websocket?${query(params)}`;

// ---- the runner

export class Suite {
  constructor(cluster, only) {
    Object.assign(this, { cluster, only, passed: 0, failed: [], lanes: [] });
  }

  // One named check. `body` gets a place to open things in, closed at the end.
  async check(name, body) {
    if (this.only && !name.includes(this.only)) return;
    const open = [];
    const place = {
      keep: (one) => { open.push(one); return one; },
      client: (library, node, options) => place.keep(new Client(library, node, options)),
      raw: async (node, params = {}, options = {}) => {
        const raw = place.keep(new Raw(address(node, params), options));
        const { refused } = await raw.open;
        demand(refused === undefined, `refused with ${refused}`);
        return raw;
      },
      room: () => `room:${name.replace(/[^a-z0-9.]+/gi, "-")}`,
    };
    const began = performance.now();
    let clock;
    const late = new Promise((_, fail) => { clock = setTimeout(() => fail(new Error("took too long")), LIMIT); });
    try {
      await Promise.race([body(place), late]);
      this.passed++;
      console.log(`ok ${name} (${Math.round(performance.now() - began)} ms)`);
    } catch (error) {
      this.failed.push(name);
      console.log(`FAIL ${name} ${error.message.replaceAll("\n", " | ")}`);
    } finally {
      clearTimeout(clock);
      for (const one of open) one.close();
    }
  }
}
