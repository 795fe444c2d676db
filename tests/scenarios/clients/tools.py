"""The SDK of the Model Context Protocol, in the protocol of today and in the one before."""

import asyncio
from importlib.metadata import version

from mcp import Client

from checks import check

URL = "https://mcp.clients.example/mcp"
VERSION = version("mcp")


async def use(mode):
    async with Client(URL, mode=mode, read_timeout_seconds=10) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names == ["add"], names
        added = await client.call_tool("add", {"a": 40, "b": 2})
        assert not added.is_error and added.content[0].text == "42", added
        read = await client.read_resource("docs://intro")
        assert read.contents[0].text == "Welcome.", read
        return str(client.protocol_version)


async def misuse(mode):
    async with Client(URL, mode=mode, read_timeout_seconds=10) as client:
        result = await client.call_tool("shell", {"command": "id"})
        assert result.is_error, result
        return result.content[0].text


@check("mcp", VERSION)
def mcp_tools_and_resources():
    return asyncio.run(use("auto"))


@check("mcp", VERSION)
def mcp_tool_denied():
    return asyncio.run(misuse("auto"))


@check("mcp", VERSION)
def mcp_with_sessions():
    return asyncio.run(use("legacy"))


@check("mcp", VERSION)
def mcp_with_sessions_tool_denied():
    return asyncio.run(misuse("legacy"))
