// What the checks stand on: nodes and a runner (nodes.mjs), sockets of the official clients, and bare ones.
import { isDeepStrictEqual } from "node:util";
import WebSocket from "ws";
import { PATIENCE, Suite as Checks, demand, hex, show, sleep, until } from "./nodes.mjs";

export * from "./nodes.mjs";

// A browser sends a request again on another connection if the one that it had used before was closed without a word of
// an answer (RFC 9112, 9.5); Node's own fetch does not.
const { fetch: once } = globalThis;
globalThis.fetch = (...request) =>
  once(...request).catch((error) => {
    if (!["ECONNRESET", "EPIPE", "UND_ERR_SOCKET"].includes(error.cause?.code)) throw error;
    return once(...request);
  });

// Tries to see things in the order that they must have, where a node holds an answer back for as long as a busy machine may
// stand still. `attempt` is given the number of the try, and says what was wrong, if anything was.
export async function inOrder(attempt) {
  let wrong;
  for (let n = 0; n < 3; n++) {
    wrong = await attempt(n);
    if (!wrong) return;
  }
  throw new Error(wrong);
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
    const presence = (channel.presence = new this.library.Presence(channel));
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
  constructor(url, { protocols, ...options } = {}) {
    this.frames = [];
    this.seen = 0;
    this.ws = new WebSocket(url, protocols ?? [], { ...options, maxPayload: 1 << 24 });
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

export class Suite extends Checks {
  place(name, keep) {
    return {
      keep,
      client: (library, node, options) => keep(new Client(library, node, options)),
      raw: async (node, params = {}, options = {}) => {
        const raw = keep(new Raw(address(node, params), options));
        const { refused } = await raw.open;
        demand(refused === undefined, `refused with ${refused}`);
        return raw;
      },
      room: () => `room:${name.replace(/[^a-z0-9.]+/gi, "-")}`,
    };
  }
}
