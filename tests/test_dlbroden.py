"""dlbroden.sh against a small zip on this machine: fresh, again, interrupted, damaged, and with each download
tool.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "dlbroden.sh"
TOOLS = [
    "cat",
    "cut",
    "dirname",
    "mkdir",
    "mv",
    "rm",
    "rmdir",
    "sed",
    "sha256sum",
    "shasum",
    "tail",
    "tr",
    "wc",
    "env",
]

HAVE = {tool for tool in ("sh", "dash", "bash", "unzip", "curl", "wget") if shutil.which(tool)}
pytestmark = pytest.mark.skipif(
    not {"sh", "unzip"} <= HAVE or not {"curl", "wget"} & HAVE,
    reason="dlbroden.sh needs sh, unzip, and curl or wget",
)


def make_zip(top="broden1_224/", images=7) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        z.writestr(f"{top}label.csv", "number,name,category,frequency,coverage,syns\n1,wall,object,9,1.0,\n")
        for i in range(images):
            z.writestr(f"{top}images/ade20k/{i}.jpg", os.urandom(20_000))
    return file.getvalue()


class Server:
    """A file server with ranges that can be told to hang up early, or to have no ranges or lengths."""

    def __init__(self):
        self.data, self.requests, self.cut, self.ranges, self.length = make_zip(), [], [], True, True
        self.pause, outer = threading.Event(), self
        self.pause.set()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                if self.path != "/broden.zip":
                    return self.send_error(404)
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if outer.ranges else None
                start = int(asked[1]) if asked else 0
                if body:
                    outer.requests.append(start)
                if start >= len(outer.data):
                    self.send_response(416)
                    return self.end_headers()
                self.send_response(206 if asked else 200)
                if outer.length:
                    self.send_header("Content-Length", str(len(outer.data) - start))
                if asked:
                    self.send_header(
                        "Content-Range", f"bytes {start}-{len(outer.data) - 1}/{len(outer.data)}"
                    )
                self.end_headers()
                if body:
                    data = outer.data[start : outer.cut.pop(0) if outer.cut else None]
                    if not outer.pause.is_set():
                        self.wfile.write(data[:70_000])
                        self.wfile.flush()
                        outer.pause.wait(30)
                        return
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/broden.zip"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def run(tmp_path, server):
    """Run the script with data in tmp_path/data; returns (exit status, output)."""

    def run(*arguments, sh="sh", path=None, **environment):
        env = clean_environment(tmp_path, server) | environment | ({"PATH": str(path)} if path else {})
        done = subprocess.run(
            [shutil.which(sh), SCRIPT, *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def clean_environment(tmp_path, server) -> dict[str, str]:
    ours = {"NEURONYM_DATA": str(tmp_path / "data"), "NEURONYM_BRODEN_URL": server.url}
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("NEURONYM_") and "proxy" not in key.lower()
    } | ours


def path_with(folder, *tools):
    """A folder to use as PATH that holds a shell's everyday tools and the given ones."""
    folder.mkdir()
    for tool in (*TOOLS, *tools):
        if shutil.which(tool):
            (folder / tool).symlink_to(shutil.which(tool))
    return folder


def complete(tmp_path, data) -> bool:
    """Broden is there, byte by byte, and nothing is left beside it."""
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        want = {re.sub("^broden1_224/", "", name): z.read(name) for name in z.namelist()}
    folder = tmp_path / "data" / "broden"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    left = {str(path.relative_to(tmp_path / "data")) for path in (tmp_path / "data").glob("*")}
    return (
        found == want
        and left == {"broden", "downloads"}
        and not list((tmp_path / "data/downloads").iterdir())
    )


@pytest.mark.parametrize("sh", ["sh", "dash", "bash"])
def test_fresh_then_again(run, server, tmp_path, sh):
    if sh not in HAVE:
        pytest.skip(f"{sh} is not installed")
    status, output = run(sh=sh)
    assert status == 0 and complete(tmp_path, server.data), output
    assert output.splitlines()[-1] == f"dlbroden: done: Broden is at {tmp_path}/data/broden"
    assert server.requests == [0]
    status, output = run(sh=sh)
    assert (status, output) == (0, f"dlbroden: Broden is at {tmp_path}/data/broden already; nothing to do\n")
    assert server.requests == [0]


@pytest.mark.parametrize("tool", ["curl", "wget"])
def test_each_tool(run, server, tmp_path, tool):
    if tool not in HAVE:
        pytest.skip(f"{tool} is not installed")
    path = path_with(tmp_path / "bin", "unzip", tool)
    server.cut = [50_000]
    status, output = run(path=path)
    assert status == 0 and complete(tmp_path, server.data), output
    assert server.requests == [0, 50_000]
    assert (
        "interrupted after 50000 bytes" in output
        and f"continuing after 50000 of {len(server.data)} bytes" in output
    )


