"""An MCP server that speaks over its standard input and output. Its sandbox is its own, and so is what it may reach."""

import os
import pathlib
import urllib.error
import urllib.request

from mcp.server.mcpserver import MCPServer

server = MCPServer("notes")
PLACE = pathlib.Path("/state/notes")


@server.tool()
def remember(text: str) -> str:
    """Keeps a note."""
    with PLACE.open("a") as notes:
        notes.write(text + "\n")
    return f"{len(PLACE.read_text().splitlines())} notes"


@server.tool()
def forget() -> str:
    """Throws all notes away."""
    PLACE.unlink()
    return "forgotten"


@server.tool()
def fetch(path: str) -> str:
    """Gets a page."""
    try:
        with urllib.request.urlopen(f"https://web.clients.example{path}", timeout=10) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)


@server.tool()
def about() -> str:
    """Says who is here: processes, and what the environment has of keys."""
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    first = pathlib.Path("/proc/1/comm").read_text().strip()
    keys = sorted(name for name in os.environ if name.endswith("_API_KEY"))
    try:
        looked = os.listdir("/proc/1/fd")
    except OSError as error:
        looked = type(error).__name__
    return f"{len(pids)} processes, first {first}, keys {keys}, looking into it {looked}"


server.run("stdio")
