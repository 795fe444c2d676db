"""Plays an MCP server that greets first, as some wrongly do."""

import json
import sys

print("ledger 1.0")
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": {}}), flush=True)
