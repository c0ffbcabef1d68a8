// A real Chromium, and pages in it that are watched: what they ask for, and what they complain of.
import { accessSync, constants, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { chromium } from "playwright-core";
import { demand, until } from "../phoenix/nodes.mjs";

const QUIET = [
  "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
  "--disable-sync", ...(process.getuid() === 0 ? ["--no-sandbox"] : []),
];

// Where Chromium is, or nothing.
export function installed() {
  const names = ["chromium", "chromium-browser", "google-chrome"];
  const places = process.env.PATH.split(delimiter).flatMap((dir) => names.map((name) => join(dir, name)));
  return places.find((path) => {
    try { accessSync(path, constants.X_OK); return true; } catch { return false; }
  });
}

export class Browser {
  // A command that runs it somewhere else becomes a script, for a browser is started by a path.
  static async open(dir = undefined, through = [], more = []) {
    let executablePath = installed();
    if (through.length) {
      const script = join(dir, "browser.sh");
      const words = [...through, executablePath].map((word) => `'${word.replaceAll("'", "'\\''")}'`);
      writeFileSync(script, `#!/bin/sh\nexec ${words.join(" ")} "$@"\n`, { mode: 0o755 });
      executablePath = script;
    }
    return new Browser(await chromium.launch({ executablePath, args: [...QUIET, ...more] }));
  }

  constructor(browser) {
    this.browser = browser;
  }

  // A page at this address, in a context of its own.
  async page(url, options = {}) {
    const context = await this.browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
    const page = new Page(await context.newPage(), new URL(url));
    await page.watch();
    await page.at.goto(url);
    return page;
  }

  close() {
    return this.browser.close();
  }
}

export class Page {
  constructor(at, url) {
    Object.assign(this, { at, url, complaints: [], strangers: [], sent: [] });
  }

  async watch() {
    // What the browser itself says of a socket that cannot be opened, or of a token that is refused: no page can prevent that.
    const own = /^WebSocket connection to '.*' failed: |^Failed to load resource: .* status of 40[13] /;
    this.at.on("console", (said) => {
      if (["error", "warning"].includes(said.type()) && !own.test(said.text())) this.complaints.push(`${said.text()} (${said.location().url})`);
    });
    this.at.on("pageerror", (error) => this.complaints.push(error.stack));
    const foreign = (address) => {
      const { protocol, host, href } = new URL(address);
      const strange = !["data:", "blob:"].includes(protocol) && host !== this.url.host;
      if (strange) this.strangers.push(href);
      return strange;
    };
    this.at.on("websocket", (socket) => foreign(socket.url()));
    await this.at.route("**/*", (route) => (foreign(route.request().url()) ? route.abort() : route.continue()));
  }

  async close() {
    await this.at.context().close();
  }

  // Nothing was complained of, and nothing asked of another host.
  clean() {
    demand(!this.strangers.length, () => `the page asks elsewhere: ${this.strangers.join(" ")}`);
    demand(!this.complaints.length, () => `the page complains: ${this.complaints.join(" | ")}`);
  }

  text(selector) {
    return this.at.evaluate((selector) => document.querySelector(selector)?.textContent ?? null, selector);
  }

  shows(what, selector, wanted, patience) {
    let last;
    return until(() => `${what}: ${last}`, async () => {
      last = await this.text(selector);
      return last !== null && (wanted instanceof RegExp ? wanted.test(last) : last.includes(wanted));
    }, patience);
  }

  // What the picture shows: each node with its sign and words, and each pair that is not well.
  picture() {
    return this.at.evaluate(() => {
      const kinds = ["ok", "doubt", "wait", "bad", "cut", "left", "none"];
      const kind = (one) => kinds.find((kind) => one.classList.contains(kind));
      const nodes = [...document.querySelectorAll("#graph .node")].map((one) => [one.dataset.node, { kind: kind(one), label: one.getAttribute("aria-label") }]);
      const pairs = [...document.querySelectorAll("#graph .broken g")].map((one) => [one.dataset.pair, { kind: kind(one), lost: one.dataset.lost, crosses: one.querySelector(".cross").getAttribute("d") !== "" }]);
      const links = [...document.querySelectorAll("#graph .links path:first-child")].map((one) => (one.getAttribute("d") ?? "").split("M").length - 1);
      return { nodes: Object.fromEntries(nodes), pairs: Object.fromEntries(pairs), links: links.reduce((sum, one) => sum + one, 0) };
    });
  }

  // The rows of a table, each by its titles.
  table(id) {
    return this.at.evaluate((id) => {
      const table = document.getElementById(id);
      const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
      const row = (tr) => Object.fromEntries([...tr.cells].map((cell, k) => [titles[k], cell.textContent.trim()]));
      return [...table.tBodies[0].rows].map(row);
    }, id);
  }

  async until(what, look, patience) {
    let last;
    return until(() => `${what}: ${JSON.stringify(last)}`, async () => look(last = await this.picture()), patience);
  }

  // Milliseconds of script that run from now until `done` is true on the page, as the browser counts them.
  async script(does, done) {
    this.meter ??= await this.at.context().newCDPSession(this.at).then(async (meter) => { await meter.send("Performance.enable"); return meter; });
    const spent = async () => (await this.meter.send("Performance.getMetrics")).metrics.find((one) => one.name === "ScriptDuration").value * 1e3;
    const before = await spent();
    await does();
    await until("the update on the page", () => this.at.evaluate(done));
    return (await spent()) - before;
  }
}
