"""Lock files between processes: who holds one, kills, other machines, file systems without flock, and a lock
left behind that several want.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from neuronym.common import locks
from neuronym.common.locks import holder, locked, waited

# a process that holds a lock until it is killed or told to let go; it may think it is another machine
HOLD = """
import platform, sys
from pathlib import Path
from neuronym.common import locks
if sys.argv[2]:
    platform.node = lambda: sys.argv[2]
if sys.argv[3] == "no flock":
    locks.fcntl = None
locks.BEAT = 0.02
with locks.locked(Path(sys.argv[1])) as ours:
    print(ours, flush=True)
    sys.stdin.readline()
"""
# adds one to a number in a file so often, which goes wrong where two do so at once
ADD = """
import sys, time
from pathlib import Path
from neuronym.common import locks
lock, number, times = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(times):
    with locks.waited(lock, pause=0.001):
        n = int(number.read_text())
        time.sleep(0.001)
        number.write_text(str(n + 1))
"""
OLD = time.time() - 10_000  # a file last touched then is left behind, if nobody holds it
FLOCK = pytest.param("flock", marks=pytest.mark.skipif(locks.fcntl is None, reason="no flock here"))


def python(code: str, *words: object) -> subprocess.Popen:
    call = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds tmp_path / "lock"."""
    started = []

    def start(host: str = "", flock: str = "flock") -> subprocess.Popen:
        started.append(python(HOLD, tmp_path / "lock", host, flock))
        assert started[-1].stdout.readline() == "True\n"
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def mine(path) -> bool:
    with locked(path) as ours:
        return ours


def test_one_holds_and_says_who_it_is(hold, tmp_path):
    lock = tmp_path / "lock"
    process = hold()
    assert not mine(lock)
    found = holder(lock)
    assert found.pid == process.pid and found.here and str(found) == f"process {process.pid}"
    assert found.since.endswith("+00:00")
    process.communicate("\n")
    assert not lock.exists() and mine(lock) and list(tmp_path.iterdir()) == []


def test_one_process_holds_a_lock_once(tmp_path):
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock") as second:
        assert first and not second
    assert mine(tmp_path / "lock")


@pytest.mark.parametrize("flock", [FLOCK, "no flock"])
def test_what_a_kill_leaves_on_this_machine_is_taken_over_at_once(hold, tmp_path, monkeypatch, flock):
    if flock == "no flock":
        monkeypatch.setattr(locks, "fcntl", None)
    process = hold(flock=flock)
    assert not mine(tmp_path / "lock")
    end(process)
    assert (tmp_path / "lock").exists() and mine(tmp_path / "lock") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flock", [FLOCK, "no flock"])
def test_another_machine_holds_for_as_long_as_it_touches_the_lock(hold, tmp_path, flock):
    """Its flock is not seen here, as where a file system does not pass it on."""
    lock = tmp_path / "lock"
    process = hold("far", "no flock")
    assert str(holder(lock)) == f"process {process.pid} of far"
    os.utime(lock, (OLD, OLD))
    while lock.stat().st_mtime < OLD + 1:
        time.sleep(0.01)
    assert not mine(lock)
    end(process)
    assert not mine(lock)  # it may be alive, and touch the file soon
    os.utime(lock, (OLD, OLD))
    assert mine(lock) and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(locks.fcntl is None, reason="no flock here")
def test_flock_that_is_seen_counts_whoever_holds_it(hold, tmp_path):
    hold("far").send_signal(19)  # stopped: it touches nothing
    os.utime(tmp_path / "lock", (OLD, OLD))
    assert not mine(tmp_path / "lock")


def test_a_lock_that_says_nothing_is_one_just_made_or_left_behind(tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    assert holder(lock) is None and not mine(lock)
    os.utime(lock, (OLD, OLD))
    assert mine(lock)


def test_a_lock_that_came_meanwhile_is_not_removed(hold, tmp_path, monkeypatch):
    """Two find the same lock left behind; the second is slow, and by then the first has it."""
    lock = tmp_path / "lock"
    end(hold())
    left_behind, asked = locks._left_behind, []

    def slowly(path, found):
        verdict = left_behind(path, found)
        if path == lock and not asked:
            asked.append(verdict)
            monkeypatch.setattr(locks, "_left_behind", left_behind)
            lock.unlink()  # the first has removed it, and taken its place
            hold()
        return verdict

    monkeypatch.setattr(locks, "_left_behind", slowly)
    assert not mine(lock) and asked == [True] and holder(lock) is not None
    assert not mine(lock)


def test_who_lost_a_lock_leaves_the_one_that_came_after(tmp_path):
    lock = tmp_path / "lock"
    with locked(lock) as ours:
        assert ours
        lock.unlink()
        with locked(lock) as other:
            assert other
            found = holder(lock)
        lock.write_text("somebody's")
    assert lock.read_text() == "somebody's" and found != holder(lock)


def test_processes_add_up_after_one_was_killed(hold, tmp_path):
    lock, number = tmp_path / "lock", tmp_path / "number"
    number.write_text("0")
    end(hold())
    adding = [python(ADD, lock, number, 20) for _ in range(3)]
    assert [one.stdout.readline() for one in adding] == ["ready\n"] * 3
    for one in adding:
        one.stdin.write("\n")
        one.stdin.flush()
    assert [one.wait() for one in adding] == [0] * 3
    assert number.read_text() == "60" and [path.name for path in tmp_path.iterdir()] == ["number"]


def test_waiting_is_said_once(hold, tmp_path, capsys):
    process = hold()

    def go():
        process.communicate("\n")

    import threading

    threading.Timer(0.1, go).start()
    with waited(tmp_path / "lock", said="another has it"):
        assert capsys.readouterr().out == "another has it\n"
    with waited(tmp_path / "lock", said="another has it"):
        assert capsys.readouterr().out == ""
