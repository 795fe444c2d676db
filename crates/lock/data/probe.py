"""Starts an agent as production would, asks of it what a first user would, and reports what happened.

Run as `python -I -S -B probe.py REQUEST.json REPORT.json`, with the agent's own interpreter, inside a build sandbox, in
the agent's source folder. `-I` keeps that folder out of this program's own imports, and `-S` keeps out code that
packages run at every start of an interpreter. It only reports facts; whoever asked judges them.

Request:
  kind      streamlit, fastapi, starlette, flask, gradio, chainlit, panel, dash, nicegui: serve pages.
            mcp: speaks MCP over standard input and output. cli, script, worker: runs.
  mode      "start" or "imports"
  argv      what starts the agent (mode "start")
  modules   dotted names to import, the last part may be an attribute (mode "imports")
  env       variables in addition to the probe's own
  port      where it should listen, or null
  patience  seconds that everything may take; ending comes on top, in less than 10 s
  settle    seconds after which a program that lives counts as started

Report:
  version, mode, python, seconds
  phase           how far it came. spawn: it was started. listen: a port listens. answer: it answered. session: a user's
                  session began. settled: all that was asked is answered and it lives; or, of what runs: it exited, or
                  lives after `settle`.
  listening       ports of the agent's processes
  answered        whether it answered anything
  requests        [{path, status}], the pages asked for
  exit, signal    how it ended of its own accord, before the probe ended it or its input
  waits_for_input whether it was found reading its standard input instead of what its kind does (mcp reads it by right).
                  A program's input is then closed, and exit_at_eof says how it ended upon that: a status, or minus a
                  signal. An EOFError is then the probe's doing and not reported.
  errors          [{type, message, frames, chain, where}]; where is stdout, stderr, session, import or spawn;
                  frames are [{file, line, function, code}], oldest call first; chain are the errors that led to it
  imports         [{name, ok, error, missing_attribute, exit, signal}] (mode "imports"). The type of the error is
                  Killed or Exited if the interpreter died of the import, Overdue if it did not end, NotTried if no
                  time was left for it.
  stdout, stderr  the last of the texts
  refused         hosts (with port where known) that the texts say could not be resolved or connected to
  probe_error     set if the probe itself failed

Exit status: 0 with a report, 1 with a report that has a probe_error, 2 without a report.
"""

import base64
import http.client
import itertools
import json
import os
import re
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import urllib.parse
import uuid

PAGES = ("streamlit", "fastapi", "starlette", "flask", "gradio", "chainlit", "panel", "dash", "nicegui")
PROGRAMS = ("cli", "script", "worker")

HEAD_BYTES = 64 * 1024
TAIL_BYTES = 256 * 1024
REPORTED_CHARS = 32 * 1024
BODY_BYTES = 1024 * 1024
MESSAGE_BYTES = 16 * 1024 * 1024
MESSAGE_FIELDS = 10000
LINE_CHARS = 8 * 1024
ERROR_MESSAGE_CHARS = 4000
CODE_CHARS = 300
FRAMES = 30
ERRORS = 50
ERRORS_READ = 200

POLL_S = 0.1
TERM_S = 3.0
KILL_S = 2.0
QUIET_S = 0.5
OTHER_PORT_S = 2.0
OTHER_ANSWER_S = 10.0
OVERDUE_S = 1.0
LAST_RESORT_S = 8.0


def main(arguments):
    if len(arguments) != 2:
        sys.stderr.write("usage: python -I -S -B probe.py REQUEST.json REPORT.json\n")
        return 2
    request_path, report_path = arguments
    report, began = blank_report(), time.monotonic()
    try:
        signal.signal(signal.SIGTERM, interrupt)
        request = Request(request_path)
        report["mode"] = request.mode
        clock = Clock(request.patience)
        last_resort(clock, report, report_path)
        adopt_orphans()
        if request.mode == "imports":
            probe_imports(request, clock, report)
        else:
            probe_start(request, clock, report)
    except BaseException:
        report["probe_error"] = clean(traceback.format_exc())
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_family(0)
        report["seconds"] = round(time.monotonic() - began, 3)
    return write_report(report, report_path)


class Interrupted(BaseException):
    pass


def interrupt(number, _frame):
    raise Interrupted("the probe was told to end by signal {}".format(number))


def blank_report():
    return {
        "version": 1,
        "mode": None,
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "seconds": 0.0,
        "listening": [],
        "answered": False,
        "requests": [],
        "phase": "spawn",
        "exit": None,
        "signal": None,
        "waits_for_input": False,
        "exit_at_eof": None,
        "errors": [],
        "stdout": "",
        "stderr": "",
        "refused": [],
    }


def write_report(report, path):
    partial = "{}.{}".format(path, os.getpid())
    try:
        with open(partial, "w", encoding="ascii") as file:
            json.dump(report, file)
        os.replace(partial, path)
    except OSError as error:
        sys.stderr.write("cannot write the report: {}\n".format(error))
        return 2
    return 1 if "probe_error" in report else 0


def last_resort(clock, report, report_path):
    """Ends the probe if it got stuck, so that whoever waits always finds a report."""

    def give_up():
        end_family(0)
        stuck = dict(blank_report(), mode=report["mode"], phase=report["phase"], seconds=round(clock.spent(), 3))
        stuck["probe_error"] = "the probe did not end in time"
        os._exit(write_report(stuck, report_path))

    alarm(clock.patience + LAST_RESORT_S, give_up)


def alarm(seconds, ring):
    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    return timer


class Request:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            said = json.load(file)
        self.kind = said.get("kind")
        self.mode = said.get("mode", "start")
        self.argv = said.get("argv") or []
        self.port = said.get("port")
        self.patience = float(said.get("patience", 60))
        self.settle = float(said.get("settle", 5))
        self.modules = said.get("modules") or []
        # WHY: output that still sits in a buffer would be lost at the end, a fatal signal should leave a stack, and
        # boxed tracebacks are wrapped to the width of a terminal.
        self.env = dict(os.environ)
        for name, value in (("PYTHONUNBUFFERED", "1"), ("PYTHONFAULTHANDLER", "1"), ("COLUMNS", "250")):
            self.env.setdefault(name, value)
        self.env.update(said.get("env") or {})
        self._check()

    def _check(self):
        if self.mode not in ("start", "imports"):
            raise ValueError("unknown mode `{}`".format(self.mode))
        if self.mode == "start" and self.kind not in PAGES + PROGRAMS + ("mcp",):
            raise ValueError("unknown kind `{}`".format(self.kind))
        if self.mode == "start" and not self.argv:
            raise ValueError("no argv")


class Clock:
    def __init__(self, patience):
        self.patience = patience
        self.began = time.monotonic()

    def spent(self):
        return time.monotonic() - self.began

    def left(self):
        return self.patience - self.spent()