@pytest.mark.parametrize("tool", ["curl", "wget"])
def test_partial_file_of_an_earlier_run_is_continued(run, server, tmp_path, tool):
    if tool not in HAVE:
        pytest.skip(f"{tool} is not installed")
    (tmp_path / "data/downloads").mkdir(parents=True)
    (tmp_path / "data/downloads/broden1_224.zip.part").write_bytes(server.data[:12_345])
    status, output = run(path=path_with(tmp_path / "bin", "unzip", tool))
    assert status == 0 and complete(tmp_path, server.data) and server.requests == [12_345], output


def test_whole_partial_file_is_not_asked_for_again(run, server, tmp_path):
    (tmp_path / "data/downloads").mkdir(parents=True)
    (tmp_path / "data/downloads/broden1_224.zip.part").write_bytes(server.data)
    status, output = run()
    assert status == 0 and complete(tmp_path, server.data) and server.requests == [], output


def test_downloaded_zip_is_used(run, server, tmp_path):
    (tmp_path / "data/downloads").mkdir(parents=True)
    (tmp_path / "data/downloads/broden1_224.zip").write_bytes(server.data)
    status, output = run()
    assert status == 0 and complete(tmp_path, server.data) and server.requests == [], output


def test_partial_file_of_something_longer_is_dropped(run, server, tmp_path):
    (tmp_path / "data/downloads").mkdir(parents=True)
    (tmp_path / "data/downloads/broden1_224.zip.part").write_bytes(b"x" * (len(server.data) + 1))
    status, output = run()
    assert status == 0 and complete(tmp_path, server.data) and "starting again" in output


@pytest.mark.parametrize("tool", ["curl", "wget"])
@pytest.mark.parametrize("ranges, length", [(False, True), (True, False), (False, False)])
def test_plainer_servers(run, server, tmp_path, tool, ranges, length):
    if tool not in HAVE:
        pytest.skip(f"{tool} is not installed")
    server.ranges, server.length = ranges, length
    (tmp_path / "data/downloads").mkdir(parents=True)
    (tmp_path / "data/downloads/broden1_224.zip.part").write_bytes(server.data[:500])
    status, output = run(path=path_with(tmp_path / "bin", "unzip", tool))
    assert status == 0 and complete(tmp_path, server.data), output
    assert length or "the server does not announce a length" in output


def test_server_that_never_gets_on(run, server, tmp_path):
    server.cut = [100, 100, 100]
    status, output = run()
    assert status == 1 and "run ./dlbroden.sh again to continue" in output
    assert (tmp_path / "data/downloads/broden1_224.zip.part").read_bytes() == server.data[:100]
    assert not (tmp_path / "data/broden").exists()
    server.cut = []
    status, output = run()
    assert status == 0 and complete(tmp_path, server.data), output


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_killed_run_is_continued(run, server, tmp_path, how):
    part, lock = (tmp_path / "data/downloads" / name for name in ("broden1_224.zip.part", "broden.lock"))
    server.pause.clear()
    process = subprocess.Popen(
        ["sh", SCRIPT],
        env=clean_environment(tmp_path, server),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # tests in the background of a shell inherit that it is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(1000):
        if part.exists() and part.stat().st_size:
            break
        time.sleep(0.01)
    os.killpg(process.pid, how)
    process.wait(timeout=30)
    server.pause.set()
    have = part.stat().st_size
    assert 0 < have < len(server.data) and lock.exists() == (how == signal.SIGKILL)
    status, output = run()
    assert status == 0 and complete(tmp_path, server.data) and server.requests == [0, have], output


def test_server_down(run, server, tmp_path):
    server.close()
    (tmp_path / "data/downloads").mkdir(parents=True)
    (tmp_path / "data/downloads/broden1_224.zip.part").write_bytes(b"kept")
    status, output = run()
    assert status == 1 and f"could not download {server.url}; run ./dlbroden.sh again" in output
    assert [path.name for path in (tmp_path / "data/downloads").iterdir()] == ["broden1_224.zip.part"]
    assert (tmp_path / "data/downloads/broden1_224.zip.part").read_bytes() == b"kept"


@pytest.mark.parametrize("tool", ["curl", "wget"])
def test_wrong_address(run, server, tmp_path, tool):
    if tool not in HAVE:
        pytest.skip(f"{tool} is not installed")
    status, output = run(
        path=path_with(tmp_path / "bin", "unzip", tool), NEURONYM_BRODEN_URL=server.url + "x"
    )
    assert status == 1 and "could not download" in output and not (tmp_path / "data/broden").exists()


def test_checksum(run, server, tmp_path):
    status, output = run(NEURONYM_BRODEN_SHA256="ab" * 32)
    assert status == 1 and "not " + "ab" * 32 + " as NEURONYM_BRODEN_SHA256 says" in output
    assert [path.name for path in (tmp_path / "data/downloads").iterdir()] == ["broden1_224.zip.rejected"]
    assert not (tmp_path / "data/broden").exists()
    (tmp_path / "data/downloads/broden1_224.zip.rejected").unlink()
    status, output = run(NEURONYM_BRODEN_SHA256=hashlib.sha256(server.data).hexdigest().upper())
    assert status == 0 and complete(tmp_path, server.data), output


def with_member(name, kind=0, content=b"/etc/passwd") -> bytes:
    """A small Broden with one member more, of a kind of Unix's."""
    file = io.BytesIO(make_zip())
    with zipfile.ZipFile(file, "a") as z:
        member = zipfile.ZipInfo(name)
        member.create_system, member.external_attr = 3, (kind | 0o666) << 16
        z.writestr(member, content)
    return file.getvalue()


@pytest.mark.parametrize("sh", ["sh", "dash", "bash"])
@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("broden1_224/images/out", stat.S_IFLNK, "holds a link or a device, which Broden does not: lrw"),
        ("broden1_224/images/near.jpg", stat.S_IFLNK, "holds a link or a device"),
        ("link\nbroden1_224/images/x", stat.S_IFLNK, "holds a link or a device"),
        ("broden1_224/images/pipe.jpg", stat.S_IFIFO, "holds a link or a device"),
        ("broden1_224/images/disk.jpg", stat.S_IFBLK, "holds a link or a device"),
        ("../out.jpg", stat.S_IFREG, "holds a path out of its folder: ../out.jpg"),
        ("broden1_224/images/../../../out.jpg", stat.S_IFREG, "holds a path out of its folder"),
        ("/tmp/out.jpg", stat.S_IFREG, "holds a path out of its folder: /tmp/out.jpg"),
        ("C:/out.jpg", stat.S_IFREG, "holds a path out of its folder: C:/out.jpg"),
    ],
)
def test_what_leads_out_of_the_folder_is_refused(run, server, tmp_path, sh, name, kind, message):
    if sh not in HAVE:
        pytest.skip(f"no {sh} here")
    server.data = with_member(name, kind)
    status, output = run(sh=sh)
    assert status == 1 and message in output and "broden1_224.zip.rejected" in output
    assert sorted(path.name for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".csv")) == []
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["downloads"]


