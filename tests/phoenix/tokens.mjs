// Tokens as other systems make them: JSON Web Tokens by npm's jose and by PyJWT, and those of Phoenix.Token.
import { execFile } from "node:child_process";
import { createHash, createHmac, pbkdf2Sync } from "node:crypto";
import { fileURLToPath } from "node:url";
import * as jose from "jose";

export const SECRET = "a secret of the application that has more than 32 bytes";
export const OTHER = SECRET.replaceAll("a", "b");
export const SALT = "user socket";
export const AUDIENCE = "chat";
export const ALGORITHMS = ["RS256", "ES256", "EdDSA"];
export const seconds = () => Math.floor(Date.now() / 1000);
export const issuer = (alg) => `https://${alg.toLowerCase()}.example`;

// ---- JSON Web Tokens

// The claims that AshAuthentication gives to a session of a user.
export function ash({ sub = "7", life = 3600, ...more } = {}) {
  const now = seconds();
  return {
    iss: "AshAuthentication v4.13.7", aud: "~> 4.13", sub: `user?id=${sub}`, jti: `j-${Math.random().toString(36).slice(2)}`,
    iat: now - 10, nbf: now - 10, exp: now + life, purpose: "user", tenant: "acme", ...more,
  };
}

// Those of an issuer with a key set.
export function issued(alg, { life = 3600, ...more } = {}) {
  const now = seconds();
  return { iss: issuer(alg), aud: ["shop", AUDIENCE], sub: `${alg}-7`, iat: now - 10, exp: now + life, scope: "chat:write", ...more };
}

// Signed by jose: with a secret, or with a private key.
export function jwt(claims, { alg = "HS256", key = SECRET, ...header } = {}) {
  const signer = new jose.SignJWT(claims).setProtectedHeader({ alg, typ: "JWT", ...header });
  return signer.sign(typeof key === "string" ? new TextEncoder().encode(key) : key);
}

// What says of itself that nobody has signed it.
export const unsigned = (claims) => new jose.UnsecuredJWT(claims).encode();

// A pair of keys for each algorithm, and the set of their public halves (RFC 7517, 5).
export async function keySet(prefix) {
  const pairs = Object.fromEntries(
    await Promise.all(ALGORITHMS.map(async (alg) => [alg, await jose.generateKeyPair(alg, { extractable: true })])),
  );
  const kid = (alg) => `${prefix}-${alg}`;
  const keys = ALGORITHMS.map(async (alg) => ({ ...(await jose.exportJWK(pairs[alg].publicKey)), kid: kid(alg), alg, use: "sig" }));
  const pems = ALGORITHMS.map(async (alg) => [alg, await jose.exportPKCS8(pairs[alg].privateKey)]);
  return {
    kid,
    json: JSON.stringify({ keys: await Promise.all(keys) }),
    private: (alg) => pairs[alg].privateKey,
    public: (alg) => jose.exportSPKI(pairs[alg].publicKey),
    pems: Object.fromEntries(await Promise.all(pems)),
  };
}

// ---- Phoenix.Token

const encoded = (bytes) => Buffer.from(bytes).toString("base64url");

// A token of Phoenix.Token.sign/4, derived so (Plug.Crypto 2.1):
//   key   = PBKDF2-HMAC-SHA256(secret_key_base, salt, 1000 rounds, 32 bytes)
//   term  = term_to_binary({data, signed_at in milliseconds, max_age in seconds})
//   token = base64url("HS256") "." base64url(term) "." base64url(HMAC-SHA256(key, everything before this dot))
// `bytes` are a term to sign instead, `alg` another first part with the hash of that name.
export function phoenix(data, { secret = SECRET, salt = SALT, signed_at = Date.now(), max_age = 86_400, bytes, alg = "HS256" } = {}) {
  const key = derived(secret, salt);
  const signed = `${encoded(alg)}.${encoded(bytes ?? binary([data, signed_at, max_age]))}`;
  return `${signed}.${createHmac(alg.replace("HS", "sha"), key).update(signed).digest("base64url")}`;
}

const keys = new Map();
function derived(secret, salt) {
  const name = `${secret}\0${salt}`;
  if (!keys.has(name)) keys.set(name, pbkdf2Sync(secret, salt, 1000, 32, "sha256"));
  return keys.get(name);
}

// What a list of revoked tokens calls one.
export function id(token) {
  return createHash("sha256").update(token.slice(0, token.lastIndexOf("."))).digest("hex").slice(0, 32);
}

const big = (number) => { const bytes = Buffer.alloc(4); bytes.writeUInt32BE(number); return bytes; };
export const tagged = (tag, ...parts) => Buffer.concat([Buffer.from(tag, "latin1"), ...parts.map((part) => Buffer.from(part))]);
const atom = (name) => tagged("w", [name.length], name);

// term_to_binary, as far as it is needed: an array is a tuple, an object is a map with atoms as its keys.
export const binary = (value) => tagged("\x83", term(value));

function term(value) {
  if (value === null || typeof value === "boolean") return atom(value === null ? "nil" : `${value}`);
  if (typeof value === "string") return tagged("m", big(Buffer.byteLength(value)), value);
  if (Array.isArray(value)) return tagged("h", [value.length], ...value.map(term));
  if (typeof value === "object") {
    const entries = Object.entries(value);
    return tagged("t", big(entries.length), ...entries.map(([name, one]) => Buffer.concat([atom(name), term(one)])));
  }
  if (value >= 0 && value < 256) return tagged("a", [value]);
  if (value >= -(2 ** 31) && value < 2 ** 31) return tagged("b", big(value >>> 0));
  const digits = [];
  for (let rest = BigInt(Math.abs(value)); rest > 0n; rest >>= 8n) digits.push(Number(rest & 255n));
  return tagged("n", [digits.length, value < 0 ? 1 : 0], digits);
}

// ---- other makers

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

// What a program prints, a line each; `absent` says why it cannot run here.
function run(program, args, input) {
  return new Promise((done, fail) => {
    const child = execFile(program, args, (error, out, said) => {
      if (error?.code === "ENOENT") return done({ absent: `${program} is not installed` });
      if (error?.code === 77) return done({ absent: said.trim() });
      return error ? fail(new Error(`${args[0]}: ${said.trim() || error.message}`)) : done({ lines: out.trim().split("\n") });
    });
    child.stdin.on("error", () => {});
    child.stdin.end(JSON.stringify(input));
  });
}

// The same as `phoenix` makes, by Python's hashlib.
export const hashlib = (tokens) => run("python3", [here("../cluster/identity.py")], tokens);

// JSON Web Tokens of PyJWT: {claims, key, algorithm, headers} each. It is installed once, with what requirements.txt says.
export async function pyjwt(tokens) {
  const { lines, absent } = await run(here("../../scripts/venv"), ["pyjwt", here("requirements.txt")], []);
  return absent ? { absent } : run(`${lines[0]}/bin/python`, [here("pyjwt.py")], tokens);
}
