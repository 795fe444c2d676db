"""Libraries of Python for HTTP and WebSockets."""

import asyncio
import platform
import urllib.error
import urllib.request

import aiohttp
import httpx
import requests
import websockets
import websockets.sync.client

from checks import WEB, check, must_fail

LARGE = bytes(range(256)) * 4096
FORM = {"word": "Grüße, 世界", "number": "7"}


# requests


@check("requests", requests.__version__)
def requests_get():
    got = requests.get(f"{WEB}/open/requests/json", params={"q": "a b"}, timeout=10).json()
    assert (got["method"], got["query"]) == ("GET", "q=a+b"), got


@check("requests", requests.__version__)
def requests_upload():
    session = requests.Session()
    assert session.post(f"{WEB}/open/requests/echo", data=LARGE, timeout=10).content == LARGE
    # Without a length: chunks.
    pieces = (LARGE[at : at + 65536] for at in range(0, len(LARGE), 65536))
    assert session.put(f"{WEB}/open/requests/echo", data=pieces, timeout=10).content == LARGE
    files = {"file": ("large.bin", LARGE)}
    assert session.post(f"{WEB}/open/requests/form", data=FORM, files=files, timeout=10).json()["bytes"] > len(LARGE)


@check("requests", requests.__version__)
def requests_stream_redirect_gzip():
    with requests.get(f"{WEB}/open/requests/stream", stream=True, timeout=10) as answer:
        assert [line for line in answer.iter_lines() if line] == [b"data: %d" % n for n in range(5)]
    answer = requests.get(f"{WEB}/open/requests/redirect", timeout=10)
    assert answer.history and answer.json()["path"] == "/open/requests/json"
    assert requests.get(f"{WEB}/files/packed.gz", timeout=10).content == b"packed " * 1000


@check("requests", requests.__version__)
def requests_denied():
    answer = requests.get(f"{WEB}/shut/requests", timeout=10)
    assert answer.status_code == 403 and answer.json()["code"] == "ringfence.denied", answer.text
    upload = requests.post(f"{WEB}/shut/requests", data=LARGE * 8, timeout=10)
    assert upload.json()["code"] == "ringfence.denied", upload.text
    must_fail(requests.ConnectionError, lambda: requests.get("https://elsewhere.example/requests", timeout=10))
    return must_fail(requests.HTTPError, answer.raise_for_status)


# urllib


@check("urllib", platform.python_version())
def urllib_get():
    with urllib.request.urlopen(f"{WEB}/open/urllib/json", timeout=10) as answer:
        assert answer.status == 200 and b'"GET"' in answer.read()


@check("urllib", platform.python_version())
def urllib_upload():
    with urllib.request.urlopen(f"{WEB}/open/urllib/echo", data=LARGE, timeout=10) as answer:
        assert answer.read() == LARGE


@check("urllib", platform.python_version())
def urllib_denied():
    must_fail(urllib.error.URLError, lambda: urllib.request.urlopen("https://elsewhere.example/urllib", timeout=10))
    return must_fail(urllib.error.HTTPError, lambda: urllib.request.urlopen(f"{WEB}/shut/urllib", timeout=10))


# httpx


def httpx_both(folder, http2, version):
    with httpx.Client(http2=http2, http1=not http2) as client:
        for _ in range(3):
            got = client.get(f"{WEB}/open/{folder}/json")
            assert got.http_version == version, got.http_version
        assert client.post(f"{WEB}/open/{folder}/echo", content=LARGE).content == LARGE
        with client.stream("GET", f"{WEB}/open/{folder}/stream") as answer:
            assert [line for line in answer.iter_lines() if line] == [f"data: {n}" for n in range(5)]
        assert client.get(f"{WEB}/files/packed.gz").content == b"packed " * 1000


def httpx_refused(folder, http2):
    with httpx.Client(http2=http2, http1=not http2) as client:
        must_fail(httpx.ConnectError, lambda: client.get(f"https://elsewhere.example/{folder}"))
        answer = client.get(f"{WEB}/shut/{folder}")
        assert answer.json()["code"] == "ringfence.denied", answer.text
        return must_fail(httpx.HTTPStatusError, answer.raise_for_status)


@check("httpx", httpx.__version__)
def httpx_h1():
    httpx_both("httpx-h1", False, "HTTP/1.1")


@check("httpx", httpx.__version__)
def httpx_h2():
    httpx_both("httpx-h2", True, "HTTP/2")


@check("httpx", httpx.__version__)
def httpx_h2_at_once():
    async def ask():
        async with httpx.AsyncClient(http2=True) as client:
            calls = [client.post(f"{WEB}/open/httpx-async/echo", content=b"%d" % n) for n in range(20)]
            answers = await asyncio.gather(*calls)
            assert [a.content for a in answers] == [b"%d" % n for n in range(20)]

    asyncio.run(ask())


@check("httpx", httpx.__version__)
def httpx_h1_denied():
    return httpx_refused("httpx-h1", False)


@check("httpx", httpx.__version__)
def httpx_h2_denied():
    return httpx_refused("httpx-h2", True)


# aiohttp


@check("aiohttp", aiohttp.__version__)
def aiohttp_get_upload_stream():
    async def ask():
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{WEB}/open/aiohttp/json") as answer:
                assert (await answer.json())["method"] == "GET"
            async with session.post(f"{WEB}/open/aiohttp/echo", data=LARGE) as answer:
                assert await answer.read() == LARGE
            async with session.get(f"{WEB}/open/aiohttp/stream") as answer:
                lines = [line async for line in answer.content]
                assert [line.strip() for line in lines if line.strip()] == [b"data: %d" % n for n in range(5)]

    asyncio.run(ask())


@check("aiohttp", aiohttp.__version__)
def aiohttp_websocket():
    async def talk():
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{WEB}/open/aiohttp/ws") as socket:
                await socket.send_str("hello")
                assert await socket.receive_str(timeout=10) == "hello"

    asyncio.run(talk())


@check("aiohttp", aiohttp.__version__)
def aiohttp_denied():
    async def ask(url):
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            async with session.get(url):
                pass

    must_fail(aiohttp.ClientConnectorError, lambda: asyncio.run(ask("https://elsewhere.example/aiohttp")))
    return must_fail(aiohttp.ClientResponseError, lambda: asyncio.run(ask(f"{WEB}/shut/aiohttp")))


# websockets

WS = WEB.replace("https", "wss")


@check("websockets", websockets.__version__)
def websockets_talk():
    async def talk():
        async with websockets.connect(f"{WS}/open/websockets/ws") as socket:
            for message in ("hello", b"\x00\xff", "x" * 300_000):
                await socket.send(message)
                assert await asyncio.wait_for(socket.recv(), 10) == message
            await asyncio.wait_for(await socket.ping(), 10)

    asyncio.run(talk())
    with websockets.sync.client.connect(f"{WS}/open/websockets-sync/ws") as socket:
        socket.send("hello")
        assert socket.recv(timeout=10) == "hello"


@check("websockets", websockets.__version__)
def websockets_denied():
    def connect(url):
        with websockets.sync.client.connect(url):
            pass

    must_fail(OSError, lambda: connect("wss://elsewhere.example/websockets"))
    return must_fail(websockets.InvalidStatus, lambda: connect(f"{WS}/shut/websockets"))