@pytest.mark.parametrize(
    "limit, message",
    [
        ({"NEURONYM_BRODEN_FILES": "7"}, "the zip has 8 files, more than 7, which NEURONYM_BRODEN_FILES"),
        (
            {"NEURONYM_BRODEN_BYTES": "140000"},
            "bytes, more than 140000, which NEURONYM_BRODEN_BYTES can raise",
        ),
    ],
)
def test_no_more_is_unpacked_than_allowed(run, server, tmp_path, limit, message):
    status, output = run(**limit)
    assert status == 1 and message in output and not (tmp_path / "data/broden").exists()
    (tmp_path / "data/downloads/broden1_224.zip.rejected").unlink()
    limit = {name: f"{int(value) + 1000}" for name, value in limit.items()}
    status, output = run(**limit)
    assert status == 0 and complete(tmp_path, server.data), output
    assert hashlib.sha256(server.data).hexdigest() in output


def test_a_bomb_is_not_inflated(run, server, tmp_path):
    file = io.BytesIO(make_zip())
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as z:
        z.writestr("broden1_224/images/zeros.jpg", b"\0" * 30_000_000)
    server.data = file.getvalue()
    status, output = run(NEURONYM_BRODEN_BYTES="10000000")
    assert status == 1 and "more than 10000000" in output and not (tmp_path / "data/broden").exists()


@pytest.mark.parametrize("wrong", ["", "x", "-1", "1e9", "9" * 16])
def test_malformed_limits(run, server, wrong):
    status, output = run(NEURONYM_BRODEN_FILES=wrong or " ")
    assert status == 1 and "NEURONYM_BRODEN_FILES and NEURONYM_BRODEN_BYTES" in output
    assert server.requests == []


@pytest.mark.parametrize("wrong", ["ab", "xy" * 32, "a b"])
def test_malformed_checksum(run, server, wrong):
    status, output = run(NEURONYM_BRODEN_SHA256=wrong)
    assert status == 1 and "has to be 64 hex digits" in output and server.requests == []


def flipped(data):
    return data[:30_000] + bytes([data[30_000] ^ 1]) + data[30_001:]


