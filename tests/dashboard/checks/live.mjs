// Three real nodes, one of which a page talks to.
import { isDeepStrictEqual } from "node:util";

import { demand, same, until } from "../../phoenix/nodes.mjs";

const SOON = 2_000; // milliseconds from the death of a node to the sign of it
const all = (kind, picture, names) => names.every((name) => picture.nodes[name]?.kind === kind);

// The table of nodes says what the picture says.
// The three are read one after another, so again when the page changed meanwhile.
async function agree(page) {
  let nodes, rows, signs;
  await until("a page that stands still", async () => {
    ({ nodes } = await page.picture());
    rows = await page.table("rows");
    signs = await page.at.evaluate(() => [...document.querySelectorAll("#rows tbody .shape")].map((one) => one.classList[1]));
    return isDeepStrictEqual(nodes, (await page.picture()).nodes);
  });
  same(rows.map((row) => row.Node), Object.keys(nodes), "nodes of the table and of the picture");
  rows.forEach((row, k) => {
    const { kind, label } = nodes[row.Node];
    same(signs[k], kind, `sign of ${row.Node}`);
    const [, state, out, into] = /^.*?, (.*), links: (\d+) out, (\d+) in$/.exec(label);
    demand(row.Status.includes(state), `${row.Node} is "${row.Status}" in the table, "${label}" in the picture`);
    same(row["Links out / in"], `${out} / ${into}`, `links of ${row.Node}`);
  });
}

