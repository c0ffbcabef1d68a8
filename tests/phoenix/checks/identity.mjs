// Tokens of systems that are there already, on a node with `--identity` files: every client with those of AshAuthentication,
// of Phoenix.Token and of issuers with a key set, and what is refused.
import { readFileSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";
import { deflateSync } from "node:zlib";
import { address, demand, push, Raw, same, show, skip, until } from "../kit.mjs";
import {
  ALGORITHMS, AUDIENCE, OTHER, SALT, SECRET, ash, hashlib, id, issued, issuer, jwt, keySet, phoenix, pyjwt, seconds, tagged,
  unsigned,
} from "../tokens.mjs";

const old = createRequire(import.meta.url)("phoenix-channels");

// The client of version 1, on its own transport and with nothing where it has no presence of that kind.
const first = {
  Socket: class extends old.Socket {
    constructor(url, { transport: _, ...options }) {
      super(url, options);
    }
  },
  Presence: class {
    list() {
      return [];
    }
  },
};

const ROLE = `
[role]
claim = "role"
values = { staff = "node_operator" }
default = "user"
`;
// Of the issuers with a key set, the one that has it at a URL.
const FETCHED = "ES256";
const SETTINGS = {
  ash: `kind = "ash"\nkey_file = "secret"\nrevoked_file = "revoked"\ntenants = ["acme"]\n[subject]\nstrip = "user?id="\n${ROLE}`,
  phoenix: `kind = "phoenix"\nkey_file = "secret"\nsalt = "${SALT}"\nrevoked_file = "revoked"\n[subject]\nclaim = "id"\n${ROLE}
[topics]
default = ["room:{org}:*", "network:updates"]
`,
  ...Object.fromEntries(ALGORITHMS.map((alg) => [alg, `kind = "jwt"\nissuer = "${issuer(alg)}"\naudience = ["${AUDIENCE}"]
algorithm = "${alg}"\nkey_set_file = "jwks.json"\n[topics]\nclaim = "scope"
values = { "chat:read" = ["room:*=join"], "chat:write" = ["room:*"] }
`])),
};

const UNAUTHORIZED = { status: "error", response: { reason: "unauthorized" } };
const refused = (reason) => ({ status: "error", response: { reason } });
const OK = { status: "ok", response: {} };

let files;
let set;
let others;
const gone = [];

function put(name, text) {
  writeFileSync(join(files, "new"), text, { mode: 0o600 });
  renameSync(join(files, "new"), join(files, name));
}

// Serves the key set; where it is.
function served() {
  const server = createServer((_, answer) => answer.end(set.json));
  return new Promise((done) => server.listen(0, "127.0.0.1", () => {
    server.unref();
    done(`http://127.0.0.1:${server.address().port}/jwks.json`);
  }));
}

// Starts the node, with its files.
export async function node(cluster) {
  files = join(cluster.dir, "identities");
  mkdirSync(files, { mode: 0o700 });
  [set, others] = await Promise.all([keySet("ours"), keySet("other")]);
  const texts = { secret: SECRET, revoked: "", "jwks.json": set.json };
  for (const [name, text] of Object.entries(texts)) put(name, text);
  for (const [name, text] of Object.entries(SETTINGS)) put(`${name}.toml`, text);
  put(`${FETCHED}.toml`, SETTINGS[FETCHED].replace('key_set_file = "jwks.json"', `key_set_url = "${await served()}"`));
  const named = Object.keys(SETTINGS).flatMap((name) => ["--identity", join(files, `${name}.toml`)]);
  const i = await cluster.node("i", "--allow-anonymous", "room:*", ...named);
  await until("its key set", async () => (await i.status()).key_sets[0]?.keys);
  return i;
}

export async function run(suite, { i, libraries }) {
  const clients = Object.entries({ ...libraries, V1: first });
  const each = ([version, library]) => [grants, renewals, endings].map((checks) => checks(suite, i, version, library));
  await Promise.all([...clients.flatMap(each), makers(suite, i)]);
  // One after the other, because refusals are counted.
  for (const [version, library] of clients) await refusals(suite, i, version, library);
  await flood(suite, i);
}

// ---- what counts

// What tokens let a client in to.
async function grants(suite, i, version, library) {
  const check = (name, body) => suite.check(`identity: ${version} ${name}`, body);

  await check("a token of AshAuthentication counts, as the table says what its role is", async (place) => {
    for (const [role, operator] of [[undefined, false], ["staff", true], ["admin", false], [["guest", "staff"], true]]) {
      const client = place.client(library, i, { params: { token: await jwt(ash({ role })) } });
      const room = await client.joined(place.room());
      same(await push(room, "say"), OK, "say");
      await until("the subject", () => room.says("presence_state")[0]?.[1]["7"]);
      const { status, response } = await client.join(client.channel("network:updates"));
      same([status, response.reason], operator ? ["ok", undefined] : ["error", "unauthorized"], show(role));
      client.close();
    }
  });

  await check("a token of Phoenix.Token counts, on its topics as its role allows", async (place) => {
    const topic = place.room().replace("room:", "room:acme:");
    for (const role of ["user", "staff"]) {
      const client = place.client(library, i, { params: { token: phoenix({ id: 7, org: "acme", role }) } });
      const room = await client.joined(topic);
      same(await push(room, "say"), OK, "say");
      await until("the subject", () => room.says("presence_state")[0]?.[1]["7"]);
      for (const other of ["room:other:1", "room:acme", "Room:acme:1", "node:heartbeat"])
        same(await client.join(client.channel(other)), UNAUTHORIZED, other);
      const { status } = await client.join(client.channel("network:updates"));
      same(status, role === "staff" ? "ok" : "error", role);
      client.close();
    }
  });

  await check("a token of an issuer with a key set counts, as far as its scope goes", async (place) => {
    const client = place.client(library, i);
    for (const alg of ALGORITHMS) {
      const signed = (scope) => jwt(issued(alg, { scope }), { alg, key: set.private(alg), kid: set.kid(alg) });
      const [write, read] = [await signed("mail chat:write"), await signed(["chat:read"])];
      const room = await client.joined(`${place.room()}:${alg}`, { token: write });
      same(await push(room, "say"), OK, alg);
      const quiet = await client.joined(`${place.room()}:${alg}:quiet`, { access_token: read });
      same(await push(quiet, "say"), UNAUTHORIZED, `${alg}, to read`);
      same(await client.join(client.channel("network:updates", { token: write })), UNAUTHORIZED, alg);
    }
  });
}

// Tokens that take the place of others.
async function renewals(suite, i, version, library) {
  const make = {
    AshAuthentication: (more) => jwt(ash(more)),
    "Phoenix.Token": ({ sub = "7", life = 3600, secret }) => phoenix({ id: Number(sub), org: "acme" }, { max_age: life, secret }),
  };
  const check = (kind, body) => suite.check(`identity: ${version} a join by ${kind} is renewed in place`, body);
  await Promise.all(Object.entries(make).map(([kind, token]) => check(kind, async (place) => {
    const topic = place.room().replace("room:", "room:acme:");
    const witness = await place.raw(i);
    await witness.joined("1", topic, { token: await token({ sub: "8" }) });
    const end = seconds() + 5;
    const client = place.client(library, i, { params: { token: await token({ life: 5 }) } });
    const channel = await client.joined(topic);
    const [[, told]] = await until("a warning", () => channel.says("token_expiring").length && channel.says("token_expiring"));
    demand(told.expires_at - end <= 1 && told.expires_in <= 5, () => show(told));

    const renew = async (access_token) => push(channel, "access_token", { access_token });
    const forged = kind === "Phoenix.Token" ? await token({ secret: OTHER }) : await jwt(ash(), { key: OTHER });
    same(await renew(forged), UNAUTHORIZED, "forged");
    same(await renew(await token({ sub: "9" })), refused("the token is somebody else's"), "another's");
    same(await renew(await token({ life: -5 })), refused("token expired"), "an old one");
    same(await renew(await token({})), OK, "renewed");
    // Past the end of the first one it is where it was, and nobody heard of a token.
    await until("the end of the first token", () => seconds() > told.expires_at + 1);
    same(await push(channel, "say", { text: "still here" }), OK, "say");
    await witness.next((frame) => frame[3] === "say" && frame[4].text === "still here");
    const heard = witness.frames.filter(([, , , event, payload]) => event === "access_token" || payload.leaves?.["7"]);
    same([heard, channel.errors, channel.answers.length, channel.says("token_expiring").length], [[], [], 1, 1]);
  })));
}

// What ends a join, or keeps it from being.
async function endings(suite, i, version, library) {
  const check = (name, body) => suite.check(`identity: ${version} ${name}`, body);
  const ended = async (channel, why) => {
    await until("another join's answer", () => channel.answers.length > 1);
    same(channel.answers[1], refused(why));
    same(channel.errors[0]?.reason, why, "the error");
  };
  const pair = async (place, more, max_age) => {
    const client = place.client(library, i);
    const topic = place.room().replace("room:", "room:acme:");
    const tokens = [await jwt(ash(more)), phoenix({ id: 7, org: "acme" }, { max_age })];
    return { client, tokens, channels: await Promise.all(tokens.map((token, k) => client.joined(`${topic}:${k}`, { token }))) };
  };

  await Promise.all([check("a token that expires ends the join, and opens no other", async (place) => {
    const { client, tokens, channels } = await pair(place, { life: 3 }, 3);
    await Promise.all(channels.map((channel) => ended(channel, "token expired")));
    for (const token of tokens) {
      const channel = client.channel("room:acme:late", { token });
      same(await client.join(channel), refused("token expired"));
      channel.leave();
      same(await place.keep(new Raw(address(i, { token }))).open, { refused: 403 });
    }
    same(client.closes, [], "the connection stays");
  }), check("a token that their file revokes ends the join", async (place) => {
    const jti = `gone-${version}`;
    const { client, tokens, channels } = await pair(place, { jti });
    gone.push(jti, id(tokens[1]));
    put("revoked", `${gone.join("\n")}\n`);
    await Promise.all(channels.map((channel) => ended(channel, "token revoked")));
    for (const token of tokens) same(await place.keep(new Raw(address(i, { token }))).open, { refused: 403 });
    same(client.closes, [], "the connection stays");
  })]);
}

// The same tokens by others than this suite.
async function makers(suite, i) {
  await suite.check("identity: Python's hashlib makes the same of Phoenix.Token as this suite does", async () => {
    const [signed_at, max_age] = [1_767_225_600_123, 1_209_600];
    const samples = [
      { data: { id: 7, org: "acme" } },
      { data: { id: "é", list: null, ok: true, not: false, deep: { at: -2, far: 2 ** 40, less: -(2 ** 40) } }, max_age },
      { data: 300, salt: "another", secret: OTHER },
      { data: "user", alg: "HS512" },
      { data: 0, bytes: bombs().claimed },
    ];
    const asked = samples.map(({ data, bytes, ...more }) => ({
      phoenix: data, secret: SECRET, salt: SALT, signed_at, ...more, ...(bytes && { term: bytes.toString("hex") }),
    }));
    const { lines, absent } = await hashlib(asked);
    if (absent) return skip("python3", absent);
    same(samples.map(({ data, ...more }) => phoenix(data, { signed_at, ...more })), lines);
  });

  await suite.check("identity: tokens of PyJWT count, and those that it should not have made do not", async (place) => {
    const good = [
      { claims: ash(), key: SECRET, algorithm: "HS256" },
      ...ALGORITHMS.map((alg) => ({ claims: issued(alg), key: set.pems[alg], algorithm: alg, headers: { kid: set.kid(alg) } })),
    ];
    const bad = [
      { claims: ash({ life: -5 }), key: SECRET, algorithm: "HS256" },
      { claims: ash(), key: OTHER, algorithm: "HS256" },
      { claims: ash(), key: SECRET, algorithm: "HS512" },
      { claims: ash(), key: null, algorithm: "none" },
      { claims: issued("ES256"), key: others.pems.ES256, algorithm: "ES256", headers: { kid: set.kid("ES256") } },
    ];
    const { lines, absent } = await pyjwt([...good, ...bad]);
    if (absent) return skip("pyjwt", `${absent}: no token of PyJWT was shown`);
    const raw = await place.raw(i);
    for (const [k, token] of lines.entries()) {
      const [ref, topic] = [`${k}`, `${place.room()}:${k}`];
      const [, , , , { status }] = await raw.say([ref, ref, topic, "phx_join", { token }]).reply(ref);
      same(status, k < good.length ? "ok" : "error", show([...good, ...bad][k].claims));
    }
  });
}

// ---- what does not count

// Terms that would take much more memory than they are long.
function bombs() {
  const huge = [255, 255, 255, 255];
  return {
    compressed: tagged("\x83P", huge, deflateSync(Buffer.alloc(2 << 20, "h"))),
    deep: tagged("\x83", ...Array(1400).fill("h\x01"), "j"),
    claimed: tagged("\x83l", huge, ...Array(400).fill(tagged("l", huge))),
    binary: tagged("\x83m", huge, "x"),
    wide: tagged("\x83t", huge, "x".repeat(2000)),
  };
}

// Tokens that are refused: what is wrong, the token, and as what it counts.
async function bad() {
  const nested = `${"[".repeat(1200)}${"]".repeat(1200)}`;
  const hmac = (claims, header) => jwt(claims, header);
  const es256 = (claims, more) => jwt(claims, { alg: "ES256", key: set.private("ES256"), kid: set.kid("ES256"), ...more });
  const user = { id: 7, org: "acme" };
  return [
    ["forged, ash", await hmac(ash(), { key: OTHER }), "signature"],
    ["forged, Phoenix.Token", phoenix(user, { secret: OTHER }), "signature"],
    ["another salt", phoenix(user, { salt: "session" }), "signature"],
    ["another algorithm, ash", await hmac(ash(), { alg: "HS512" }), "algorithm"],
    ["no algorithm, ash", unsigned(ash()), "algorithm"],
    ["another algorithm, Phoenix.Token", phoenix(user, { alg: "HS384" }), "algorithm"],
    ["a public key as a secret", await hmac(issued("RS256"), { key: await set.public("RS256") }), "algorithm"],
    ["another algorithm's key of the set", await jwt(issued("RS256"), { alg: "ES256", key: set.private("ES256") }), "algorithm"],
    ["another key set", await es256(issued("ES256"), { key: others.private("ES256"), kid: others.kid("ES256") }), "unknown_key"],
    ["another key set under our key's name", await es256(issued("ES256"), { key: others.private("ES256") }), "signature"],
    ["another key set without a name", await es256(issued("ES256"), { key: others.private("ES256"), kid: undefined }), "signature"],
    ["another audience", await es256(issued("ES256", { aud: "shop" })), "not_for_us"],
    ["another issuer", await es256(issued("ES256", { iss: "https://other.example" })), "unknown_issuer"],
    // It is held against the cluster's own keys: no issuer can be read.
    ["claims that are nested too deep to find one", await hmac(ash({ more: JSON.parse(nested) })), "signature"],
    ["another tenant", await hmac(ash({ tenant: "other" })), "not_for_us"],
    ["for a password's reset", await hmac(ash({ act: "reset" })), "not_for_us"],
    ["no topics", await es256(issued("ES256", { scope: "mail" })), "unmapped"],
    ["a topic that would be all", phoenix({ id: 7, org: "*" }), "unmapped"],
    ["too long", await hmac(ash({ more: "x".repeat(5000) })), "malformed"],
    ...Object.entries(bombs()).map(([name, bytes]) => [`a term bomb, ${name}`, phoenix(0, { bytes }), "malformed"]),
  ];
}

// How many tokens a node has refused, by reason.
async function counted(i) {
  const lines = (await i.metrics()).matchAll(/^xpando_tokens_refused_total\{reason="(\w+)"\} (\d+)$/gm);
  return Object.fromEntries([...lines].map(([, reason, count]) => [reason, Number(count)]));
}

async function refusals(suite, i, version, library) {
  await suite.check(`identity: ${version} what is forged, of another algorithm or key set, or a term bomb is refused and counted`, async (place) => {
    const client = place.client(library, i);
    await client.joined(place.room());
    for (const [k, [what, token, reason]] of (await bad()).entries()) {
      const before = await counted(i);
      const channel = client.channel(`${place.room()}:${k}`, { token });
      same(await client.join(channel), UNAUTHORIZED, what);
      channel.leave();
      same(await counted(i), { ...before, [reason]: (before[reason] ?? 0) + 1 }, what);
    }
    same(client.closes, [], "the connection stays");
  });
}

// Of one address, a hundred a second are answered at once.
const [ADDRESSES, EACH, WARM] = [50, 100, 10];
const TOLERATED = 12 << 20; // all of these tokens are some 16 MB

async function flood(suite, i) {
  await suite.check("identity: thousands of such tokens take no memory", async (place) => {
    if (process.platform !== "linux") return skip("linux", "memory is read from /proc, and clients have many loopback addresses");
    const resident = () => {
      const text = readFileSync(`/proc/${i.child.pid}/status`, "utf8");
      return ["VmRSS", "VmHWM"].map((name) => 1024 * Number(text.match(new RegExp(`${name}:\\s+(\\d+) kB`))[1]));
    };
    const made = Object.values(bombs()).map((bytes) => bytes.subarray(0, 2900));
    const token = async (k) => {
      const random = String(Math.random());
      if (k % 3 === 0) return phoenix(0, { bytes: Buffer.concat([made[(k / 3) % made.length], Buffer.from(random)]) });
      if (k % 3 === 1) return jwt(ash({ random, more: "x".repeat(2700) }), { key: OTHER });
      return phoenix({ id: 7, org: "acme", more: random + "x".repeat(2800) }, { secret: OTHER });
    };
    const raws = await Promise.all(Array.from({ length: ADDRESSES }, (_, k) => place.raw(i, {}, { localAddress: `127.0.77.${k + 1}` })));
    const showAll = (from, to) => Promise.all(raws.map(async (raw, one) => {
      for (let k = from; k < to; k++) {
        const ref = `${k}`;
        const [, , , , answer] = await raw.say([ref, ref, `${place.room()}:${one}`, "phx_join", { token: await token(k) }]).reply(ref);
        same(answer, UNAUTHORIZED, `token ${k}`);
      }
    }));
    const sum = async () => Object.entries(await counted(i)).reduce((all, [reason, count]) => all + (reason === "slowed" ? 0 : count), 0);
    const before = await sum();
    await showAll(0, WARM);
    const memory = resident();
    await showAll(WARM, EACH);
    const grown = resident().map((now, k) => now - memory[k]);
    same(await sum() - before, ADDRESSES * EACH, "refusals");
    demand(Math.max(...grown) < TOLERATED, `the node and its peak have grown by ${grown} bytes`);
    await raws[0].joined("last", place.room(), { token: await jwt(ash()) });
  });
}
