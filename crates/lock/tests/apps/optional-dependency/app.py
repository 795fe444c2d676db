"""A library imports something only when it is used so, and does not require it."""

import httpx

client = httpx.Client(http2=True)
print(client)
