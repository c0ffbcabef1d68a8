"""Tokens as other systems make them, by nothing but Python's own hashlib and hmac: a second implementation for the tests.

Reads a JSON array from standard input, and prints one token a line.

A JSON Web Token (RFC 7515, 7.1; RFC 7518, 3.2):
  {"jwt": CLAIMS, "alg": "HS256", "secret": TEXT, "header": more of the header}

A token of Phoenix.Token.sign/4:
  {"phoenix": DATA, "secret": secret_key_base, "salt": TEXT, "signed_at": MILLISECONDS, "max_age": SECONDS}
It is derived so:
  key   = PBKDF2-HMAC-SHA256(secret_key_base, salt, 1000 rounds, 32 bytes)
  term  = term_to_binary({data, signed_at, max_age})
  token = base64url("HS256") "." base64url(term) "." base64url(HMAC-SHA256(key, everything before this dot))
With "term" (hexadecimal) the bytes of the term are those; with "alg" the first part and the hash are others.
"""

import base64
import hashlib
import hmac
import json
import struct
import sys

HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(first, second, alg, key):
    body = encoded(first) + b"." + encoded(second)
    mac = hmac.new(key, body, HASHES[alg]).digest() if alg in HASHES else b""
    return (body + b"." + encoded(mac)).decode()


def term(value):
    """As Erlang's term_to_binary has it, without the version's byte: maps have atoms as keys."""
    if isinstance(value, bool) or value is None:
        name = {True: b"true", False: b"false", None: b"nil"}[value]
        return b"w" + bytes([len(name)]) + name
    if isinstance(value, int):
        if 0 <= value < 256:
            return b"a" + bytes([value])
        if -(2**31) <= value < 2**31:
            return b"b" + struct.pack(">i", value)
        digits = abs(value).to_bytes((abs(value).bit_length() + 7) // 8, "little")
        return b"n" + bytes([len(digits), value < 0]) + digits
    if isinstance(value, str):
        return b"m" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"h" + bytes([len(value)]) + b"".join(map(term, value))
    if isinstance(value, list):
        return b"l" + struct.pack(">I", len(value)) + b"".join(map(term, value)) + b"j" if value else b"j"
    items = b"".join(b"w" + bytes([len(name)]) + name.encode() + term(it) for name, it in value.items())
    return b"t" + struct.pack(">I", len(value)) + items


def made(it):
    alg = it.get("alg", "HS256")
    if "jwt" in it:
        header = {"alg": alg, "typ": "JWT", **it.get("header", {})}
        return signed(json.dumps(header).encode(), json.dumps(it["jwt"]).encode(), alg, it["secret"].encode())
    key = hashlib.pbkdf2_hmac("sha256", it["secret"].encode(), it["salt"].encode(), 1000, 32)
    if "term" in it:
        data = bytes.fromhex(it["term"])
    else:
        data = b"\x83" + term((it["phoenix"], it["signed_at"], it.get("max_age", 86400)))
    return signed(alg.encode(), data, alg, key)


for it in json.load(sys.stdin):
    print(made(it))