# Mode "start"


def probe_start(request, clock, report):
    try:
        child = Child(request.argv, request.env)
    except (OSError, ValueError) as error:
        report["errors"].append(plain_error(type(error).__name__, str(error), "spawn"))
        return
    overdue = alarm(max(0.0, clock.left()) + OVERDUE_S, lambda: end_family(0, child.process))
    run = Run(request, clock, report, child)
    try:
        if request.kind in PROGRAMS:
            watch_program(run)
        elif request.kind == "mcp":
            converse(run)
        else:
            visit(run)
        run.rest()
    finally:
        run.note_end()
        run.note_texts()
        overdue.cancel()
        child.end()


class Run:
    """One start of the agent, and what is known of it so far."""

    def __init__(self, request, clock, report, child):
        self.request = request
        self.clock = clock
        self.report = report
        self.child = child
        self.session_errors = []

    def reach(self, phase):
        self.report["phase"] = phase

    def going_on(self):
        return self.clock.left() > 0 and self.child.lives()

    def rest(self):
        """Waits until nothing more is said, for errors are often printed after the answer."""
        until = self.clock.spent() + self.request.settle
        said, quiet_since = self.child.said(), self.clock.spent()
        while self.going_on() and self.clock.spent() < until and self.clock.spent() - quiet_since < QUIET_S:
            time.sleep(POLL_S)
            if self.child.said() != said:
                said, quiet_since = self.child.said(), self.clock.spent()

    def note_shown(self, errors):
        """Keeps errors that a page shows."""
        self.session_errors = distinct(self.session_errors + errors)

    def note_end(self):
        self.report["listening"] = sorted(set(self.report["listening"]) | set(self.child.ports()))
        if self.report["phase"] == "settled" and self.request.kind not in PROGRAMS and not self.child.lives():
            self.reach("session" if self.request.kind in ("streamlit", "chainlit", "mcp") else "answer")
        if self.clock.left() + OVERDUE_S < 0:
            return
        status = self.child.status()
        if self.report["waits_for_input"]:
            self.report["exit_at_eof"] = status
        elif status is not None:
            self.report["exit"] = status if status >= 0 else None
            self.report["signal"] = -status if status < 0 else None

    def note_texts(self):
        self.child.drain()
        out, err = self.child.stdout.text(), self.child.stderr.text()
        errors = errors_in(err, "stderr") + errors_in(out, "stdout") + self.session_errors
        if self.report["waits_for_input"]:
            errors = [error for error in errors if error["type"] != "EOFError"]
        self.report["errors"] = distinct(errors)
        self.report["refused"] = refused_hosts("\n".join([out, err] + [error["message"] for error in errors]))
        self.report["stdout"], self.report["stderr"] = out[-REPORTED_CHARS:], err[-REPORTED_CHARS:]


def watch_program(run):
    """Lets it run until it exits, or has lived for `settle` and rests."""
    load = Load(run.child)
    while run.going_on() and (run.clock.spent() < run.request.settle or load.high()):
        time.sleep(POLL_S)
    if run.child.lives() and run.child.reads_input():
        run.report["waits_for_input"] = True
        run.child.close_input()
        until = run.clock.spent() + run.request.settle
        while run.going_on() and run.clock.spent() < until:
            time.sleep(POLL_S)
    run.reach("settled")


def visit(run):
    """Waits until it listens, then looks at its pages as the first visitor would."""
    door = find_door(run)
    if door is None:
        return
    run.reach("answer")
    {"streamlit": visit_streamlit, "chainlit": visit_chainlit}.get(run.request.kind, visit_pages)(run, door)


# What is asked for first, then what else a first visitor's browser asks for.
FIRST_PATHS = {
    "streamlit": ("/_stcore/health",),
    "fastapi": ("/openapi.json", "/"),
    "gradio": ("/", "/config"),
    "dash": ("/", "/_dash-layout", "/_dash-dependencies"),
}


def find_door(run):
    """The first port that answers HTTP; a port other than the expected one has to be there for a while."""
    path = FIRST_PATHS.get(run.request.kind, ("/",))[0]
    seen_at, attempts = {}, {}
    reading_since = None
    while run.going_on():
        ports = run.child.ports(run.request.port)
        for port in ports:
            seen_at.setdefault(port, run.clock.spent())
        if ports:
            run.reach("listen")
            run.report["listening"] = sorted(ports)
        for port in sorted(ports, key=lambda port: (port != run.request.port, seen_at[port])):
            expected = run.request.port in (None, port)
            if expected or run.clock.spent() - seen_at[port] > OTHER_PORT_S:
                attempts[port] = attempts.get(port, 0) + 1
                door = Door(run, port, ports[port])
                if door.get(path, first_patience(run, port, attempts[port])) is not None:
                    return door
        if not ports and run.child.reads_input():
            reading_since = reading_since or run.clock.spent()
            if run.clock.spent() - reading_since > run.request.settle:
                run.report["waits_for_input"] = True
                return None
        time.sleep(POLL_S)
    return None


def first_patience(run, port, attempt):
    """How long to wait for a first answer: a port that is not the expected one may never speak HTTP."""
    left = run.clock.left()
    return left if port == run.request.port else min(left, OTHER_ANSWER_S * 2 ** (attempt - 1))


class Answer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    def leads_to(self, path):
        """The path of a redirect from a path, or None."""
        place = self.headers.get("Location")
        if place is None or self.status not in (301, 302, 303, 307, 308):
            return None
        try:
            to = urllib.parse.urlsplit(urllib.parse.urljoin(path, place))
        except ValueError:
            return None
        return urllib.parse.urlunsplit(("", "", to.path or "/", to.query, ""))


class Door:
    """A port of the agent that speaks HTTP."""

    def __init__(self, run, port, address):
        self.run = run
        self.port = port
        self.address = address

    def get(self, path, patience=None):
        """A page, after at most three redirects; they are taken to lead to the agent itself."""
        answer = self.ask("GET", path, patience=patience, noted=True)
        for _ in range(3):
            path = answer.leads_to(path) if answer else None
            if path is None:
                break
            answer = self.ask("GET", path, noted=True) or answer
        return answer

    def ask(self, method, path, body=None, headers=None, patience=None, noted=False):
        """One exchange, or None if no answer came."""
        left = self.run.clock.left() if patience is None else patience
        if left <= 0:
            return None
        link = http.client.HTTPConnection(self.address, self.port, timeout=left)
        try:
            link.request(method, path, body=body, headers=dict({"Connection": "close"}, **(headers or {})))
            response = link.getresponse()
            self.run.report["answered"] = True
            if noted:
                self.run.report["requests"].append({"path": clean(path)[:200], "status": response.status})
            return Answer(response.status, response.headers, self._body(response))
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            link.close()

    def _body(self, response):
        body = bytearray()
        try:
            while len(body) < BODY_BYTES and self.run.clock.left() > 0:
                piece = response.read1(64 * 1024)
                if not piece:
                    break
                body += piece
        except (OSError, http.client.HTTPException, ValueError):
            pass
        return bytes(body)


