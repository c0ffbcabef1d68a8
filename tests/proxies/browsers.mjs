// A real Chromium behind each proxy, and on pages that are not the node's own.
import { createServer } from "node:http";
import { Browser, installed } from "../dashboard/browser.mjs";
import { demand, same, until } from "../phoenix/kit.mjs";

// What a page gets from the node: of the API, and of a socket.
const tries = async (page, http) => page.evaluate(async (http) => {
  const read = async (path) => {
    try {
      const answer = await fetch(`http://${http}${path}`);
      return [answer.status, (await answer.json()).cause ?? "read"];
    } catch (error) { return [0, error.name]; }
  };
  const socket = new Promise((done) => {
    const ws = new WebSocket(`ws://${http}/socket/websocket?vsn=2.0.0`);
    ws.onopen = () => done("open");
    ws.onerror = () => done("refused");
  });
  return { api: await read("/api/status"), poll: await read("/socket/longpoll?vsn=2.0.0"), socket: await socket };
}, http);

export async function run(suite, { a, below, ways }) {
  if (!installed()) return console.log("SKIPPED: chromium is not installed: no page was looked at");
  const port = a.http.split(":")[1];
  const browser = await Browser.open(undefined, [], ["--host-resolver-rules=MAP evil.example 127.0.0.1", "--ignore-certificate-errors"]);

  for (const name of Object.keys(ways).filter((name) => name !== "bare")) {
    await suite.check(`the dashboard behind a proxy: ${name}`, async ({ keep }) => {
      const page = keep(await browser.page(ways[name].page));
      await page.shows("life", "#wire", "live");
      await page.shows("its node", "#me", name === "passed" ? below.full : a.full);
      page.clean();
    });
  }

  await suite.check("the dashboard without the last slash of its path", async ({ keep }) => {
    for (const way of [ways.passed, ways.stripped]) {
      const page = keep(await browser.page(way.page.slice(0, -1)));
      await page.shows("life", "#wire", "live");
      page.clean();
    }
  });

  await suite.check("a page of another port of the same host gets nothing, and may read why", async ({ keep }) => {
    const server = keep(createServer((_, answer) => answer.setHeader("content-type", "text/html").end("<p>elsewhere")));
    await new Promise((done) => server.listen(0, "127.0.0.1", done));
    const context = keep(await browser.browser.newContext()), page = await context.newPage();
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
    same(await tries(page, a.http), { api: [403, "origin"], poll: [200, "origin"], socket: "refused" });
    server.closeAllConnections();
  });

  await suite.check("a page whose name was pointed at the node gets nothing", async ({ keep }) => {
    const context = keep(await browser.browser.newContext()), page = await context.newPage();
    const answer = await page.goto(`http://evil.example:${port}/`);
    same([answer.status(), (await answer.json()).cause], [421, "host"]);
    const { api, socket } = await tries(page, `evil.example:${port}`);
    same([api, socket], [[421, "host"], "refused"]);
  });

  await suite.check("the node's own page reads the API", async ({ keep }) => {
    const page = keep(await browser.page(`http://${a.http}/`));
    await page.shows("life", "#wire", "live");
    same((await page.at.evaluate(() => fetch("/api/status").then((it) => it.status))), 200);
    await until("no complaint", () => page.complaints.length === 0);
    page.clean();
    demand(page.at.url() === `http://${a.http}/`, page.at.url());
  });
  await browser.close();
}
