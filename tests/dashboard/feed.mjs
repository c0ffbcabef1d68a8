// A node that is only a feed: it serves the page of a real node as it got it, and says on the channel what a check wants.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer, get } from "node:http";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455, 4.2.2
const TOPIC = "network:updates";

// The page of a node, with its headers.
export function fetched(address) {
  return new Promise((done, fail) =>
    get(`http://${address}/`, (answer) => {
      const chunks = [];
      answer.on("data", (chunk) => chunks.push(chunk)).on("end", () => done({ status: answer.statusCode, headers: answer.headers, body: Buffer.concat(chunks) }));
    }).on("error", fail));
}

// The snapshot of fifty real nodes, and the changes when one of them was killed. Each call gives new ones.
export function fifty() {
  const { status, topology: { rows, since, ...topology }, changes } = JSON.parse(readFileSync(new URL("fifty.json", import.meta.url)));
  const names = topology.nodes.map((node) => node.name), peers = names.filter((name) => name !== status.name);
  const links = rows.flatMap((row, i) => row.map(([to, rtt_ms, phi]) => ({ from: names[i], to: names[to], state: "online", rtt_ms, phi, since, reason: null })));
  return { view: { status, topology: { ...topology, links } }, changes, peers };
}

// A view of these names, all linked, by the first of them.
export function mesh(names, by = names[0]) {
  const now = new Date().toISOString();
  const peer = (name, k) => ({
    name, id: null, address: `127.0.0.1:${4700 + k}`, status: "online", suspect: false, reason: null, cause: null, reached_by: [],
    incarnation: 1, since: now, rtt_ms: 0.5, rtt_p50_ms: 0.5, rtt_p99_ms: 0.9, phi: 0.1, last_heard: now, evidence: null,
  });
  const link = (from, to) => ({ from, to, state: "online", rtt_ms: 0.5, phi: 0.1, since: now, reason: null });
  const majority = { held: true, here: names.length, known: names.length, missing: [] };
  return {
    status: { name: by, id: "0", cluster: "0", incarnation: 1, listen: "127.0.0.1:4699", http: null, uptime_s: 5, local_health: 0, majority, peers: names.filter((name) => name !== by).map(peer) },
    topology: { as_seen_by: by, version: 1, agreement: "0", nodes: names.map((name) => ({ name, status: "online", incarnation: 1 })), links: names.flatMap((from) => names.filter((to) => to !== from).map((to) => link(from, to))) },
  };
}

export class Feed {
  // `views` answers for a node, or for itself without a name; a text is the reason of an error.
  constructor(page, views, events = []) {
    Object.assign(this, { page, views, events, sockets: new Set(), asked: 0 });
    this.server = createServer((request, answer) => {
      const body = request.url === "/" ? page.body : JSON.stringify({ events: this.events, next: this.events.length + 1 });
      const { "content-security-policy": policy } = page.headers;
      answer.writeHead(200, request.url === "/" ? { "content-type": "text/html; charset=utf-8", "content-security-policy": policy } : { "content-type": "application/json" });
      answer.end(body);
    });
    this.server.on("upgrade", (request, socket) => {
      const accept = createHash("sha1").update(request.headers["sec-websocket-key"] + GUID).digest("base64");
      socket.write(`HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: ${accept}\r\n\r\n`);
      this.sockets.add(socket);
      let rest = Buffer.alloc(0);
      socket.on("data", (data) => { rest = this.hear(socket, Buffer.concat([rest, data])); });
      socket.on("close", () => this.sockets.delete(socket)).on("error", () => {});
    });
  }

  async open() {
    await new Promise((done) => this.server.listen(0, "127.0.0.1", done));
    this.url = `http://127.0.0.1:${this.server.address().port}/`;
    return this;
  }

  close() {
    for (const socket of this.sockets) socket.destroy();
    this.server.closeAllConnections();
    return new Promise((done) => this.server.close(done));
  }

  // Takes whole frames (RFC 6455, 5.2: masked, and short ones here); what is left of the bytes.
  hear(socket, bytes) {
    for (;;) {
      const short = bytes[1] & 127, at = short === 126 ? 8 : 6, length = short === 126 && bytes.length > 4 ? bytes.readUInt16BE(2) : short;
      if (bytes.length < at || bytes.length < at + length) return bytes;
      const mask = bytes.subarray(at - 4, at), payload = bytes.subarray(at, at + length).map((byte, k) => byte ^ mask[k % 4]);
      if ((bytes[0] & 15) === 1) this.answer(socket, JSON.parse(payload));
      if ((bytes[0] & 15) === 8) socket.end();
      bytes = bytes.subarray(at + length);
    }
  }

  answer(socket, [join, ref, topic, event, payload]) {
    const view = event === "view" || event === "phx_join" ? this.views(payload.node) : {};
    const reply = event === "phx_join" ? { status: "ok", response: {} } : typeof view === "string" ? { status: "error", response: { reason: view } } : { status: "ok", response: view };
    this.send(socket, [join, ref, topic, "phx_reply", reply]);
    if (event === "phx_join") this.send(socket, [join, null, topic, "snapshot", view]);
    if (event === "view") this.asked++;
  }

  send(socket, frame) {
    const payload = Buffer.from(JSON.stringify(frame)), head = Buffer.alloc(payload.length < 126 ? 2 : payload.length < 65536 ? 4 : 10);
    head[0] = 0x81;
    head[1] = [0, 0, payload.length, 0, 126, 0, 0, 0, 0, 0, 127][head.length];
    if (head.length === 4) head.writeUInt16BE(payload.length, 2);
    if (head.length === 10) head.writeBigUInt64BE(BigInt(payload.length), 2);
    socket.write(Buffer.concat([head, payload]));
  }

  tell(event, payload) {
    for (const socket of this.sockets) this.send(socket, [null, null, TOPIC, event, payload]);
  }
}