def visit_pages(run, door):
    paths = FIRST_PATHS.get(run.request.kind, ("/",))
    for path in paths[1:]:
        if door.get(path) is None:
            return
    run.reach("settled")


# Streamlit
#
# A browser opens a WebSocket and sends BackMsg{rerun_script}; the server runs the script and streams ForwardMsg.
# The numbers of fields are those of streamlit/proto/*.proto and the same in 1.8.1, 1.12.2, 1.28.2, 1.40.2 and 1.67.0.

BACK_RERUN_SCRIPT = 11  # BackMsg.rerun_script, a ClientState; all of its fields may be absent
FORWARD_DELTA = 5  # ForwardMsg.delta
FORWARD_SCRIPT_FINISHED = 6  # ForwardMsg.script_finished
FORWARD_SESSION_EVENT = 10  # ForwardMsg.session_event
DELTA_NEW_ELEMENT = 3  # Delta.new_element
ELEMENT_EXCEPTION = 8  # Element.exception
SESSION_COMPILE_EXCEPTION = 3  # SessionEvent.script_compilation_exception
EXCEPTION_TYPE, EXCEPTION_MESSAGE, EXCEPTION_STACK, EXCEPTION_IS_WARNING = 1, 2, 3, 5
# ForwardMsg.ScriptFinishedStatus. The exception follows in a message of its own; the second is there since 1.12.
FINISHED_WITH_COMPILE_ERROR, FINISHED_EARLY_FOR_RERUN = 1, 2

RERUN_SCRIPT = bytes([BACK_RERUN_SCRIPT << 3 | 2, 0])

# Up to 1.12 the paths had no prefix.
STREAMLIT_HEALTH_BEFORE = "/healthz"
STREAMLIT_STREAMS = ("/_stcore/stream", "/stream")


def visit_streamlit(run, door):
    base = ""
    if run.report["requests"][-1]["status"] != 200:
        healthy = door.get(STREAMLIT_HEALTH_BEFORE)
        if healthy is None or healthy.status != 200:
            base = announced_base(run, door)
    stream = open_stream(run, door, base)
    if stream is None:
        return
    run.reach("session")
    try:
        stream.send(RERUN_SCRIPT)
        follow_script(run, stream)
    except (OSError, Closed):
        pass
    finally:
        stream.close()


def announced_base(run, door):
    """The folder under which Streamlit says that its pages are, if it was set up with one."""
    found = re.search(r"://[^/\s]+:{}(/[\w./~-]+)".format(door.port), run.child.stdout.text())
    return found.group(1).rstrip("/") if found else ""


def open_stream(run, door, base):
    for path in STREAMLIT_STREAMS:
        try:
            return WebSocket(door, base + path, run.clock)
        except (OSError, Closed):
            continue
    return None


def follow_script(run, stream):
    """Reads until the script has finished; one that reruns itself or does not parse gets `settle` seconds more."""
    for message in stream.messages():
        try:
            run.note_shown(shown_errors(message))
            finished = field(message, FORWARD_SCRIPT_FINISHED)
        except Malformed:
            continue
        if finished is None:
            continue
        if run.report["phase"] != "settled":
            run.reach("settled")
            stream.until = run.clock.spent() + run.request.settle
        if finished not in (FINISHED_WITH_COMPILE_ERROR, FINISHED_EARLY_FOR_RERUN):
            return


def shown_errors(message):
    shown = (
        field(message, FORWARD_DELTA, DELTA_NEW_ELEMENT, ELEMENT_EXCEPTION),
        field(message, FORWARD_SESSION_EVENT, SESSION_COMPILE_EXCEPTION),
    )
    return [shown_error(exception) for exception in shown if exception and not field(exception, EXCEPTION_IS_WARNING)]


def shown_error(exception):
    kind, message, stack = "", "", []
    for number, value in fields(exception):
        if number == EXCEPTION_TYPE:
            kind = decode(value)
        elif number == EXCEPTION_MESSAGE:
            message = decode(value)
        elif number == EXCEPTION_STACK:
            stack.extend(clean(decode(value)).split("\n"))
    error = plain_error(kind, message, "session")
    # Each entry is one frame; up to 1.12 its first line came without indentation.
    lines = ["  " + line if line.startswith("File ") else line for line in stack]
    error["frames"] = read_frames(lines, 0)[0][-FRAMES:]
    return error


class Malformed(Exception):
    pass


def fields(data):
    """The fields of a protocol buffer: number, and a whole number or bytes."""
    at = 0
    for _ in range(MESSAGE_FIELDS):
        if at == len(data):
            return
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        elif wire == 2:
            size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise Malformed()
        if at > len(data):
            raise Malformed()
        yield number, value
    raise Malformed()


def varint(data, at):
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Malformed()
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Malformed()


def field(data, *path):
    """The field at a path of numbers, or None."""
    for number in path:
        if not isinstance(data, bytes):
            return None
        data = next((value for found, value in fields(data) if found == number), None)
    return data


class Closed(Exception):
    pass


