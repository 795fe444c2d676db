"""Checks register here, and are run one after the other. Each prints one line of JSON."""

import json
import signal
import subprocess
import sys
import traceback

WEB = "https://web.clients.example"

# The longest that a check may take, in seconds.
PATIENCE = 30

_checks = []


def check(client, version):
    """Registers a function as a check of a client; what it returns is the line's detail."""

    def register(function):
        _checks.append((client, version, function))
        return function

    return register


def must_fail(kind, call):
    """What a call's exception says, which must be of this kind."""
    try:
        got = call()
    except kind as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"it was let through: {got!r}")


def command(*words, env=None, code=0):
    """What a program says, which must end with this code."""
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=PATIENCE)
    assert (done.returncode == 0) == (code == 0), f"{words}: exit {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout if code == 0 else done.stdout + done.stderr


def _late(_signal, _frame):
    raise TimeoutError(f"not within {PATIENCE} s")


def run():
    signal.signal(signal.SIGALRM, _late)
    for client, version, function in _checks:
        line = {"client": client, "version": version, "check": function.__name__, "ok": True, "detail": ""}
        signal.alarm(PATIENCE)
        try:
            line["detail"] = (function() or "")[:400]
        except BaseException:
            line["ok"], line["detail"] = False, traceback.format_exc()[-3000:]
        signal.alarm(0)
        print(json.dumps(line), flush=True)
    print(json.dumps({"done": len(_checks)}), flush=True)
    sys.stdout.flush()
