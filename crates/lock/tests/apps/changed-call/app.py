"""Calls what takes another argument since."""

import httpx

client = httpx.Client(proxies={"http://": "http://127.0.0.1:1"})
print(client)