class WebSocket:
    """A client of RFC 6455, as far as reading a server's messages needs it."""

    CONTINUATION, BINARY, CLOSE, PING, PONG = 0x0, 0x2, 0x8, 0x9, 0xA

    def __init__(self, door, path, clock):
        self.clock = clock
        self.until = clock.patience
        self.buffer = bytearray()
        self.link = socket.create_connection((door.address, door.port), timeout=max(POLL_S, clock.left()))
        try:
            self._shake_hands(door, path)
        except BaseException:
            self.link.close()
            raise

    def _shake_hands(self, door, path):
        lines = (
            "GET {} HTTP/1.1".format(path),
            "Host: {}:{}".format("[{}]".format(door.address) if ":" in door.address else door.address, door.port),
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: {}".format(base64.b64encode(os.urandom(16)).decode("ascii")),
        )
        self.link.sendall("\r\n".join(lines + ("", "")).encode("ascii"))
        while b"\r\n\r\n" not in self.buffer:
            if len(self.buffer) > HEAD_BYTES:
                raise Closed()
            self._receive()
        head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        if not re.match(rb"HTTP/1\.1 101\b", head):
            raise Closed()
        self.buffer = bytearray(rest)

    def send(self, payload, opcode=BINARY):
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self.link.sendall(struct.pack("!BB", 0x80 | opcode, 0x80 | len(payload)) + mask + masked)

    def messages(self):
        """Messages until either side closes; one that is too large comes as its first bytes."""
        message = bytearray()
        while True:
            final, opcode, payload = self._frame()
            if opcode == self.CLOSE:
                return
            if opcode == self.PING:
                self.send(payload[:125], self.PONG)
            if opcode >= self.CLOSE:
                continue
            message += payload[: MESSAGE_BYTES - len(message)]
            if final:
                yield bytes(message)
                message = bytearray()

    def _frame(self):
        first, second = self._take(2)
        size = second & 0x7F
        if size == 126:
            size = struct.unpack("!H", self._take(2))[0]
        elif size == 127:
            size = struct.unpack("!Q", self._take(8))[0]
        payload = self._take(min(size, MESSAGE_BYTES))
        surplus = size - len(payload)
        while surplus:
            surplus -= len(self._take(min(surplus, HEAD_BYTES)))
        return bool(first & 0x80), first & 0x0F, payload

    def _take(self, size):
        while len(self.buffer) < size:
            self._receive()
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken

    def _receive(self):
        left = self.until - self.clock.spent()
        if left <= 0:
            raise Closed()
        self.link.settimeout(left)
        piece = self.link.recv(64 * 1024)
        if not piece:
            raise Closed()
        self.buffer += piece

    def close(self):
        self.link.close()


# Chainlit
#
# The page opens a Socket.IO session; `connection_successful` runs the agent's on_chat_start between the events
# task_start and task_end. 1.3.2 reads who connects from headers and fails if the connection has a payload; 2.12.0 reads
# it from that payload.

SOCKET_IO = "/ws/socket.io/?EIO=4&transport=polling"
PACKET_SEPARATOR = "\x1e"
CONNECT_S = 10.0
CHAINLIT_FOLDER = "import importlib.util as i; print(i.find_spec('chainlit').submodule_search_locations[0])"
CONNECT_WITH_PAYLOAD = re.compile(r"\bdef connect\([^)]*\bauth\b")


def visit_chainlit(run, door):
    chat = Chat(run, door)
    if not chat.connect():
        return
    run.reach("session")
    chat.emit("connection_successful")
    if chat.follow():
        run.reach("settled")


class Chat:
    """A Socket.IO session by long polling."""

    def __init__(self, run, door):
        self.run = run
        self.door = door
        self.path = SOCKET_IO
        self.id = str(uuid.uuid4())
        self.headers = {
            "X-Chainlit-Session-Id": self.id,
            "X-Chainlit-Client-Type": "webapp",
            "User-Env": "{}",
            "Content-Type": "text/plain;charset=UTF-8",
        }

    def connect(self):
        opened = [packet for packet in self.poll() or [] if packet.startswith("0")]
        try:
            self.path = "{}&sid={}".format(SOCKET_IO, json.loads(opened[0][1:])["sid"])
        except (IndexError, KeyError, TypeError, ValueError, RecursionError):
            return False
        payload = {"sessionId": self.id, "clientType": "webapp", "userEnv": "{}"}
        self.post("40" + (json.dumps(payload) if takes_payload(self.run) else ""))
        for packet in self.packets(CONNECT_S):
            if packet.startswith("40"):
                return True
            if packet.startswith("44"):
                self.run.note_shown([plain_error("ConnectionRefusedError", packet[2:], "session")])
                return False
        return False

    def follow(self):
        """Reads until on_chat_start has ended or asks the user; without one, nothing comes for `settle`."""
        started = False
        for packet in self.packets(self.run.request.settle):
            name, data = event(packet)
            if name == "task_start":
                started = True
            if name in ("new_message", "update_message") and isinstance(data, dict) and data.get("isError"):
                self.run.note_shown([plain_error("", str(data.get("output", "")), "session")])
            if name in ("ask", "call_fn") or (name == "task_end" and started):
                return True
        return not started

    def packets(self, patience):
        """Packets other than pings, until a poll stays unanswered for `patience` seconds."""
        while self.run.going_on():
            polled = self.poll(patience)
            if polled is None:
                return
            for packet in polled:
                if packet == "2":
                    self.post("3")
                else:
                    yield packet

    def poll(self, patience=None):
        patience = self.run.clock.left() if patience is None else min(patience, self.run.clock.left())
        answer = self.door.ask("GET", self.path, headers=self.headers, patience=patience)
        if answer is None or answer.status != 200:
            return None
        return decode(answer.body).split(PACKET_SEPARATOR)

    def post(self, packet):
        self.door.ask("POST", self.path, body=packet.encode("utf-8"), headers=self.headers)

    def emit(self, name):
        self.post("42" + json.dumps([name]))


def takes_payload(run):
    """Whether the agent's version of Chainlit reads a payload at the connection; versions to come surely do."""
    argv = [sys.executable, "-I", "-c", CHAINLIT_FOLDER]
    try:
        said = subprocess.check_output(argv, env=run.request.env, timeout=CONNECT_S, stderr=subprocess.DEVNULL)
        with open(os.path.join(decode(said).strip(), "socket.py"), encoding="utf-8") as file:
            return CONNECT_WITH_PAYLOAD.search(file.read()) is not None
    except (OSError, ValueError, subprocess.SubprocessError):
        return True


def event(packet):
    """Name and first argument of a Socket.IO event."""
    found = re.match(r"42\d*(\[.*)", packet, re.DOTALL)
    try:
        said = json.loads(found.group(1)) if found else []
    except (ValueError, RecursionError):
        said = []
    return (said + [None, None])[:2]


# MCP over standard input and output


MCP_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2024-11-05",
        "capabilities": {},
        "clientInfo": {"name": "probe", "version": "1"},
    },
}
MCP_INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}
MCP_LIST_TOOLS = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}


def converse(run):
    """Initialises as a client does, then asks for the tools."""
    run.child.write(MCP_INITIALIZE)
    if not await_reply(run, 1):
        return
    run.report["answered"] = True
    run.reach("session")
    run.child.write(MCP_INITIALIZED)
    run.child.write(MCP_LIST_TOOLS)
    if await_reply(run, 2):
        run.reach("settled")


def await_reply(run, number):
    heard = -1
    while True:
        lives = run.going_on()
        if run.child.said() != heard:
            heard = run.child.said()
            if any(is_reply(line, number) for line in run.child.stdout.text().split("\n")):
                return True
        if not lives:
            return False
        time.sleep(POLL_S)


def is_reply(line, number):
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("id") == number and ("result" in said or "error" in said)


# Mode "imports"

