"""Tests of probe.py.

`probe_test.py` runs those that need nothing but an interpreter, which then plays the agent's.
`probe_test.py --venv FOLDER KIND...` runs those against real packages, with the interpreter of that environment.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
PROBE = os.path.join(HERE, "probe.py")
APPS = os.path.join(HERE, "..", "..", "..", "tests", "scenarios", "doctor", "apps")

sys.dont_write_bytecode = True
specification = importlib.util.spec_from_file_location("probe", PROBE)
probe = importlib.util.module_from_spec(specification)
specification.loader.exec_module(probe)


class Place:
    """A copy of an app, in which it may write, and the files of one run of the probe."""

    def __init__(self, app, python=sys.executable):
        self.folder = tempfile.mkdtemp()
        self.app = os.path.join(self.folder, "app")
        self.python = python
        shutil.copytree(os.path.join(APPS, app), self.app)

    def begin(self, **request):
        asked, told = os.path.join(self.folder, "request.json"), os.path.join(self.folder, "report.json")
        with open(asked, "w") as file:
            json.dump(dict({"mode": "start", "port": None, "patience": 30, "settle": 1}, **request), file)
        path = os.path.dirname(self.python) + os.pathsep + os.environ["PATH"]
        argv = [self.python, "-I", "-S", "-B", PROBE, asked, told]
        return subprocess.Popen(argv, cwd=self.app, env=dict(os.environ, HOME=self.folder, PATH=path))

    def report(self):
        with open(os.path.join(self.folder, "report.json")) as file:
            return json.load(file)

    def run(self, status=0, **request):
        began = time.monotonic()
        ended = self.begin(**request).wait()
        spent = time.monotonic() - began
        assert ended == status, ended
        assert spent < request.get("patience", 30) + 10, spent
        assert os.listdir(self.folder).count("report.json") == 1
        assert sorted(os.listdir(self.folder))[-2:] == ["report.json", "request.json"]
        return self.report()

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)


class ProbeCase(unittest.TestCase):
    maxDiff = None

    def place(self, app, python=sys.executable):
        place = Place(app, python)
        self.addCleanup(place.remove)
        return place

    def the_error(self, report, where=None):
        errors = [error for error in report["errors"] if where in (None, error["where"])]
        self.assertEqual(1, len(errors), json.dumps(report, indent=1))
        return errors[0]


class Programs(ProbeCase):
    def program(self, name, kind="script", **request):
        return self.place("programs").run(kind=kind, argv=[sys.executable, name], **request)

    def test_ends_well(self):
        report = self.program("fine.py")
        self.assertEqual(("settled", 0, None), (report["phase"], report["exit"], report["signal"]))
        self.assertEqual(([], "done\n"), (report["errors"], report["stdout"]))
        self.assertEqual("{}.{}.{}".format(*sys.version_info[:3]), report["python"])

    def test_fails(self):
        report = self.program("fails.py")
        self.assertEqual(1, report["exit"])
        error = self.the_error(report)
        self.assertEqual("RuntimeError", error["type"])
        self.assertEqual("the ledger is unreadable\nline two\n\nline four", error["message"])
        self.assertEqual("stderr", error["where"])
        self.assertEqual(["<module>", "read"], [frame["function"] for frame in error["frames"]])
        self.assertEqual(8, error["frames"][1]["line"])
        self.assertTrue(error["frames"][1]["file"].endswith("fails.py"))
        self.assertIn("raise RuntimeError(", error["frames"][1]["code"])
        self.assertEqual(["json.decoder.JSONDecodeError"], [earlier["type"] for earlier in error["chain"]])

    def test_does_not_parse(self):
        place = self.place("modules")
        report = place.run(kind="script", argv=[sys.executable, "ledger/broken.py"])
        error = self.the_error(report)
        self.assertEqual("SyntaxError", error["type"])
        self.assertEqual((1, "def broken(:"), (error["frames"][0]["line"], error["frames"][0]["code"]))

    def test_waits_for_input(self):
        for name in ("prompts.py", "prompts_in_thread.py", "prompts_in_loop.py"):
            with self.subTest(name):
                report = self.program(name, kind="cli")
                self.assertTrue(report["waits_for_input"])
                self.assertEqual((None, []), (report["exit"], report["errors"]))
                self.assertEqual(1 if name == "prompts.py" else 0, report["exit_at_eof"])

    def test_waits_for_input_unseen(self):
        place = self.place("programs")
        child = probe.Child([sys.executable, os.path.join(place.app, "prompts.py")], os.environ)
        self.addCleanup(child.end)
        self.addCleanup(setattr, probe, "system_call", probe.system_call)
        probe.system_call = lambda _pid, _thread: None
        while not child.said():
            time.sleep(0.05)
        self.assertTrue(child.reads_input())

    def test_lives(self):
        report = self.program("sleeps.py", kind="worker")
        self.assertEqual(("settled", None, None), (report["phase"], report["exit"], report["signal"]))
        self.assertFalse(report["waits_for_input"])
        self.assertEqual("waiting for work\n", report["stdout"])
        self.assertLess(report["seconds"], 8)

    def test_loads_longer_than_it_takes_to_settle(self):
        report = self.program("loads_long.py")
        self.assertEqual((1, "loaded, then failed\n"), (report["exit"], report["stderr"]))

    def test_dies_by_signal(self):
        report = self.program("dies.py")
        self.assertEqual((None, signal.SIGILL), (report["exit"], report["signal"]))

    def test_noise(self):
        report = self.program("noise.py")
        error = self.the_error(report)
        self.assertEqual(("ValueError", "after the noise"), (error["type"], error["message"]))
        self.assertIn("red \ufffd ", report["stderr"])
        self.assertNotIn("\x1b", report["stderr"])
        self.assertLessEqual(len(report["stdout"]), probe.REPORTED_CHARS)

    def test_leaves_nobody_behind(self):
        place = self.place("programs")
        pids = os.path.join(place.app, "pids")
        report = place.run(kind="worker", argv=[sys.executable, "stubborn.py"], env={"PIDS": pids})
        self.assertEqual("settled", report["phase"])
        with open(pids) as file:
            noted = file.read().split()
        self.assertEqual(5, len(noted))
        for pid in noted:
            self.assertFalse(os.path.exists("/proc/" + pid), pid)

    def test_is_not_there(self):
        report = self.place("programs").run(kind="script", argv=["/nowhere/program"])
        self.assertEqual("spawn", report["phase"])
        error = self.the_error(report)
        self.assertEqual(("FileNotFoundError", "spawn"), (error["type"], error["where"]))

    def test_module_is_not_there(self):
        error = self.the_error(self.place("programs").run(kind="script", argv=[sys.executable, "-m", "no_such"]))
        self.assertEqual(("ModuleNotFoundError", "No module named no_such"), (error["type"], error["message"]))


class Servers(ProbeCase):
    def server(self, name, *words, **request):
        return self.place("servers").run(argv=[sys.executable, name] + list(words), **request)

    def test_pages(self):
        for address in ("127.0.0.1", "0.0.0.0", "::1", "::"):
            with self.subTest(address):
                report = self.server("pages.py", address, "0", kind="flask")
                self.assertEqual(("settled", True), (report["phase"], report["answered"]))
                self.assertEqual(1, len(report["listening"]))
                statuses = [(request["path"], request["status"]) for request in report["requests"]]
                self.assertEqual([("/", 302), ("/first", 500)], statuses)
                self.assertEqual("KeyError", self.the_error(report)["type"])

    def test_expected_port(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        report = self.server("pages.py", "127.0.0.1", str(port), kind="flask", port=port)
        self.assertEqual([port], report["listening"])
        self.assertLess(report["seconds"], 10)

    def test_other_port(self):
        report = self.server("pages.py", "127.0.0.1", "0", kind="starlette", port=1)
        self.assertEqual(("settled", True), (report["phase"], report["answered"]))

    def test_never_answers(self):
        report = self.server("silent.py", kind="flask", patience=3)
        self.assertEqual(("listen", False, None), (report["phase"], report["answered"], report["exit"]))
        self.assertEqual(1, len(report["listening"]))

    def test_never_ends_its_answer(self):
        report = self.server("dripping.py", kind="flask", patience=3)
        self.assertEqual((False, None, None), (report["answered"], report["exit"], report["signal"]))

    def test_nonsense(self):
        report = self.server("nonsense.py", kind="flask")
        self.assertEqual(("settled", True), (report["phase"], report["answered"]))
        self.assertEqual([{"path": "/", "status": 302}], report["requests"])

    def test_never_listens(self):
        report = self.place("programs").run(kind="fastapi", argv=[sys.executable, "sleeps.py"], patience=3)
        self.assertEqual(("spawn", False), (report["phase"], report["answered"]))

    def test_asks_before_it_listens(self):
        report = self.place("programs").run(kind="streamlit", argv=[sys.executable, "prompts.py"])
        self.assertEqual(("spawn", True), (report["phase"], report["waits_for_input"]))

    def test_stream(self):
        report = self.server("stream.py", kind="streamlit")
        self.assertEqual("settled", report["phase"], report["stderr"])
        shown = self.the_error(report, "session")
        self.assertEqual(("ValueError", "out of ink"), (shown["type"], shown["message"]))
        self.assertEqual(["f()", "raise ValueError"], [frame["code"] for frame in shown["frames"]])

    def test_tools(self):
        report = self.server("tools.py", kind="mcp")
        self.assertEqual(("settled", True), (report["phase"], report["answered"]))
        self.assertFalse(report["waits_for_input"])

    def test_no_tools(self):
        report = self.place("programs").run(kind="mcp", argv=[sys.executable, "fine.py"])
        self.assertEqual(("spawn", False, 0), (report["phase"], report["answered"], report["exit"]))


class Imports(ProbeCase):
    def imports(self, *names, **request):
        report = self.place("modules").run(mode="imports", modules=names, **request)
        self.assertEqual(list(names), [one["name"] for one in report["imports"]])
        return report["imports"]

    def test_found(self):
        for one in self.imports("ledger", "ledger.BALANCE", "ledger.pages", "os.path.join", "queue.HERE")[:2]:
            self.assertEqual((True, None, False), (one["ok"], one["error"], one["missing_attribute"]))
        self.assertTrue(self.imports("queue.HERE")[0]["ok"])

    def test_missing(self):
        attribute, inner, package, module = self.imports(
            "ledger.nothing", "ledger.pages", "ledger.lacking", "no_such.part.Name"
        )
        self.assertTrue(attribute["missing_attribute"])
        self.assertEqual(("ImportError", []), (attribute["error"]["type"], attribute["error"]["frames"]))
        # What is lacking is lacking further in.
        self.assertFalse(inner["missing_attribute"])
        self.assertIn("nothing_there", inner["error"]["message"])
        self.assertTrue(inner["error"]["frames"][0]["file"].endswith("pages.py"))
        self.assertEqual("ModuleNotFoundError", package["error"]["type"])
        self.assertEqual("import no_such_package.sub", package["error"]["frames"][-1]["code"])
        self.assertEqual("No module named 'no_such'", module["error"]["message"])

    def test_broken(self):
        broken, no_name = self.imports("ledger.broken", "not a name; print()")
        self.assertEqual(("SyntaxError", 1), (broken["error"]["type"], broken["error"]["frames"][-1]["line"]))
        self.assertEqual("ValueError", no_name["error"]["type"])

    def test_ends_the_interpreter(self):
        crashes, before, leaves, exits, after = self.imports("crashes", "ledger", "leaves", "exits", "ledger.BALANCE")
        self.assertEqual((signal.SIGSEGV, "Killed"), (crashes["signal"], crashes["error"]["type"]))
        self.assertIn("read_nothing", [frame["function"] for frame in crashes["error"]["frames"]])
        self.assertEqual((3, None, "Exited"), (leaves["exit"], leaves["signal"], leaves["error"]["type"]))
        self.assertEqual(("SystemExit", "usage: no"), (exits["error"]["type"], exits["error"]["message"]))
        self.assertTrue(before["ok"] and after["ok"])

    def test_hangs(self):
        before, hangs, after = self.imports("ledger", "hangs", "ledger.BALANCE", patience=3)
        self.assertTrue(before["ok"])
        self.assertEqual(["Overdue", "NotTried"], [one["error"]["type"] for one in (hangs, after)])


class Reports(ProbeCase):
    def test_request_that_says_nothing(self):
        for request in ({"mode": "dance"}, {"kind": "teapot", "argv": ["true"]}, {"kind": "script"}):
            with self.subTest(request):
                report = self.place("programs").run(status=1, **request)
                self.assertIn("ValueError", report["probe_error"])

    def test_no_report(self):
        argv = [sys.executable, "-I", "-S", "-B", PROBE, "/nowhere/request", "/nowhere/report"]
        self.assertEqual(2, subprocess.run(argv, stderr=subprocess.DEVNULL).returncode)
        self.assertEqual(2, subprocess.run(argv[:-1], stderr=subprocess.DEVNULL).returncode)

    def test_told_to_end(self):
        place = self.place("programs")
        began = place.begin(kind="worker", argv=[sys.executable, "sleeps.py"], settle=20)
        while not os.path.exists("/proc/{0}/task/{0}/children".format(began.pid)) or not children(began.pid):
            time.sleep(0.05)
        time.sleep(0.5)
        left = children(began.pid)
        began.terminate()
        self.assertEqual(1, began.wait(10))
        report = place.report()
        self.assertIn("Interrupted", report["probe_error"])
        self.assertEqual("waiting for work\n", report["stdout"])
        self.assertFalse(any(os.path.exists("/proc/" + pid) for pid in left))


def children(pid):
    with open("/proc/{0}/task/{0}/children".format(pid)) as file:
        return file.read().split()


class Texts(unittest.TestCase):
    maxDiff = None

    def errors(self, *lines):
        return probe.errors_in("\n".join(lines), "stderr")

    def kinds(self, errors):
        return [(error["type"], error["message"]) for error in errors]

    def test_prefix_of_the_header(self):
        errors = self.errors(
            "ERROR:    Traceback (most recent call last):",
            '  File "/srv/main.py", line 7, in lifespan',
            "    await connect()",
            "          ^^^^^^^^^",
            "OSError: [Errno 111] Connect call failed ('127.0.0.1', 5432)",
            "",
            "ERROR:    Application startup failed. Exiting.",
        )
        self.assertEqual([("OSError", "[Errno 111] Connect call failed ('127.0.0.1', 5432)")], self.kinds(errors))
        expected = {"file": "/srv/main.py", "line": 7, "function": "lifespan", "code": "await connect()"}
        self.assertEqual([expected], errors[0]["frames"])

    def test_prefix_of_every_line(self):
        errors = self.errors(
            "worker-1  | Traceback (most recent call last):",
            'worker-1  |   File "/srv/main.py", line 7, in <module>',
            "worker-1  | ledger.Empty",
            "worker-2  | ready",
        )
        self.assertEqual([("ledger.Empty", "")], self.kinds(errors))

    def test_message_that_begins_with_blank_lines(self):
        errors = self.errors(
            "Traceback (most recent call last):",
            '  File "/srv/main.py", line 1, in <module>',
            "    import ledger",
            "ImportError: ",
            "",
            "IMPORTANT: read this",
            "",
            "Its parts do not fit.",
            "",
        )
        self.assertEqual("IMPORTANT: read this\n\nIts parts do not fit.", errors[0]["message"])

    def test_message_ends_where_a_log_goes_on(self):
        errors = self.errors(
            "2030-01-01 10:00:00.000 Uncaught app exception",
            "Traceback (most recent call last):",
            '  File "/srv/main.py", line 1, in <module>',
            "    Settings()",
            "pydantic_core.ValidationError: 1 validation error for Settings",
            "ledger_key",
            "  Field required [type=missing]",
            "",
            "2030-01-01 10:00:01.000 ready",
        )
        expected = "1 validation error for Settings\nledger_key\n  Field required [type=missing]"
        self.assertEqual([("pydantic_core.ValidationError", expected)], self.kinds(errors))

    def test_chain(self):
        part = ("Traceback (most recent call last):", '  File "a.py", line 1, in f', "    g()")
        then = ("", "and so on")
        lines = part + ("KeyError: 'a'", "", probe.LINKS[0], "") + part + ("ValueError: b", "", probe.LINKS[1], "")
        errors = self.errors(*lines + part + ("RuntimeError: c",) + then + part + ("TypeError: d",))
        self.assertEqual([("RuntimeError", "c"), ("TypeError", "d")], self.kinds(errors))
        self.assertEqual([("KeyError", "'a'"), ("ValueError", "b")], self.kinds(errors[0]["chain"]))
        self.assertEqual([], errors[1]["chain"])

    def test_group(self):
        errors = self.errors(
            "  + Exception Group Traceback (most recent call last):",
            '  |   File "a.py", line 2, in <module>',
            "  |     raise group",
            "  | ExceptionGroup: two (2 sub-exceptions)",
            "  +-+---------------- 1 ----------------",
            "    | Traceback (most recent call last):",
            '    |   File "a.py", line 5, in one',
            "    |     {}[1]",
            "    | KeyError: 1",
            "    | ",
            "    | During handling of the above exception, another exception occurred:",
            "    | ",
            "    | Traceback (most recent call last):",
            '    |   File "a.py", line 7, in one',
            "    | ValueError: first",
            "    | of two lines",
            "    +---------------- 2 ----------------",
            "    | TypeError: never raised",
            "    +------------------------------------",
            "bye",
        )
        expected = [("ExceptionGroup", "two (2 sub-exceptions)"), ("ValueError", "first\nof two lines")]
        self.assertEqual(expected, self.kinds(errors))
        self.assertEqual([("KeyError", "1")], self.kinds(errors[1]["chain"]))

    def test_loguru(self):
        errors = self.errors(
            "2030-01-01 10:00:00.000 | ERROR    | __main__:<module>:9 - no",
            "Traceback (most recent call last):",
            "",
            '> File "/srv/main.py", line 7, in <module>',
            "    f(0)",
            "    \u2514 <function f at 0x7f>",
            "",
            '  File "/srv/main.py", line 4, in f',
            "    return 1 / x",
            "               \u2514 0",
            "",
            "ZeroDivisionError: division by zero",
        )
        self.assertEqual([("ZeroDivisionError", "division by zero")], self.kinds(errors))
        self.assertEqual(["f(0)", "return 1 / x"], [frame["code"] for frame in errors[0]["frames"]])

    def test_rich(self):
        errors = self.errors(
            "\u256d" + "\u2500" * 20 + " Traceback (most recent call last) " + "\u2500" * 20 + "\u256e",
            "\u2502 /srv/main.py:7 in <module>                    \u2502",
            "\u2502                                               \u2502",
            "\u2502   6                                           \u2502",
            "\u2502 \u2771 7 f(0)                                      \u2502",
            "\u2502                                               \u2502",
            "\u2502 /srv/a/very/long/path/to/the/ledger/pages.py:4 \u2502",
            "\u2502 in f                                          \u2502",
            "\u2502                                               \u2502",
            "\u2502 \u2771 4 \u2502   return 1 / x                          \u2502",
            "\u2570" + "\u2500" * 40 + "\u256f",
            "ZeroDivisionError: division by zero",
        )
        self.assertEqual([("ZeroDivisionError", "division by zero")], self.kinds(errors))
        frames = [(frame["line"], frame["function"]) for frame in errors[0]["frames"]]
        self.assertEqual([(7, "<module>"), (4, "f")], frames)
        self.assertEqual("f(0)", errors[0]["frames"][0]["code"])

    def test_rich_group(self):
        line = "\u2500" * 20
        errors = self.errors(
            "\u256d" + line + " Traceback (most recent call last) " + line + "\u256e",
            "\u2502 /srv/main.py:7 in <module>                          \u2502",
            "\u2570" + line * 2 + "\u256f",
            "ExceptionGroup: one (1 sub-exception)",
            "",
            "\u256d" + line + " Sub-exception #1 " + line + "\u256e",
            "\u2502 \u256d" + line + " Traceback (most recent call last) " + line + "\u256e \u2502",
            "\u2502 \u2502 /srv/a/very/long/path/to/the/led          \u2502 \u2502",
            "\u2502 \u2502 ger/pages.py:4 in f                       \u2502 \u2502",
            "\u2502 \u2502 \u2771 4 \u2502   return 1 / x                     \u2502 \u2502",
            "\u2502 \u2570" + line * 2 + "\u256f \u2502",
            "\u2502 ValueError: a                                       \u2502",
            "\u2502 b                                                   \u2502",
            "\u2570" + line * 2 + "\u256f",
            "",
            probe.LINKS[1],
            "",
            "\u256d" + line + " Traceback (most recent call last) " + line + "\u256e",
            "\u2502 /srv/main.py:9 in <module>                          \u2502",
            "\u2570" + line * 2 + "\u256f",
            "RuntimeError: outer",
        )
        self.assertEqual([("ExceptionGroup", "one (1 sub-exception)"), ("RuntimeError", "outer")], self.kinds(errors))
        part = errors[1]["chain"][0]
        self.assertEqual(("ValueError", "a\nb"), (part["type"], part["message"]))
        expected = {
            "file": "/srv/a/very/long/path/to/the/ledger/pages.py",
            "line": 4,
            "function": "f",
            "code": "return 1 / x",
        }
        self.assertEqual([expected], part["frames"])

    def test_rich_without_sides(self):
        rule = "\u2500" * 30
        errors = self.errors(
            rule + " Traceback (most recent call last) " + rule,
            "  /srv/main.py:3 in <module>",
            "",
            "    2 ",
            "  \u2771 3 raise ValueError('no')",
            rule * 3,
            "ValueError: no",
        )
        self.assertEqual([("ValueError", "no")], self.kinds(errors))

    def test_repeated_frames_and_bounds(self):
        frame = ('  File "a.py", line 2, in f', "    f()")
        errors = self.errors(
            "Traceback (most recent call last):",
            *frame * 40 + ("  [Previous line repeated 900 more times]", "RecursionError: " + "x" * 5000),
        )
        self.assertEqual(probe.FRAMES, len(errors[0]["frames"]))
        self.assertEqual(probe.ERROR_MESSAGE_CHARS, len(errors[0]["message"]))

    def test_what_the_interpreter_ignored(self):
        part = ("Traceback (most recent call last):", '  File "a.py", line 1, in f', "KeyError: 1")
        self.assertEqual([], self.errors("Exception ignored in: <function f at 0x7f>", *part))
        self.assertEqual(1, len(self.errors("Exception in thread Thread-1 (f):", *part + part)))

    def test_no_error(self):
        for text in ("", "\n\n", "Traceback (most recent call last)", 'File "a.py", line 3', '  File "a.py", line 3\n'):
            self.assertEqual([], probe.errors_in(text, "stderr"), text)

    def test_text_cut_off(self):
        errors = self.errors("Traceback (most recent call last):", '  File "a.py", line 1, in f')
        self.assertEqual([("", "")], self.kinds(errors))

    def test_hostile_texts_are_read_in_time(self):
        size = probe.HEAD_BYTES + probe.TAIL_BYTES
        pieces = (
            "\x1b[",
            "\x1b]",
            "Traceback (most recent call last):\n",
            "Traceback (most recent call last):",
            '  File "a", line 1, in f\n',
            "+-",
            "| ",
            "a:1: [Errno",
            "https://connect",
            "a.b:",
            "host='a', port=1",
            "Traceback (most recent call last):\nA: b\n\n",
            "Fatal Python error: x\n",
            "connect a-a.",
            'Traceback (most recent call last):\n  File "a", line 1, in f\nA: b\n\n\nc\n\n',
            "Traceback (most recent call last):\nA: b\n\n" + probe.LINKS[0] + "\n\n",
            "Traceback (most recent call last) \u2500\u2500\n",
            "\r",
            " ",
            "\n",
            "0",
        )
        for piece in pieces:
            with self.subTest(piece):
                began = time.monotonic()
                text = probe.clean(piece * (size // len(piece)))
                probe.errors_in(text, "stderr")
                probe.refused_hosts(text)
                self.assertLess(time.monotonic() - began, 2)

    def test_refused_hosts(self):
        text = "\n".join(
            (
                "ConnectionError: HTTPSConnectionPool(host='api.example.com', port=443): Max retries",
                "aiohttp: Cannot connect to host vectors.example.com:6333 ssl:default",
                'could not translate host name "db" to address',
                "Error 111 connecting to localhost:6379. Connection refused.",
                "mongo.example.com:27017: [Errno -3] Temporary failure in name resolution",
                "We couldn't connect to 'https://models.example.com' to load the files",
                'connection to server at "127.0.0.1", port 5432 failed: Connection refused',
                "Connect to http://localhost:8000 or read https://docs.example.com",
                "nothing here: https://unrelated.example.com",
            )
        )
        expected = [
            "127.0.0.1:5432",
            "api.example.com:443",
            "db",
            "docs.example.com",
            "localhost:6379",
            "models.example.com",
            "mongo.example.com:27017",
            "vectors.example.com:6333",
        ]
        self.assertEqual(expected, probe.refused_hosts(text))

    def test_clean(self):
        self.assertEqual("a\nb\nc\td", probe.clean("a\r\nb\rc\x00\t\x1b[1;31md\x1b[0m\x1b]0;title\x07\x9b"))
        json.dumps(probe.clean("\ud800")).encode("ascii")
        self.assertEqual("", probe.clean("\ud800"))

    def test_tape(self):
        tape = probe.Tape()
        for at in range(1000):
            tape.add(b"%06d\n" % at * 100)
        text = tape.text()
        self.assertTrue(text.startswith("000000\n") and text.endswith("000999\n"))
        self.assertIn("bytes left out", text)
        self.assertLess(len(tape.data()), probe.HEAD_BYTES + probe.TAIL_BYTES + 1)
        short = probe.Tape()
        short.add(b"x" * (probe.HEAD_BYTES + 5))
        self.assertEqual("x" * (probe.HEAD_BYTES + 5), short.text())


class ProtocolBuffers(unittest.TestCase):
    def test_fields(self):
        data = b"\x08\x96\x01" + b"\x12\x02hi" + b"\x1d\x01\x00\x00\x00" + b"\x21\x02" + b"\x00" * 7 + b"\xa2\x01\x00"
        self.assertEqual([(1, 150), (2, b"hi"), (3, 1), (4, 2), (20, b"")], list(probe.fields(data)))
        self.assertEqual(b"hi", probe.field(data, 2))
        self.assertIsNone(probe.field(data, 1, 1))
        self.assertIsNone(probe.field(data, 9))

    def test_malformed(self):
        for data in (b"\x08", b"\x12\x05hi", b"\x0b", b"\xff" * 12, b"\x1d\x00"):
            with self.subTest(data), self.assertRaises(probe.Malformed):
                list(probe.fields(data))


# With real packages: by kind, what starts it, its port, and what has to be found: where, type and message of errors.
# The log is stdout or stderr.

LACKS_KEY = ("KeyError", "'LEDGER_KEY'")
HEADLESS = {"STREAMLIT_SERVER_HEADLESS": "true", "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false"}

CASES = {
    "streamlit": (
        (["streamlit", "run", "app.py"], 8501, {("log",) + LACKS_KEY, ("session",) + LACKS_KEY}),
        (["streamlit", "run", "fine.py"], 8501, set()),
        (["streamlit", "run", "fine.py", "--server.baseUrlPath", "ledger"], 8501, set()),
        (["streamlit", "run", "unparsable.py"], 8501, {("session", "SyntaxError", None)}),
    ),
    "fastapi": (
        (["uvicorn", "main:app"], 8000, {("stderr", "sqlite3.OperationalError", "no such table: balances")}),
        (["uvicorn", "nowhere:app"], 8000, {("stderr", "ImportError", None)}),
    ),
    "flask": ((["flask", "run"], 5000, {("stderr", "jinja2.exceptions.TemplateNotFound", "ledger.html")}),),
    "gradio": ((["python", "app.py"], 7860, set()),),
    "chainlit": (
        (["chainlit", "run", "app.py", "--headless"], 8000, {("log", "FileNotFoundError", None)}),
        (["chainlit", "run", "fine.py", "--headless"], 8000, set()),
    ),
    "panel": ((["panel", "serve", "app.py"], 5006, {("stderr", "KeyError", "'today'")}),),
    "dash": ((["python", "app.py"], 8050, {("stderr", "IndexError", "list index out of range")}),),
    "nicegui": ((["python", "main.py"], 8080, {("stderr", "TypeError", None)}),),
    "mcp": ((["python", "server.py"], None, set()),),
}


class WithPackages(ProbeCase):
    def __init__(self, venv, kind, argv, port, expected):
        super().__init__("probe_finds")
        self.python = os.path.join(venv, "bin", "python")
        self.kind, self.argv, self.port, self.expected = kind, argv, port, expected

    def __str__(self):
        return "{}: {}".format(self.kind, " ".join(self.argv))

    def probe_finds(self):
        place = self.place(self.kind, self.python)
        report = place.run(kind=self.kind, argv=self.argv, port=self.port, env=HEADLESS, patience=60, settle=2)
        shown = json.dumps(report, indent=1)
        for where, kind, message in self.expected:
            self.assertTrue(any(fits(error, where, kind, message) for error in report["errors"]), shown)
        if not self.expected:
            self.assertEqual([], report["errors"], shown)
        if self.argv != ["uvicorn", "nowhere:app"]:
            self.assertEqual(("settled", True), (report["phase"], report["answered"]), shown)


def fits(error, where, kind, message):
    places = ("stdout", "stderr") if where == "log" else (where,)
    return error["where"] in places and kind == error["type"] and message in (None, error["message"])


def with_packages(venv, kinds):
    return unittest.TestSuite(WithPackages(venv, kind, *case) for kind in kinds for case in CASES[kind])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--venv"]:
        suite = with_packages(os.path.abspath(sys.argv[2]), sys.argv[3:])
        sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
    unittest.main()
