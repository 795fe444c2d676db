"""Plays a Streamlit server whose messages come in fragments, between pings, and too large ones among them."""

import base64
import hashlib
import http.server
import struct


def frame(opcode, payload, final=True):
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 * final | opcode, size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 * final | opcode, 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 * final | opcode, 127, size)
    return head + payload


def part(number, payload):
    size, head = len(payload), b""
    while size > 0x7F:
        head, size = head + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + head + bytes([size]) + payload


STACK = (b'File "app.py", line 5, in <module>\n    f()', b'File "app.py", line 4, in f\n    raise ValueError')
SHOWN = part(1, b"ValueError") + part(2, b"out of ink") + part(3, STACK[0]) + part(3, STACK[1])
DELTA = part(5, part(3, part(8, SHOWN)))
FINISHED_EARLY, FINISHED = bytes([6 << 3, 2]), bytes([6 << 3, 0])


class Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/_stcore/stream":
            self.stream()
            return
        self.send_response(200 if self.path == "/healthz" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def stream(self):
        accept = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(accept.encode()).digest()).decode())
        self.end_headers()
        said = self.rfile.read(8)
        assert said[:2] == b"\x82\x82", said
        assert bytes(a ^ b for a, b in zip(said[6:], said[2:6])) == b"\x5a\x00", said
        self.wfile.write(frame(2, b"\x00" * (17 << 20)))
        self.wfile.write(frame(2, FINISHED_EARLY) + frame(9, b"still there"))
        pong = self.rfile.read(17)
        assert pong[0] == 0x8A, pong
        self.wfile.write(frame(2, DELTA[:7], final=False) + frame(9, b"") + frame(0, DELTA[7:]))
        self.wfile.write(frame(2, FINISHED))
        self.rfile.read(1)


server = http.server.HTTPServer(("127.0.0.1", 0), Pages)
server.serve_forever()