# WHY: it leans on nothing but `os` and `sys`, which are loaded anyway, so that a file of the agent's that is called
# like a module of the standard library is found as the agent would find it.
IMPORTER = r"""
import os, sys

class Page:
    def __init__(self): self.text = ""
    def write(self, text): self.text += text
    def flush(self): pass

def load(name):
    parent, _, last = name.rpartition(".")
    line = "from %s import %s" % (parent, last) if parent else "import %s" % name
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError("`%s` is not a dotted name" % name)
    exec(compile(line, "<probe>", "exec"), {"__name__": "__probe__"})

def told(error, folder):
    page, stderr, path = Page(), sys.stderr, sys.path
    sys.stderr, sys.path = page, [place for place in path if place != folder]
    try:
        sys.__excepthook__(type(error), error, error.__traceback__)
    finally:
        sys.stderr, sys.path = stderr, path
    return page.text

def lacks_attribute(error):
    at = error.__traceback__
    while at.tb_next is not None:
        at = at.tb_next
    here = at.tb_frame.f_code.co_filename == "<probe>"
    return here and type(error) is ImportError and "cannot import name" in str(error)

def main(fd, names):
    folder = os.getcwd()
    if sys.path[:1] == [""]:
        del sys.path[0]
    sys.path.insert(0, folder)
    sys.argv[:] = [""]
    for name in names:
        os.write(fd, ("start %s\n" % name).encode())
        try:
            load(name)
        except BaseException as error:
            lacking = lacks_attribute(error)
            error.__traceback__ = error.__traceback__.tb_next.tb_next
            text = told(error, folder).encode("utf-8", "replace")[-65536:]
            os.write(fd, ("failed %d %d\n" % (lacking, len(text))).encode() + text)
        else:
            os.write(fd, b"done\n")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    os._exit(0)

main(int(sys.argv[1]), sys.argv[2:])
"""


def probe_imports(request, clock, report):
    report["imports"] = results = []
    names = list(dict.fromkeys(request.modules))
    texts = ["", ""]
    while len(results) < len(names) and clock.left() > 0:
        results.extend(import_together(names[len(results) :], request, clock, texts))
    for name in names[len(results) :]:
        results.append(import_result(name, plain_error("NotTried", "no time was left for this import", "import")))
    report["stdout"], report["stderr"] = texts
    messages = [result["error"]["message"] for result in results if result["error"]]
    report["refused"] = refused_hosts("\n".join([report["stdout"], report["stderr"]] + messages))
    report["phase"] = "settled"


def import_together(names, request, clock, texts):
    """Imports in one process until one import ends it; the results up to and with that one."""
    reader, writer = os.pipe()
    # WHY: -c puts the current folder first in sys.path, as a program in it would have it.
    argv = [sys.executable, "-c", IMPORTER, str(writer)] + names
    try:
        child = Child(argv, request.env, pass_fds=(writer,), results=reader)
    finally:
        os.close(writer)
    child.close_input()
    while child.status() is None and clock.left() > 0:
        time.sleep(POLL_S / 5)
    status = child.status()
    overdue = status is None
    child.drain()
    child.end(0 if overdue else TERM_S)
    stderr = child.stderr.text()
    texts[:] = ((texts[0] + child.stdout.text())[-REPORTED_CHARS:], (texts[1] + stderr)[-REPORTED_CHARS:])
    return read_results(child.results.data(), names, overdue, status, stderr)


def read_results(data, names, overdue, status, stderr):
    results = []
    started = None
    while data:
        line, _, data = data.partition(b"\n")
        words = decode(line).split(" ")
        if words[0] == "start" and len(results) < len(names):
            started = names[len(results)]
        elif words[0] == "done" and started:
            results.append(import_result(started))
            started = None
        elif words[0] == "failed" and started and re.match(rb"failed [01] [0-9]{1,6}$", line):
            size = int(words[2])
            text, data = clean(decode(data[:size])), data[size:]
            results.append(import_result(started, import_error(text), missing_attribute=words[1] == "1"))
            started = None
    if len(results) < len(names):
        culprit = started or names[len(results)]
        results.append(fatal_import(culprit, overdue, status, stderr))
    return results


def import_result(name, error=None, missing_attribute=False, status=None):
    return {
        "name": name,
        "ok": error is None,
        "error": error,
        "missing_attribute": missing_attribute,
        "exit": status if status is not None and status >= 0 else None,
        "signal": -status if status is not None and status < 0 else None,
    }


def import_error(text):
    found = errors_in(text, "import")
    error = found[-1] if found else plain_error(*read_message(text.split("\n"), 0)[:2], where="import")
    for part in [error] + error["chain"]:
        part["frames"] = [frame for frame in part["frames"] if frame["file"] != "<probe>"]
    return error


def fatal_import(name, overdue, status, stderr):
    if overdue:
        return import_result(name, plain_error("Overdue", "the import did not end in time", "import"))
    if status < 0:
        error = plain_error("Killed", "the import died by {}".format(signal_name(-status)), "import")
    else:
        error = plain_error("Exited", "the import ended the interpreter with status {}".format(status), "import")
    fatal = [found for found in errors_in(stderr, "import") if found["type"] == FATAL_TYPE]
    if fatal:
        error["frames"] = [frame for frame in fatal[-1]["frames"] if frame["file"] not in ("<probe>", "<string>")]
    return import_result(name, error, status=status)


def signal_name(number):
    try:
        return "signal {} ({})".format(number, signal.Signals(number).name)
    except ValueError:
        return "signal {}".format(number)


# The agent's processes


class Tape:
    """The first and last bytes of a stream of any length."""

    def __init__(self, tail_bytes=TAIL_BYTES):
        self.head = bytearray()
        self.tail = bytearray()
        self.tail_bytes = tail_bytes
        self.total = 0
        self.lock = threading.Lock()

    def add(self, piece):
        with self.lock:
            self.total += len(piece)
            room = HEAD_BYTES - len(self.head)
            self.head += piece[:room]
            self.tail += piece[max(0, room) :]
            if len(self.tail) > self.tail_bytes:
                del self.tail[: -self.tail_bytes]

    def data(self):
        with self.lock:
            return bytes(self.head + self.tail)

    def text(self):
        with self.lock:
            left_out = self.total - len(self.head) - len(self.tail)
            gap = "\n[{} bytes left out]\n".format(left_out) if left_out else ""
            parts = (self.head, self.tail) if left_out else (self.head + self.tail,)
            return clean(gap.join(decode(bytes(part)) for part in parts))


