// The page of a real node on made-up feeds: fifty nodes, views that differ, hostile texts, colours and roles.
import { demand, same, until } from "../../phoenix/nodes.mjs";
import { Feed, fetched, fifty, mesh } from "../feed.mjs";

const BUDGET = 50; // milliseconds of script for one update
const UPDATES = 12;
const THREE = ["a@127.0.0.1", "b@127.0.0.1", "c@127.0.0.1"];
const at = () => new Date().toISOString();
// Times a whole number of seconds apart: rates follow from these alone.
const second = (k) => new Date(Date.UTC(2026, 0, 1) + 1000 * k).toISOString();

export async function run(suite, { browser, a }) {
  const original = await fetched(a.http);
  const fed = async (keep, views, options, events) => {
    const feed = keep(await new Feed(original, views, events).open());
    const page = keep(await browser.page(`${feed.url}#token=x`, options));
    await page.shows("life", "#wire", "live");
    return { feed, page };
  };

  await suite.check("fifty nodes take less than 50 ms of script an update", async ({ keep }) => {
    const { view, changes, peers } = fifty();
    const { feed, page } = await fed(keep, () => view);
    await page.until("fifty nodes", ({ nodes, links }) => Object.keys(nodes).length === 50 && links === 2450);
    const costs = { figures: [], doubt: [], view: [] };
    const spend = async (kind, does, done) => costs[kind].push(await page.script(does, done));
    for (let k = 1; k <= UPDATES; k++) {
      const total = { messages_in: 1e3 * k * k, messages_out: 1e3 * k * k, bytes_in: 1e6 * k * k, bytes_out: 1e6 * k * k };
      const drawn = (await page.text("#plots")) ?? "";
      await spend("figures", () => feed.tell("figures", { at: second(k), ...total }), `document.querySelector("#plots").textContent !== ${JSON.stringify(drawn)}${k === 1 ? " || true" : ""}`);
      const peer = peers[k], event = { at: at(), seq: 2 * k, event: "peer_suspected", peer, phi: 9, missed: 5 };
      // A view that is asked for meanwhile says so too.
      const row = view.status.peers.find((one) => one.name === peer);
      row.suspect = true;
      await spend("doubt", () => feed.tell("change", event), `document.querySelector('#graph [data-node="${peer}"]').classList.contains("doubt")`);
      // The next view says that all is well, with other times of each of the 2,450 directions.
      for (const link of view.topology.links) link.rtt_ms = Math.random() * 9;
      row.suspect = false;
      await spend("view", () => feed.tell("change", { at: at(), seq: 2 * k + 1, event: "link_lost", peer, cause: "none" }), `!document.querySelector("#graph .doubt")`);
    }
    const middle = (all) => [...all].sort((one, other) => one - other)[Math.floor(all.length / 2)];
    for (const [kind, all] of Object.entries(costs)) console.log(`   ${kind}: ${middle(all).toFixed(1)} ms of script, ${Math.max(...all).toFixed(1)} at most, of ${all.length} updates`);
    const burst = await page.script(() => { for (const it of changes) feed.tell("change", it); }, `document.querySelector('#graph [data-node="c@127.0.0.1"]').classList.contains("bad")`);
    console.log(`   a node dies, ${changes.length} changes: ${burst.toFixed(1)} ms of script`);
    for (const [kind, all] of Object.entries(costs)) demand(middle(all) < BUDGET, `${kind}: ${middle(all)} ms`);
    same((await page.table("rows")).length, 50, "rows");
    page.clean();
  });

  await suite.check("two views that differ are told apart, edge by edge", async ({ keep }) => {
    const other = mesh(THREE, THREE[1]);
    other.topology.links.find((link) => link.from === THREE[0] && link.to === THREE[2]).state = "offline";
    const { page } = await fed(keep, (name) => (name === THREE[1] ? other : name === THREE[2] ? "it does not answer" : mesh(THREE)));
    await page.at.getByLabel("compared with").selectOption(THREE[1]);
    await page.shows("the difference", "#between", "1 difference between a and b");
    await page.shows("the edge", "#between", "a → c: online for a, offline for b");
    demand(await page.at.evaluate(() => document.getElementById("differ").getAttribute("d").startsWith("M")), "it is drawn");
    await page.at.getByLabel("seen by").selectOption(THREE[2]);
    await page.shows("a node that does not answer", "#notice", "c does not answer: it does not answer");
    await page.at.getByRole("button", { name: "Back to a" }).click();
    await until("its own view again", () => page.at.evaluate((name) => document.getElementById("seen").value === name, THREE[0]));
    page.clean();
  });

  await suite.check("a cut is red, on the way that the evidence names", async ({ keep }) => {
    const [one, two] = [mesh(THREE, THREE[2]), mesh(THREE, THREE[0])];
    for (const view of [one, two]) for (const link of view.topology.links) if (link.from !== THREE[2] && link.to !== THREE[2]) Object.assign(link, { state: "offline", reason: "unreachable" });
    const evidence = { phi: 11, missed: 7, silence_ms: 8200, heard_by: [THREE[2]], confirmed_by: [], unacknowledged_bytes: 100, segments: 0, beacon_ms: null, broken: "way_there" };
    Object.assign(two.status.peers[0], { status: "offline", reason: "unreachable", evidence, reached_by: [THREE[2]] });
    const views = { [THREE[0]]: two, [THREE[1]]: "it does not answer" };
    const { page } = await fed(keep, (name) => views[name] ?? one);
    const pair = `${THREE[0]} ${THREE[1]}`;
    await page.until("the pair and its broken way", ({ pairs, links, nodes }) => pairs[pair]?.kind === "cut" && pairs[pair].lost === pair && pairs[pair].crosses && Object.keys(pairs).length === 1 && links === 4 && Object.values(nodes).every(({ kind }) => kind === "ok"));
    await page.shows("the table", "#pairs", "the way a → b is broken");
    // Seen by one end of it: the other one is up, for others.
    await page.at.getByLabel("seen by").selectOption(THREE[0]);
    await page.until("b cut off from a", ({ nodes, pairs }) => nodes[THREE[1]].kind === "cut" && pairs[pair].lost === pair);
    for (const view of [one, two]) for (const link of view.topology.links) Object.assign(link, { state: "online", reason: null });
    Object.assign(two.status.peers[0], { status: "online", reason: null, evidence: null });
    await page.until("all well", ({ nodes, pairs, links }) => links === 6 && !Object.keys(pairs).length && nodes[THREE[1]].kind === "ok");
    page.clean();
  });

  await suite.check("what a node says is text, and never markup", async ({ keep }) => {
    const evil = `<img src=x onerror="window.evil=1"><b>`;
    const view = mesh([THREE[0], `${evil}@h`, THREE[2]], THREE[0]);
    Object.assign(view.status.peers[0], { address: evil, specializations: [evil], cause: evil, status: "offline", reason: evil });
    const { feed, page } = await fed(keep, () => view);
    for (const it of [{ event: "link_lost", peer: evil, cause: evil, level: evil, text: evil }, { event: evil, peer: evil }, { event: "constructor" }, { event: "peer_silent", peer: THREE[2], heard_by: [evil, {}, null] }, { event: "paused" }, {}, null, [], 7, { event: "link_changed", from: evil, to: 9 }])
      feed.tell("change", it === null || typeof it !== "object" ? it : { at: at(), ...it });
    feed.tell("figures", { at: "never", messages_in: "many" });
    feed.tell("snapshot", { status: { peers: [null] }, topology: {} });
    await page.shows("the texts as they are", "#events", evil);
    // A snapshot makes the page ask for all anew: a change that is told before the answer comes would not last.
    const crashed = { event: "peer_offline", peer: THREE[2], reason: "crashed" };
    await page.until("the last change counts", ({ nodes }) => nodes[THREE[2]].kind === "bad" || void feed.tell("change", { at: at(), ...crashed }));
    same(await page.at.evaluate(() => [document.images.length, window.evil ?? null]), [0, null], "markup");
    page.clean();
  });

  await suite.check("the timeline is bounded, and many words of one thing are one line", async ({ keep }) => {
    const before = [{ seq: 1, at: at(), event: "peer_online", peer: THREE[1], peer_incarnation: 1, address: "x", text: "b@127.0.0.1 online at x" }];
    const { feed, page } = await fed(keep, () => mesh(THREE), {}, before);
    await page.shows("what was before", "#events", "b@127.0.0.1 online at x");
    for (const from of ["a@h", "b@h", "d@h"]) feed.tell("change", { at: at(), seq: 2, event: "link_changed", from, to: "e@h", state: "offline", suspect: false, reason: "crashed", text: `${from} sees e@h offline (crashed)` });
    await page.shows("one line", "#events", "a@h sees e@h offline (crashed), and so do b@h, d@h");
    same(await page.at.locator("#events li").count(), 2, "lines");
    feed.tell("change", { ...before[0] });
    for (let k = 0; k < 1000; k++) feed.tell("change", { at: at(), seq: 10 + k, event: "peer_cleared", peer: `n${k}@h`, text: `n${k}@h heard again` });
    await page.shows("the last", "#events", "n999@h heard again");
    same(await page.at.locator("#events li").count(), 200, "lines");
    page.clean();
  });

  for (const colorScheme of ["light", "dark"]) {
    await suite.check(`every text of the ${colorScheme} page stands out from its ground`, async ({ keep }) => {
      const view = mesh(["a@h", "b@h", "c@h", "d@h", "e@h", "f@h", "g@h"]);
      [["offline", "crashed"], ["offline", "left"], ["connecting", null], ["offline", "unreachable"]].forEach(([status, reason], k) => Object.assign(view.status.peers[k], { status, reason }));
      view.status.peers[4].suspect = true;
      const { page } = await fed(keep, () => view, { colorScheme });
      await page.until("every kind of node", ({ nodes }) => new Set(Object.values(nodes).map(({ kind }) => kind)).size === 6);
      await page.at.getByLabel("compared with").selectOption("b@h");
      const weak = await page.at.evaluate(faint);
      same(weak.found, [], "texts below 4.5 to 1");
      demand(weak.seen > 60, `only ${weak.seen} texts were looked at`);
    });
  }

  await suite.check("every part has a role and a name", async ({ keep }) => {
    const { page } = await fed(keep, () => mesh(THREE));
    const { at } = page;
    await page.until("three nodes", ({ links }) => links === 6);
    for (const [role, name] of [["group", "Topology"], ["table", "Nodes"], ["table", "Links"], ["combobox", "seen by"], ["combobox", "compared with"], ["list", "Events"], ["list", "Legend"], ["region", "Topology"], ["main", undefined], ["banner", undefined]])
      demand(await at.getByRole(role, { name, exact: true }).count(), `${role} ${name}`);
    for (const name of THREE) demand((await at.getByRole("button", { name: new RegExp(`^${name}, online, links: 2 out, 2 in$`) }).count()) === 1, name);
    const faults = await at.evaluate(() => {
      const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
      const pictures = [...document.querySelectorAll("svg")].filter((one) => one.getAttribute("aria-hidden") !== "true" && !one.getAttribute("aria-label"));
      const refs = [...document.querySelectorAll("[aria-labelledby], [aria-describedby]")].flatMap((one) => [one.getAttribute("aria-labelledby"), one.getAttribute("aria-describedby")]).filter((id) => id && !document.getElementById(id));
      const heads = [...document.querySelectorAll("th")].filter((one) => !one.scope);
      return { twice: ids.filter((id, k) => ids.indexOf(id) !== k), pictures: pictures.map((one) => one.id), refs, heads: heads.length, lang: document.documentElement.lang, live: document.querySelectorAll("[aria-live]").length };
    });
    same(faults, { twice: [], pictures: [], refs: [], heads: 0, lang: "en", live: 1 }, "faults");
    page.clean();
  });

  await suite.check("a phone shows it all without a page that is too wide", async ({ keep }) => {
    const few = mesh(["alpha@h", "beta@h", "gamma@h", "delta@h", "epsilon@h"]);
    ["crashed", "left", "unreachable"].forEach((reason, k) => Object.assign(few.status.peers[k], { status: "offline", reason }));
    const phone = { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true };
    let view = few;
    const { feed, page } = await fed(keep, () => view, phone);
    const fits = async (size) => {
      await page.until(`${size} nodes`, ({ nodes }) => Object.keys(nodes).length === size);
      same(await page.at.evaluate(() => document.documentElement.scrollWidth), 360, "width");
      const outside = await page.at.evaluate(() => {
        const place = document.getElementById("place").getBoundingClientRect();
        const inside = ({ left, right, top, bottom, width }) => !width || (left >= place.left && right <= place.right && top >= place.top && bottom <= place.bottom);
        return [...document.querySelectorAll("#graph .node text")].filter((one) => !inside(one.getBoundingClientRect())).map((one) => one.textContent);
      });
      same(outside, [], "words that leave the picture");
    };
    await fits(5);
    ({ view } = fifty()); // another node answers at this address now
    for (const socket of feed.sockets) socket.destroy();
    await fits(50);
    const ring = await page.at.evaluate(() => document.querySelectorAll("#graph .ring")[7].getBoundingClientRect().toJSON());
    demand(ring.width >= 20, `a target of ${ring.width} pixels`);
    await page.at.touchscreen.tap(ring.x + ring.width / 2, ring.y + ring.height / 2);
    await page.shows("its links", "#which", /the 49 pairs of /);
    page.clean();
  });

  await suite.check("updates do not move what is there", async ({ keep }) => {
    const view = mesh(THREE);
    const { feed, page } = await fed(keep, () => view);
    await page.until("three nodes", ({ links }) => links === 6);
    const places = () => page.at.evaluate(() => ["#graph", "#plots", "#events", "#rows", "#pairs"].map((id) => { const { top, left, width } = document.querySelector(id).getBoundingClientRect(); return [id, top, left, width]; }));
    const before = await places();
    for (let k = 0; k < 5; k++) feed.tell("figures", { at: second(k), messages_in: k * 12345, messages_out: k, bytes_in: k * 987654321, bytes_out: k });
    // The page asks for the view again, which has to say so, too.
    Object.assign(view.status.peers.find(({ name }) => name === THREE[1]), { status: "offline", reason: "crashed" });
    feed.tell("change", { at: at(), event: "peer_offline", peer: THREE[1], reason: "crashed" });
    await page.until("b offline", ({ nodes }) => nodes[THREE[1]].kind === "bad");
    await page.shows("rates", "#plots", "988MB/s");
    same(await places(), before, "places");
    for (const socket of feed.sockets) socket.destroy();
    await until("the word that it is lost", () => page.at.evaluate(() => document.body.classList.contains("stale")));
    same(await places(), before, "places");
  });
}

// Runs on the page: texts whose contrast with what is behind them is below what WCAG 2.2 asks (1.4.3).
function faint() {
  const numbers = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((it) => it / 255).map((it) => (it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor, [, , , alpha = 1] = numbers(colour);
      if (alpha > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  let seen = 0;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement, style = getComputedStyle(one);
    if (!texts.currentNode.data.trim() || ["SCRIPT", "STYLE", "OPTION", "NOSCRIPT"].includes(one.tagName) || !one.checkVisibility()) continue;
    const [front, back] = [light(one instanceof SVGElement ? style.fill : style.color), light(ground(one))];
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05), size = parseFloat(style.fontSize);
    seen++;
    if (ratio < (size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5)) found.push(`${texts.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return { found, seen };
}