export async function run(suite, { browser, cluster, a, b, c, token }) {
  const names = [a, b, c].map((node) => node.full);
  const open = async (keep, node = a, options) => {
    const page = keep(await browser.page(`http://${node.http}/#token=${token}`, options));
    await page.until("three nodes", (picture) => all("ok", picture, names) && picture.links === 6);
    await page.shows("what happened before the page came", "#events", " online at ");
    return page;
  };

  await suite.check("three nodes and six directions appear, and the tables say the same", async ({ keep }) => {
    const page = await open(keep);
    await page.shows("the verdict", "#verdict", "All 3 nodes see each other");
    await agree(page);
    const pairs = await page.table("pairs");
    same(pairs.map((row) => row.State), ["linked", "linked", "linked"], "pairs");
    same(await page.at.locator("#events .doubt").count(), 0, "signs of doubt after a quiet start");
    await page.shows("round trips in the picture", "#rates", /\d ms φ \d/);
    demand(!page.at.url().includes("token"), `the token stays in the address: ${page.at.url()}`);
    await until("rates", async () => (await page.text("#plots")).match(/(in|out) [\d.]+[KM]?B?\/s/g)?.length === 4);
    page.clean();
  });

  await suite.check("a killed node is offline on the page within 2 s, and comes back", async ({ keep }) => {
    const page = await open(keep);
    await page.at.evaluate((name) => {
      const node = document.querySelector(`#graph [data-node="${name}"]`);
      new MutationObserver(() => { if (node.classList.contains("bad")) window.offlineAt ??= Date.now(); }).observe(node, { attributes: true });
    }, c.full);
    keep({ close: () => c.runs || c.start() });
    await page.at.locator(`#graph [data-node="${c.full}"] circle:not(.ring)`).hover();
    await page.shows("what is under the pointer", "#hint", "online");
    const killed = Date.now();
    await c.kill();
    await page.until("c offline", ({ nodes }) => nodes[c.full].kind === "bad" && all("ok", { nodes }, [a.full, b.full]));
    const took = (await page.at.evaluate(() => window.offlineAt)) - killed;
    console.log(`   offline on the page ${took} ms after the kill`);
    demand(took <= SOON, `${took} ms from the kill to the sign`);
    await page.shows("what is under the pointer", "#hint", "offline: crashed");
    await agree(page);
    await page.shows("the verdict", "#verdict", "c is offline");
    await page.shows("the event", "#events", `${c.full} offline (crashed)`);
    await page.shows("the word for who does not see", "#said", "c is offline");
    await page.until("no pair is cut: a dead node is no cut", ({ pairs }) => Object.values(pairs).every(({ kind }) => kind === "none"));
    await c.start();
    await page.until("c online", (picture) => all("ok", picture, names) && picture.links === 6, 30_000);
    await page.shows("the verdict", "#verdict", "All 3 nodes see each other");
    page.clean();
  });

  await suite.check("when its own node dies, a page says so, tries again and recovers", async ({ keep }) => {
    const page = await open(keep);
    keep({ close: () => a.runs || a.start() });
    await a.kill();
    await page.shows("a word", "#notice", `Lost ${a.full}: trying again`);
    demand(await page.at.getByRole("button", { name: "Try now" }).isVisible(), "a way to hurry");
    await page.shows("the word for who does not see", "#said", `connection to ${a.full} is lost`);
    await a.start();
    await page.shows("life", "#wire", "live", 30_000);
    await page.until("three nodes again", (picture) => all("ok", picture, names) && picture.links === 6, 30_000);
    demand(!(await page.at.locator("#notice").isVisible()), "no word any more");
    await page.shows("the timeline", "#events", "the page is connected again");
    page.clean();
  });

  await suite.check("a node that asks for a token gets one", async ({ keep }) => {
    const page = keep(await browser.page(`http://${b.http}/`)), { at } = page;
    const dialog = at.getByRole("dialog", { name: "This node asks for a token" }), field = at.getByRole("textbox", { name: "Token" });
    await dialog.waitFor();
    await at.getByRole("button", { name: "Not now" }).click();
    await at.getByRole("button", { name: "Enter a token" }).click();
    await field.fill("not.a.token");
    await at.keyboard.press("Enter");
    await page.shows("a refusal", "#wrong", "does not accept");
    const narrow = await cluster.token("user", "--ttl", "1h"); // a user may not see the network
    await field.fill(narrow);
    await at.getByRole("button", { name: "Connect" }).click();
    await page.shows("what is missing", "#wrong", "the token's role is user: reading needs node_operator or admin");
    await field.fill(token);
    await at.keyboard.press("Enter");
    await page.until("three nodes", (picture) => all("ok", picture, names));
    demand(!(await dialog.isVisible()), "the prompt is gone");
    await at.reload();
    await page.until("three nodes without a question", (picture) => all("ok", picture, names));
    demand(!(await dialog.isVisible()), "the tab has kept the token");
    page.clean();
  });

  await suite.check("any node's view is shown, and what differs from another", async ({ keep }) => {
    const page = await open(keep), { at } = page;
    await at.getByLabel("seen by").selectOption(b.full);
    await page.shows("whose view it is", "#count", `as ${b.full} sees it`);
    await page.until("b's own node stands out", () => at.evaluate((name) => document.querySelector(`#graph [data-node="${name}"]`).classList.contains("here"), b.full));
    await at.getByLabel("compared with").selectOption(a.full);
    await page.shows("no difference", "#between", "b and a see the same");
    await at.getByLabel("seen by").selectOption(a.full);
    await page.shows("whose view it is", "#count", `as ${a.full} sees it`);
    page.clean();
  });

  await suite.check("the keyboard alone does it all", async ({ keep }) => {
    const page = await open(keep), { at } = page;
    const focused = () => at.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.textContent);
    const tab = (to) => until(() => `focus on ${to}`, async () => { await at.keyboard.press("Tab"); return (await focused()).includes(to); });
    await at.keyboard.press("Tab");
    same(await focused(), "Skip to the table of nodes", "the first stop");
    await tab(`${a.full}, online`);
    await page.shows("its words", "#hint", a.full);
    await at.keyboard.press("ArrowRight");
    demand((await focused()).startsWith(b.full), "arrows go on");
    await at.keyboard.press("End");
    demand((await focused()).startsWith(c.full), "End goes to the last");
    await at.keyboard.press("Enter");
    await page.shows("its links", "#which", "the 2 pairs of c");
    await page.shows("what is known of it", "#why", `${c.full} is online`);
    same((await page.table("pairs")).map((row) => row.Pair), ["c – a", "c – b"], "its pairs");
    await at.keyboard.press("Escape");
    await page.shows("all links", "#which", "all 3 pairs");
    await tab("Events");
    await tab("Nodes");
    await tab(a.full);
    await at.keyboard.press("Space");
    await page.shows("its links", "#which", "the 2 pairs of a");
    page.clean();
  });
}