class Child:
    """The agent, in a session of its own, with pipes for its standard streams."""

    def __init__(self, argv, env, pass_fds=(), results=None):
        self.process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self.stdin_name = link_name("/proc/self/fd/{}".format(self.process.stdin.fileno()))
        self.stdout, self.stderr, self.results = Tape(), Tape(), Tape(MESSAGE_BYTES)
        streams = [(self.process.stdout, self.stdout), (self.process.stderr, self.stderr)]
        if results is not None:
            streams.append((os.fdopen(results, "rb", 0), self.results))
        self.pump = threading.Thread(target=pump, args=(streams,), daemon=True)
        self.pump.start()

    def said(self):
        return self.stdout.total + self.stderr.total

    def status(self):
        """Exit status, or minus the signal, of the process that was started; None while it runs."""
        return self.process.poll()

    def lives(self):
        return self.status() is None or bool(self.family())

    def family(self):
        return family(self.process.pid)

    def ports(self, expected=None):
        """Listening ports of the agent and where to reach them."""
        inodes = set()
        for pid in self.family():
            inodes |= socket_inodes(pid)
        sockets = listening_sockets()
        own = {port: address for port, (address, inode) in sockets.items() if inode in inodes}
        # An agent may forbid others to look at it; the expected port is then its own all the same.
        if not own and expected in sockets:
            return {expected: sockets[expected][0]}
        return own

    def reads_input(self):
        """Whether it rests in a read of the pipe that is its standard input."""
        seen = [reads_pipe(pid, self.stdin_name) for pid in self.family()]
        if seen and all(one is None for one in seen):
            return bool(PROMPT.search(self.stdout.text()[-200:]))
        return any(seen)

    def write(self, message):
        try:
            self.process.stdin.write(json.dumps(message).encode("ascii") + b"\n")
        except OSError:
            pass

    def close_input(self):
        try:
            self.process.stdin.close()
        except OSError:
            pass

    def drain(self):
        """Reads what is still in the pipes of one that has ended."""
        if self.status() is not None:
            self.pump.join(QUIET_S)

    def end(self, term_s=TERM_S):
        end_family(term_s, self.process)
        self.close_input()


PROMPT = re.compile(r"[^\n]*[?:>\]$#\u00bb\u203a\u276f] ?\Z")


def pump(streams):
    selector = selectors.DefaultSelector()
    for stream, tape in streams:
        selector.register(stream, selectors.EVENT_READ, tape)
    while selector.get_map():
        for key, _ in selector.select():
            piece = os.read(key.fd, 64 * 1024)
            if piece:
                key.data.add(piece)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()


class Load:
    """Whether the agent is at work, by processor time: one that still loads its packages has not settled."""

    SAMPLE_S = 0.5
    HIGH = 0.3

    def __init__(self, child):
        self.child = child
        self.at, self.ticks = time.monotonic(), 0
        self.was_high = True

    def high(self):
        now = time.monotonic()
        if now - self.at >= self.SAMPLE_S:
            processes = self.child.family().values()
            ticks = sum(process.ticks for process in processes)
            worked = (ticks - self.ticks) / os.sysconf("SC_CLK_TCK") / (now - self.at)
            self.was_high = worked > self.HIGH or any(process.state == "D" for process in processes)
            self.at, self.ticks = now, ticks
        return self.was_high


class Process:
    """One line of /proc/PID/stat; what follows the program's name, which may hold any character."""

    def __init__(self, text):
        words = text[text.rindex(")") + 2 :].split()
        self.state = words[0]
        self.parent, self.session = int(words[1]), int(words[3])
        self.ticks = int(words[11]) + int(words[12])


def processes():
    """Every process that can be seen, by pid."""
    found = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return found
    for name in names:
        if name.isdigit():
            try:
                with open("/proc/{}/stat".format(name), encoding="utf-8", errors="replace") as file:
                    found[int(name)] = Process(file.read())
            except (OSError, ValueError, IndexError):
                continue
    return found


def family(session=None):
    """Live processes that descend from the probe, or are in the agent's session."""
    everyone, members = processes(), {}
    for pid, process in everyone.items():
        line, at = [], pid
        while at in everyone and at not in line and at != os.getpid():
            line.append(at)
            at = everyone[at].parent
        if pid != os.getpid() and (at == os.getpid() or process.session == session) and process.state not in "ZX":
            members[pid] = process
    return members


def adopt_orphans():
    """Makes processes that lose their parent children of the probe, so that it can find and end them."""
    pr_set_child_subreaper = 36
    try:
        import ctypes

        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def end_family(term_s, process=None):
    """Asks everyone to end, waits for `term_s`, then kills; returns when nobody is left."""
    session = process.pid if process else None
    if term_s:
        signal_all(session, signal.SIGTERM)
        wait_for_end(session, term_s, process)
    until = time.monotonic() + KILL_S
    while time.monotonic() < until:
        signal_all(session, signal.SIGKILL)
        if wait_for_end(session, POLL_S, process):
            break


def signal_all(session, number):
    if session is not None:
        try:
            os.killpg(session, number)
        except OSError:
            pass
    for pid in family(session):
        try:
            os.kill(pid, number)
        except OSError:
            pass


def wait_for_end(session, seconds, process):
    until = time.monotonic() + seconds
    while True:
        if process is not None:
            process.poll()
        reap(session)
        if not family(session) and (process is None or process.returncode is not None):
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_S / 5)


def reap(session):
    """Reaps adopted processes; the one that was started is `subprocess`'s to reap."""
    for pid, process in processes().items():
        if process.parent == os.getpid() and process.state == "Z" and pid != session:
            try:
                os.waitpid(pid, os.WNOHANG)
            except OSError:
                pass


def link_name(path):
    try:
        return os.readlink(path)
    except OSError:
        return None


def socket_inodes(pid):
    folder = "/proc/{}/fd".format(pid)
    try:
        names = [link_name("{}/{}".format(folder, fd)) for fd in os.listdir(folder)]
    except OSError:
        return set()
    return {name[len("socket:[") : -1] for name in names if name and name.startswith("socket:[")}


TCP_LISTEN = "0A"


