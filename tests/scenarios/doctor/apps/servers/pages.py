"""Serves pages at the address and port given; /fails is the one that fails."""

import http.server
import socket
import sys


class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/":
            self.send_response(302)
            self.send_header("Location", "first")
            self.end_headers()
            return
        self.send_response(500)
        self.end_headers()
        raise KeyError("LEDGER_KEY")


Server((sys.argv[1], int(sys.argv[2])), Pages).serve_forever()
