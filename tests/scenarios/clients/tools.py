"""The SDK of the Model Context Protocol, in the protocol of today and in the one before."""

import asyncio
import os
import pathlib
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


async def use_own(mode):
    """A server of the agent's own, which knows of nothing but its standard input and output."""
    async with Client(os.environ["MCP_NOTES_URL"], mode=mode, read_timeout_seconds=20) as client:
        names = sorted(tool.name for tool in (await client.list_tools()).tools)
        assert names == ["about", "fetch", "remember"], names

        async def call(tool, **arguments):
            result = await client.call_tool(tool, arguments)
            assert not result.is_error, result
            return result.content[0].text

        kept = await call("remember", text="a")
        assert kept.endswith(" notes"), kept
        assert not pathlib.Path("/state/notes").exists(), "its folder is the agent's"
        reached = await call("fetch", path="/open/notes/json"), await call("fetch", path="/open/requests/json")
        assert reached == ("200", "403"), reached
        denied = await client.call_tool("forget", {})
        assert denied.is_error, denied
        about = await call("about")
        assert "keys []" in about and "looking into it PermissionError" in about, about
        return f"{kept}; {about}"


@check("mcp", VERSION)
def mcp_server_of_its_own():
    return asyncio.run(use_own("auto"))


@check("mcp", VERSION)
def mcp_server_of_its_own_with_sessions():
    return asyncio.run(use_own("legacy"))


@check("mcp", VERSION)
def mcp_server_of_its_own_for_many():
    async def many():
        return await asyncio.gather(*(use_own("legacy") for _ in range(4)))

    return asyncio.run(many())[0]