def listening_sockets():
    """Port to address and inode of each TCP socket of this network namespace that listens."""
    sockets = {}
    for table in ("/proc/net/tcp6", "/proc/net/tcp"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        for row in rows:
            if row[3] == TCP_LISTEN:
                address, port = row[1].rsplit(":", 1)
                sockets[int(port, 16)] = (reachable(address), row[9])
    return sockets


def reachable(address):
    """Where a client reaches a socket bound to an address of /proc/net/tcp{,6}: words in the host's byte order."""
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    raw = struct.pack("={}I".format(len(words)), *words)
    if not any(raw):
        # A socket for any IPv6 address takes IPv4 too, but for IPV6_V6ONLY; ::1 fits both.
        return "127.0.0.1" if len(raw) == 4 else "::1"
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


# Numbers of system calls that read (read, readv) and that wait on an epoll descriptor, by machine.
READS = {"x86_64": (0, 19), "aarch64": (63, 65)}
EPOLL_WAITS = {"x86_64": (232, 281, 441), "aarch64": (22, 441)}


def reads_pipe(pid, pipe):
    """Whether a thread of the process waits for bytes from the pipe; None if that cannot be seen."""
    machine = os.uname().machine
    try:
        threads = os.listdir("/proc/{}/task".format(pid))
    except OSError:
        return None
    visible = False
    for thread in threads:
        words = system_call(pid, thread)
        visible = visible or words is not None
        if not words or len(words) < 2 or not words[0].isdigit():
            continue
        number, fd = int(words[0]), int(words[1], 16)
        if number in READS.get(machine, ()) and is_pipe(pid, fd, pipe):
            return True
        if number in EPOLL_WAITS.get(machine, ()) and any(is_pipe(pid, one, pipe) for one in watched(pid, fd)):
            return True
    return False if visible and machine in READS else None


def system_call(pid, thread):
    try:
        with open("/proc/{}/task/{}/syscall".format(pid, thread), encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return None


def is_pipe(pid, fd, pipe):
    return pipe is not None and link_name("/proc/{}/fd/{}".format(pid, fd)) == pipe


def watched(pid, epoll_fd):
    try:
        with open("/proc/{}/fdinfo/{}".format(pid, epoll_fd), encoding="ascii", errors="replace") as file:
            return [int(line.split()[1]) for line in file if line.startswith("tfd:")]
    except (OSError, ValueError, IndexError):
        return []


# Texts


def decode(data):
    return data.decode("utf-8", "replace")


ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(text):
    """Text without terminal escapes and control characters; a carriage return begins a line."""
    text = ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return CONTROLS.sub("", text)


def plain_error(kind, message, where):
    message = clean(message)[:ERROR_MESSAGE_CHARS]
    return {"type": clean(kind)[:200], "message": message, "frames": [], "chain": [], "where": where}


def distinct(errors):
    seen, kept = set(), []
    for error in errors:
        last = error["frames"][-1] if error["frames"] else {}
        key = (error["where"] == "session", error["type"], error["message"], last.get("file"), last.get("line"))
        if key not in seen and len(kept) < ERRORS:
            seen.add(key)
            kept.append(error)
    return kept


HEADER = "Traceback (most recent call last)"
GROUP = "Exception Group "
LINKS = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
FRAME = re.compile(r'^(?:>|\s)\s*File "(?P<file>[^"]*)", line (?P<line>\d{1,9})(?:,? in (?P<function>.*))?$')
TYPE = re.compile(r"^(?P<type>[A-Za-z_][\w.<>]*)(?::(?: (?P<message>.*))?)?$")
LOGGED = re.compile(
    r"^\s*(?:\[?\d{4}-\d\d-\d\d[T ]|\[?\d\d:\d\d:\d\d\b|\[?(?:DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL)\b[:\]\s]"
    r"|\d{1,3}(?:\.\d{1,3}){3}\S* - |\[\d+ bytes left out\])"
)
SEPARATOR = re.compile(r"^\s*(?:\|\s*)*\+[-+]+")
FATAL = re.compile(r"^Fatal Python error: (.*)$")
FATAL_STACK = re.compile(r"^(?:Current thread|Stack) .*most recent call first")
FATAL_TYPE = "Fatal Python error"
SYNTAX_ERROR_LINES = 6
TRACEBACK_LINES = 5000
SYNTAX_ERRORS = re.compile(r"^(?:SyntaxError|IndentationError|TabError): ")

# What interpreters and servers say in one line where a program would have said it in a traceback.
ONE_LINERS = (
    (re.compile(r"^\S*python[\d.]*: (No module named .*)$"), "ModuleNotFoundError"),
    (re.compile(r"^\S*python[\d.]*: (can't (?:open file|find '__main__' module) .*)$"), "FileNotFoundError"),
    (re.compile(r"^ERROR:\s+(Error loading ASGI app\. .*)$"), "ImportError"),
)


def errors_in(text, where):
    """All errors that a text tells of, those that led to another one as its chain."""
    lines = [line[:LINE_CHARS].rstrip() for line in text.split("\n")]
    found, chain, at, count = [], [], 0, 0
    while at < len(lines) and count < ERRORS_READ:
        error, end = read_error(lines, at)
        if error is None:
            at += 1
            continue
        count += 1
        error["where"] = where
        begin = at
        linked, at = follows(lines, end)
        if linked:
            chain.append(error)
            continue
        error["chain"], chain = chain[-FRAMES:], []
        if not ignored(lines, begin):
            found.append(error)
    return distinct(found)


def ignored(lines, begin):
    """Whether the interpreter says that it ignored the error, as it does at its end."""
    return any(line.startswith("Exception ignored ") for line in lines[max(0, begin - 1) : begin + 1])


def follows(lines, at):
    """Whether an error at the lines before led to another one, and where reading goes on."""
    for ahead in range(at, min(at + 4, len(lines))):
        line = lines[ahead].strip(BOX)
        if line in LINKS:
            return True, ahead + 1
        if line and not SEPARATOR.match(lines[ahead]):
            break
    return False, at


def read_error(lines, at):
    line = lines[at]
    if HEADER in line:
        read = read_traceback if line.endswith(HEADER + ":") else read_boxed
        error, end = read(lines, at)
    elif line.startswith('  File "'):
        error, end = read_syntax_error(lines, at)
    elif FATAL.match(line):
        error, end = read_fatal(lines, at)
    else:
        error, end = read_one_liner(line), at + 1
    return error, end


def read_traceback(lines, at):
    bare = list(unprefixed(lines, at))
    frames, end = read_frames(bare, 0)
    error = plain_error("", "", "")
    error["frames"] = frames[-FRAMES:]
    kind, message, end = read_message(bare, end)
    error["type"], error["message"] = kind, message
    return error, at + 1 + end


def unprefixed(lines, at):
    """The lines after a header, without what stands before each: bars of a group, indentation, a log's prefix."""
    before = lines[at][: lines[at].index(HEADER)]
    if before.endswith(GROUP):
        before = before[: -len(GROUP)]
    if before.endswith("+ "):
        before = before[:-2] + "| "
    barred = before.endswith("| ")
    following = lines[at + 1] if at + 1 < len(lines) else ""
    if not barred and before.strip() and not following.startswith(before):
        before = ""
    for line in lines[at + 1 : at + TRACEBACK_LINES]:
        if line.startswith(before):
            yield line[len(before) :]
        elif line == before.rstrip() or (not barred and not line):
            yield ""
        else:
            return


def read_frames(lines, at):
    """Frames from a line on, and where they end; blank lines and notes stand between them in some formats."""
    frames = []
    while at < len(lines):
        line = lines[at]
        found = FRAME.match(line)
        if found:
            frames.append(
                {
                    "file": found.group("file"),
                    "line": int(found.group("line")),
                    "function": (found.group("function") or "")[:CODE_CHARS],
                    "code": "",
                }
            )
        elif line[:1].strip():
            break
        elif line.startswith("    ") and frames and not frames[-1]["code"]:
            frames[-1]["code"] = line.strip()[:CODE_CHARS]
        at += 1
    return frames, at


def read_message(lines, at):
    """Type and message from a line on, and where they end."""
    found = TYPE.match(lines[at]) if at < len(lines) else None
    if not found:
        return "", "", at
    message = [found.group("message") or ""]
    at += 1
    while at < len(lines) and not ends_message(lines, at, message):
        message.append(lines[at])
        at += 1
    return found.group("type")[:200], "\n".join(message).strip("\n")[:ERROR_MESSAGE_CHARS], at


def ends_message(lines, at, message):
    line = lines[at]
    if HEADER in line or line.strip(" |") in LINKS or LOGGED.match(line) or SEPARATOR.match(line):
        return True
    return not line and any(message) and not nothing_else(lines, at)


def nothing_else(lines, at):
    """Whether the rest of a text is short and plain enough to be the rest of a message with blank lines in it."""
    rest = lines[at : at + 100]
    if len(lines) - at > len(rest) or sum(map(len, rest)) > ERROR_MESSAGE_CHARS:
        return False
    return not any(HEADER in line or line in LINKS or LOGGED.match(line) or FRAME.match(line) for line in rest)


def read_syntax_error(lines, at):
    """The form without a header: the file that was started does not parse."""
    frames, size = read_frames(lines[at : at + SYNTAX_ERROR_LINES], 0)
    end = at + size
    if len(frames) != 1 or end >= len(lines) or not SYNTAX_ERRORS.match(lines[end]):
        return None, at + 1
    error = plain_error("", "", "")
    error["frames"] = frames
    error["type"], error["message"], end = read_message(lines, end)
    return error, end


def read_fatal(lines, at):
    """What the fault handler prints: the newest call comes first."""
    error = plain_error(FATAL_TYPE, FATAL.match(lines[at]).group(1), "")
    end = at + 1
    while end < min(at + 200, len(lines)) and not FATAL_STACK.match(lines[end]):
        end += 1
    frames, stop = read_frames(lines, end + 1)
    if frames:
        error["frames"] = frames[:FRAMES][::-1]
        return error, stop
    return error, at + 1


def read_one_liner(line):
    for form, kind in ONE_LINERS:
        found = form.match(line)
        if found:
            return plain_error(kind, found.group(1), "")
    return None


# Tracebacks in boxes, as rich draws them


BOX = "\u2500\u2501\u2502\u2503\u256d\u256e\u256f\u2570 |+-"
BOX_SIDE = "\u2502"
BOX_END = re.compile("^(?:\u2502 )?(?:\u2570|\\+-|\\s*\u2500{10,}\\s*$)")
BOX_FRAME = re.compile(r"^(?P<file>[/<].*):(?P<line>\d{1,9})(?: in (?P<function>.+))?$")
BOX_CODE = re.compile("^(?:\u2771|>)\\s*\\d+\\s?(?P<code>.*)$")


def read_boxed(lines, at):
    frames, inside, end = [], [], at + 1
    while end < len(lines) and not BOX_END.match(lines[end]) and HEADER not in lines[end]:
        inside.append(lines[end].strip(BOX))
        end += 1
    for before, line in zip([""] + inside, inside):
        read_boxed_line(before, line, frames)
    if not frames:
        return None, at + 1
    error = plain_error("", "", "")
    error["frames"] = frames[-FRAMES:]
    after = lines[end + 1 : end + TRACEBACK_LINES]
    if lines[at].startswith(BOX_SIDE):
        # A part of a group: its message stands inside of the group's box.
        after = [line.strip(BOX) for line in itertools.takewhile(lambda line: not BOX_END.match(line), after)]
    error["type"], error["message"], size = read_message(after, 0)
    return error, end + 1 + size


def read_boxed_line(before, line, frames):
    # A long path goes on in the next line.
    frame = BOX_FRAME.match(line) or (BOX_FRAME.match(before + line) if before.startswith("/") else None)
    code = BOX_CODE.match(line)
    if code and frames:
        frames[-1]["code"] = code.group("code").strip(BOX)[:CODE_CHARS]
    elif frame and not BOX_FRAME.match(before):
        function = (frame.group("function") or "")[:CODE_CHARS]
        frames.append({"file": frame.group("file"), "line": int(frame.group("line")), "function": function, "code": ""})
    elif frames and not frames[-1]["function"] and line.startswith("in "):
        frames[-1]["function"] = line[3:][:CODE_CHARS]


# Hosts that could not be reached


HOST = r"(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]{0,253})"
PORT = r"(?P<port>\d{1,5})"
REFUSED = [
    re.compile(form)
    for form in (
        r"host='" + HOST + r"', port=" + PORT,
        r"Failed to resolve '" + HOST + r"'",
        r"[Cc]ould(?: not|n't) resolve (?:host|proxy)(?: name)?:? ['\"]?" + HOST,
        r"Cannot connect to host " + HOST + r":" + PORT,
        r'could not translate host name "' + HOST + r'"',
        r'connection to server at "' + HOST + r'"(?: \([^)]{0,60}\))?, port ' + PORT + r" failed",
        r"Error -?\d+ connecting to " + HOST + r":" + PORT,
        r"\b" + HOST + r":" + PORT + r": \[Errno -?\d+\]",
        r"getaddrinfo (?:ENOTFOUND|EAI_AGAIN) " + HOST,
        r"Can't connect to (?:MySQL )?server on '" + HOST + r"(?::" + PORT + r")?'",
    )
]
TROUBLE = re.compile(r"(?i)connect|resol|unreachable|timed? ?out|refused|max retries|offline|download")
URL = re.compile(r"https?://" + HOST + r"(?::" + PORT + r")?")
OWN_HOSTS = ("localhost", "0.0.0.0", "127.0.0.1")


def refused_hosts(text):
    hosts = {}
    for line in text.split("\n"):
        line = line[:LINE_CHARS]
        if not TROUBLE.search(line) and "host" not in line and "[Errno" not in line:
            continue
        for form in REFUSED:
            note_hosts(form, line, hosts)
        if TROUBLE.search(line):
            note_hosts(URL, line, hosts, OWN_HOSTS)
    return sorted(hosts)[:ERRORS]


def note_hosts(form, line, hosts, but=()):
    for found in form.finditer(line):
        host, port = found.group("host").rstrip("."), found.groupdict().get("port")
        if host not in but:
            hosts["{}:{}".format(host, port) if port else host] = True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
