"""Servers that only Python has, for the agent in ../clients: gRPC and MCP, over TLS on 127.0.0.1.

    serve.py CERTIFICATE KEY FILES

It puts packages for pip and npm into FILES, prints the ports as JSON, and ends when its input does.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import pathlib
import socket
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import grpc
import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

WEB = "https://web.clients.example"


def packages(files):
    """A wheel with the index that pip reads, a package with the document that npm reads, and a file that is packed."""
    simple = files / "simple" / "fencepin"
    simple.mkdir(parents=True)
    name, info = "fencepin-1.0-py3-none-any.whl", "fencepin-1.0.dist-info"
    members = {
        "fencepin.py": "ANSWER = 42\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: fencepin\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{member},,\n" for member in members) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(simple / name, "w") as wheel:
        for member, text in {**members, f"{info}/RECORD": record}.items():
            wheel.writestr(member, text)
    digest = hashlib.sha256((simple / name).read_bytes()).hexdigest()
    (simple / "index").write_text(f'<!doctype html><a href="{name}#sha256={digest}">{name}</a>\n')

    npm = files / "npm" / "fencepin"
    npm.mkdir(parents=True)
    package = {"name": "fencepin", "version": "1.0.0", "main": "index.js"}
    with tarfile.open(npm / "fencepin-1.0.0.tgz", "w:gz") as tarball:
        for member, text in {"package.json": json.dumps(package), "index.js": "module.exports = 42;\n"}.items():
            entry = tarfile.TarInfo(f"package/{member}")
            entry.size = len(text)
            tarball.addfile(entry, io.BytesIO(text.encode()))
    integrity = base64.b64encode(hashlib.sha512((npm / "fencepin-1.0.0.tgz").read_bytes()).digest()).decode()
    dist = {"tarball": f"{WEB}/files/npm/fencepin/fencepin-1.0.0.tgz", "integrity": f"sha512-{integrity}"}
    document = {"name": "fencepin", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {**package, "dist": dist}}}
    (npm / "index").write_text(json.dumps(document))

    (files / "packed.gz").write_bytes(gzip.compress(b"packed " * 1000))
    (files / "large.bin").write_bytes(bytes(range(256)) * 4096)


class Numbers(grpc.GenericRpcHandler):
    """Calls of all four kinds, on bare bytes."""

    def service(self, details):
        def double(request, _context):
            return request * 2

        def count(request, _context):
            yield from (b"%d" % n for n in range(int(request)))

        def add(requests, _context):
            return b"%d" % sum(map(int, requests))

        def echo(requests, _context):
            yield from requests

        def fail(_request, context):
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such number")

        return {
            "/fence.Numbers/Double": grpc.unary_unary_rpc_method_handler(double),
            "/fence.Numbers/Count": grpc.unary_stream_rpc_method_handler(count),
            "/fence.Numbers/Add": grpc.stream_unary_rpc_method_handler(add),
            "/fence.Numbers/Echo": grpc.stream_stream_rpc_method_handler(echo),
            "/fence.Numbers/Fail": grpc.unary_unary_rpc_method_handler(fail),
            "/fence.Numbers/Secret": grpc.unary_unary_rpc_method_handler(double),
        }.get(details.method)


def tools():
    server = MCPServer("clients")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    @server.tool()
    def shell(command: str) -> str:
        """Runs a command."""
        return f"ran {command}"

    @server.resource("docs://intro")
    def intro() -> str:
        """An introduction."""
        return "Welcome."

    # The gate keeps the granted name, which is not where this server listens.
    open_to_all = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    return server.streamable_http_app(transport_security=open_to_all)


def main(certificate, key, files):
    packages(pathlib.Path(files))
    pem = [pathlib.Path(path).read_bytes() for path in (key, certificate)]
    numbers = grpc.server(ThreadPoolExecutor(4))
    numbers.add_generic_rpc_handlers([Numbers()])
    grpc_port = numbers.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([tuple(pem)]))
    numbers.start()

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(tools(), ssl_certfile=certificate, ssl_keyfile=key, log_level="warning")
    threading.Thread(target=lambda: uvicorn.Server(config).run(sockets=[listener]), daemon=True).start()
    print(json.dumps({"grpc": grpc_port, "mcp": listener.getsockname()[1]}), flush=True)
    sys.stdin.read()
    os._exit(0)


main(*sys.argv[1:])
