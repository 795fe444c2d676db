"""Run inside the sandbox, as the agent's own user: looks for keys wherever that user may look.

Prints one JSON object. It is not told the real key: whoever runs it compares from outside.
"""

import json
import os
import re

KEY = re.compile(rb"sk-[A-Za-z0-9_-]{8,}")
CHUNK = 1 << 20
OVERLAP = 512

PLACES = 3

# What looks like a key, and where; how much was read; what was refused, and why.
found, read, refused = {}, {"environ": 0, "memory": 0, "file": 0}, {}
env = dict(os.environ)


def search(place, stream, size=None):
    """Reads `size` bytes, or all there is, and keeps what looks like a key."""
    tail = b""
    while size is None or size > 0:
        data = stream.read(CHUNK if size is None else min(CHUNK, size))
        if not data:
            return
        size = None if size is None else size - len(data)
        for match in KEY.findall(tail + data):
            places = found.setdefault(match.decode(), [])
            if place not in places and len(places) < PLACES:
                places.append(place)
        tail = (tail + data)[-OVERLAP:]


def attempt(kind, path, action):
    try:
        action()
        read[kind] += 1
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else type(error).__name__
        refused.setdefault(kind, {}).setdefault(why, []).append(path)


def whole(path):
    with open(path, "rb", buffering=0) as stream:
        search(path, stream)


def environ(path):
    whole(path)
    with open(path, "rb") as stream:
        pairs = (pair.partition(b"=") for pair in stream.read().split(b"\0") if pair)
        env.update((name.decode(errors="replace"), value.decode(errors="replace")) for name, _, value in pairs)


def memory(pid):
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as stream:
        for line in maps:
            span, rights, *_ = line.split()
            start, end = (int(edge, 16) for edge in span.split("-"))
            if not rights.startswith("r") or "[v" in line:
                continue
            try:
                stream.seek(start)
                search(f"/proc/{pid}/mem", stream, end - start)
            except (OSError, OverflowError):
                pass


for pid in filter(str.isdigit, os.listdir("/proc")):
    attempt("environ", f"/proc/{pid}/environ", lambda: environ(f"/proc/{pid}/environ"))
    if int(pid) != os.getpid():
        attempt("memory", f"/proc/{pid}/mem", lambda: memory(pid))
for top in ("/app", "/state", "/tmp"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                attempt("file", path, lambda: whole(path))

named = {name: value for name, value in env.items() if re.search("KEY|SECRET|TOKEN", name)}
print(json.dumps({"env": named, "found": found, "read": read, "refused": refused}))
