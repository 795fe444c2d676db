"""Byte-compiles trees of Python source so that equal sources give equal bytes.

usage: bytecode.py OUT ROOT...

Writes OUT/<path of the cache file>. Two partitions, each in a process of its own and in a fixed order: what marshal
writes depends on what the same process compiled before.
"""

import importlib._bootstrap_external as external
import importlib.util
import os
import subprocess
import sys

PARTS = 2
SKIP = {"tests", "test", "__pycache__", "node_modules"}


def sources(roots):
    found = []
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(f for f in folders if f not in SKIP)
            found += [os.path.join(folder, f) for f in files if f.endswith(".py")]
    return sorted(found)


def has_addresses(code):
    """Whether a set among the constants orders itself by the addresses of its members."""
    plain = (str, bytes, int, float, complex)
    for const in code.co_consts:
        if isinstance(const, frozenset) and not all(isinstance(m, plain) for m in const):
            return True
        if hasattr(const, "co_consts") and has_addresses(const):
            return True
    return False


def hold(value, held):
    """Takes a reference to all that `value` is made of, so that marshal notes every one as shared.

    It notes what has more than one reference; a name has another while any cache of the process remembers it, and
    which ones do depends on addresses.
    """
    held.append(value)
    if hasattr(value, "co_code"):
        for name in dir(value):
            if name.startswith("co_") and not callable(part := getattr(value, name)):
                hold(part, held)
    elif isinstance(value, (tuple, frozenset)):
        for part in value:
            hold(part, held)


def compile_part(out, part, roots):
    for number, path in enumerate(sources(roots)):
        if number % PARTS != part:
            continue
        try:
            with open(path, "rb") as file:
                data = file.read()
            loader = external.SourceFileLoader("<ringfence>", path)
            code = loader.source_to_code(data, path)
        except (SyntaxError, ValueError, UnicodeError, RecursionError, OSError):
            # Templates, and code for other versions: they stay as source.
            continue
        if has_addresses(code):
            continue
        held = []
        hold(code, held)
        pyc = external._code_to_hash_pyc(code, importlib.util.source_hash(data), False)
        target = out + importlib.util.cache_from_source(path, optimization="")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(pyc)


def main():
    if sys.argv[1] == "--part":
        sys.setrecursionlimit(5000)
        import warnings

        warnings.simplefilter("ignore")
        compile_part(sys.argv[3], int(sys.argv[2]), sys.argv[4:])
        return 0
    with open("/src/bytecode.py") as file:
        text = file.read()
    children = [
        subprocess.Popen([sys.executable, "-S", "-s", "-B", "-c", text, "--part", str(part)] + sys.argv[1:])
        for part in range(PARTS)
    ]
    return max([child.wait() for child in children])


sys.exit(main())
