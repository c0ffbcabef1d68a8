// A small nginx of the suite's own: one process, in a directory of its own, on ports of loopback.
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { until } from "../phoenix/nodes.mjs";

// A port of loopback that is free at this moment.
export const free = () => new Promise((done) => {
  const server = createServer().listen(0, "127.0.0.1", () => { const { port } = server.address(); server.close(() => done(port)); });
});
const answers = (port) => new Promise((done) => {
  const socket = connect(port, "127.0.0.1", () => { socket.destroy(); done(true); }).on("error", () => done(false));
});

export class Nginx {
  // `servers` is a list of [port, directives]; `more` is what stands beside them.
  static async start(dir, servers, more = "") {
    const nginx = new Nginx();
    nginx.dir = join(dir, "nginx");
    mkdirSync(nginx.dir);
    const temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((it) => `${it}_temp_path ${join(nginx.dir, it)};`);
    const blocks = servers.map(([port, inside, tls]) => `server { listen 127.0.0.1:${port}${tls ? " ssl" : ""}; ${inside} }`);
    writeFileSync(join(nginx.dir, "nginx.conf"), `
      daemon off; master_process off; pid ${join(nginx.dir, "pid")}; error_log ${join(nginx.dir, "error.log")};
      events { worker_connections 256; }
      http { access_log ${join(nginx.dir, "access.log")}; ${temp.join(" ")} ${more} ${blocks.join("\n")} }`);
    nginx.child = spawn("nginx", ["-p", nginx.dir, "-c", join(nginx.dir, "nginx.conf"), "-e", join(nginx.dir, "error.log")], { stdio: "ignore" });
    for (const [port] of servers) await until(() => `nginx listens; it says ${nginx.said("error.log")}`, () => answers(port));
    return nginx;
  }

  said(log) {
    try { return readFileSync(join(this.dir, log), "utf8"); } catch { return ""; }
  }

  close() {
    this.child.kill("SIGTERM");
  }
}

// A certificate for localhost that vouches for itself, and its key: nothing where there is no openssl.
export function certificate(dir) {
  const [cert, key] = ["cert.pem", "key.pem"].map((file) => join(dir, file));
  const words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
  try {
    execFileSync("openssl", [...words, "-out", cert, "-keyout", key], { stdio: "ignore" });
    return { cert, key };
  } catch { return undefined; }
}