@pytest.mark.parametrize(
    "damage, message",
    [
        (flipped, "is not a whole zip"),
        (lambda data: b"<html>we have moved</html>", "is not a whole zip"),
        (lambda data: data[:-2000], "is not a whole zip"),
        (lambda data: make_zip(top="other/"), "has no images/ folder and is not Broden"),
    ],
)
def test_damaged_zip(run, server, tmp_path, damage, message):
    server.data = damage(server.data)
    status, output = run()
    assert status == 1 and message in output
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["downloads"]
    server.data = make_zip()
    status, output = run()
    assert status == 0 and (tmp_path / "data/broden/label.csv").is_file(), output


def test_zip_without_a_top_folder(run, server, tmp_path):
    server.data = make_zip(top="")
    status, output = run()
    assert status == 0 and complete(tmp_path, server.data), output


def test_other_places_with_spaces(run, server, tmp_path):
    status, output = run(
        NEURONYM_BRODEN=f"{tmp_path}/my disk/Broden set", NEURONYM_DATA=f"{tmp_path}/my data"
    )
    assert status == 0 and len(list((tmp_path / "my disk/Broden set/images/ade20k").iterdir())) == 7, output
    assert [path.name for path in (tmp_path / "my disk").iterdir()] == ["Broden set"]


def test_folder_in_the_way(run, server, tmp_path):
    (tmp_path / "data/broden").mkdir(parents=True)
    (tmp_path / "data/broden/mine.txt").write_text("keep me")
    status, output = run()
    assert status == 1 and "exists but has no images/ in it; move it away" in output and server.requests == []
    assert (tmp_path / "data/broden/mine.txt").read_text() == "keep me"


def test_leftovers_of_a_killed_run(run, server, tmp_path):
    lock = tmp_path / "data/downloads/broden.lock"
    lock.mkdir(parents=True)
    (lock / "pid").write_text(str(os.getpid()))
    status, output = run()
    assert (
        status == 1 and f"another dlbroden.sh is at work (process {os.getpid()})" in output and lock.exists()
    )
    dead = subprocess.Popen(["true"])
    dead.wait()
    (lock / "pid").write_text(str(dead.pid))
    (tmp_path / "data/broden.unzipping/broden1_224/images").mkdir(parents=True)
    (tmp_path / "data/broden.unzipping/broden1_224/images/half.jpg").write_bytes(b"")
    status, output = run()
    assert status == 0 and "taking over" in output and complete(tmp_path, server.data), output


@pytest.mark.parametrize(
    "tools, message",
    [([], "needs unzip"), (["curl", "wget"], "needs unzip"), (["unzip"], "needs curl or wget")],
)
def test_missing_tools(run, server, tmp_path, tools, message):
    status, output = run(path=path_with(tmp_path / "bin", *tools))
    assert status == 1 and message in output and len(output.splitlines()) == 1 and server.requests == []


def test_help_and_unknown_arguments(run, server):
    status, output = run("--help")
    assert status == 0 and "NEURONYM_BRODEN_SHA256" in output and "set -eu" not in output
    status, output = run("now")
    assert status == 1 and "takes --without-masks or nothing, got 'now'" in output and server.requests == []
    status, output = run("--without-masks", "now")
    assert status == 1 and "takes one option, got '--without-masks now'" in output and server.requests == []


@pytest.mark.parametrize("sh", ["sh", "dash", "bash"])
def test_masks_are_removed_on_request_only(run, server, tmp_path, sh):
    if sh not in HAVE:
        pytest.skip(f"{sh} is not installed")
    file = io.BytesIO(make_zip())
    with zipfile.ZipFile(file, "a") as z:
        for i in range(7):
            z.writestr(f"broden1_224/images/ade20k/{i}_color.png", b"mask")
        z.writestr("broden1_224/legend.png", b"stays")
    server.data = file.getvalue()
    status, output = run(sh=sh)
    assert status == 0 and complete(tmp_path, server.data), output
    status, output = run("--without-masks", sh=sh)
    assert status == 0 and "removed 7 masks; NetDissect needs them" in output and len(server.requests) == 1
    images = tmp_path / "data/broden/images"
    assert not list(images.rglob("*.png")) and len(list(images.rglob("*.jpg"))) == 7
    assert (tmp_path / "data/broden/legend.png").exists()
    shutil.rmtree(tmp_path / "data/broden")
    status, output = run("--without-masks", sh=sh)
    assert status == 0 and "removed 7 masks" in output and not list(images.rglob("*.png"))


def test_nothing_is_removed_from_what_is_not_broden(run, server, tmp_path):
    (tmp_path / "data/broden/images").mkdir(parents=True)
    (tmp_path / "data/broden/images/mine.png").write_bytes(b"keep me")
    status, output = run("--without-masks")
    assert status == 1 and "holds no .jpg; nothing is removed" in output
    assert (tmp_path / "data/broden/images/mine.png").read_bytes() == b"keep me"


def test_script_deletes_nothing_by_pattern():
    text = SCRIPT.read_text()
    assert not re.findall(r"\brm\b[^\n]*[*?\[]", text) and "read " not in text
