// Nodes on hosts of their own: each in a network namespace of the laboratory beside the clone.
import { execFile, execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const PLACE = process.env.XPANDO_NETLAB ?? fileURLToPath(new URL("../../../shared/netlab", import.meta.url));

export class Lab {
  // So many hosts; a text where there can be none.
  static up(size) {
    if (!existsSync(PLACE)) return `no network laboratory at ${PLACE}`;
    const lab = new Lab(`dashboard_${process.pid}`);
    try {
      lab.does("up", String(size), "--static-arp", "--owner", String(process.pid));
    } catch (error) {
      return `no network laboratory: ${String(error.stderr ?? error.message).trim().split("\n").pop()}`;
    }
    return lab;
  }

  constructor(name) {
    this.name = name;
  }

  does(...args) {
    return execFileSync(PLACE, ["--lab", this.name, ...args], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  }

  // The words before a command that shall run on this host.
  on(host) {
    return [PLACE, "--lab", this.name, "exec", String(host)];
  }

  // A node on each of these hosts, the first as the seed of the others, linked.
  async nodes(cluster, hosts) {
    await cluster.run("cert", "init", "--certs", cluster.certs);
    const nodes = [];
    for (const host of hosts) {
      const name = `n${host}@10.77.0.${host}`;
      await cluster.run("cert", "issue", name, "--certs", cluster.certs);
      const node = cluster.launch(name, this.on(host));
      nodes.push(await node.start(`10.77.0.${host}:4697`, "127.0.0.1:4000"));
    }
    await cluster.linked(nodes);
    return nodes;
  }

  close() {
    return new Promise((done) => execFile(PLACE, ["--lab", this.name, "down"], () => done()));
  }
}
