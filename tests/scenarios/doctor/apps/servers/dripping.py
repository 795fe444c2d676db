"""Answers with headers that never end."""

import socket
import time

door = socket.socket()
door.bind(("127.0.0.1", 0))
door.listen(5)
while True:
    link, _ = door.accept()
    link.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        link.sendall(b"X: y\r\n")
        time.sleep(0.2)
