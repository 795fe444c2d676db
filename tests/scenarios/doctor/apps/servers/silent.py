"""Listens and never answers."""

import socket
import time

door = socket.socket()
door.bind(("127.0.0.1", 0))
door.listen(5)
time.sleep(3600)
