"""Answers what is no HTTP, then a redirect to nowhere."""

import socket

door = socket.socket()
door.bind(("127.0.0.1", 0))
door.listen(5)
answers = [b"\x00\xff\r\n\r\n", b"HTTP/1.1 99999 no\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: http://[\xff\r\n\r\n"]
while True:
    link, _ = door.accept()
    link.recv(65536)
    link.sendall(answers.pop(0) if len(answers) > 1 else answers[0])
    link.close()
