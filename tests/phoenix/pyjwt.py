"""JSON Web Tokens by PyJWT.

Reads a JSON array of {"claims", "key", "algorithm", "headers"} from standard input, and prints one token a line.
"""

import json
import sys

import jwt

for it in json.load(sys.stdin):
    print(jwt.encode(it["claims"], it["key"], algorithm=it["algorithm"], headers=it.get("headers")))
