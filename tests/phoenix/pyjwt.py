"""JSON Web Tokens by PyJWT.

Reads a JSON array of {"claims", "key", "algorithm", "headers"} from standard input, and prints one token a line. The exit
status is 77 where there is no PyJWT with what it needs for public keys.
"""

import json
import sys

try:
    import cryptography  # noqa: F401
    import jwt
except ImportError as error:
    print(f"Python has no {error.name}", file=sys.stderr)
    sys.exit(77)

for it in json.load(sys.stdin):
    print(jwt.encode(it["claims"], it["key"], algorithm=it["algorithm"], headers=it.get("headers")))
