"""A server with one tool."""

try:
    from mcp.server.fastmcp import FastMCP as Server
except ImportError:
    from mcp.server import MCPServer as Server

server = Server("ledger")


@server.tool()
def balance(account: str) -> str:
    """The balance of an account."""
    return account + ": 0"


server.run()
