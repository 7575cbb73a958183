"""The cache: what makes a key, what is refused, and that kills, rivals and torn files never give a wrong
array.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from neuronym import cache, stored
from neuronym.common.locks import Holder, holder, this_machine
from neuronym.runs.folders import cache_dir, ROOT
from neuronym.stored import own_folder

SPEC = {
    "schema": 1,
    "weights": "abc",
    "layer": "layer4",
    "pool": "avg",
    "ratio": 0.5,
    "tf32": False,
    "list": [1, 2],
}
ROWS = np.arange(23 * 7, dtype=np.float32).reshape(23, 7)


def folder(spec=SPEC, kind="q"):
    return cache_dir() / kind / cache.key_of(spec)


def put(spec=SPEC, rows=ROWS, kind="q"):
    return cache.array(kind, spec, lambda: rows)


@pytest.mark.parametrize(
    "field, value",
    [
        ("schema", 2),
        ("weights", "abd"),
        ("layer", "layer3"),
        ("pool", "max"),
        ("ratio", 0.25),
        ("tf32", True),
        ("list", [2, 1]),
        ("new", None),
    ],
)
def test_every_field_changes_the_key(field, value):
    assert cache.key_of(SPEC | {field: value}) != cache.key_of(SPEC)


def test_order_of_fields_does_not():
    assert cache.key_of(dict(reversed(SPEC.items()))) == cache.key_of(SPEC) and len(cache.key_of(SPEC)) == 16


@pytest.mark.parametrize(
    "value, pattern",
    [
        ("<function f at 0x7f00>", "memory address"),
        (float("nan"), "finite numbers"),
        (ROWS, "JSON values, got ndarray"),
        ({1: 2}, "strings, got 1"),
        ([{"a": object()}], "got object"),
    ],
)
def test_specs_that_cannot_be_keys_are_refused(value, pattern):
    with pytest.raises(ValueError, match=pattern):
        cache.key_of(SPEC | {"bad": value})


def test_made_once_then_loaded_read_only():
    made = []
    for _ in range(2):
        found = cache.array("q", SPEC, lambda: made.append(1) or torch.from_numpy(ROWS))
    assert made == [1] and np.array_equal(found, ROWS) and isinstance(found, np.memmap)
    with pytest.raises(ValueError):
        found[0] = 1


def test_rows_resume_where_they_stopped():
    with pytest.raises(KeyboardInterrupt), cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        rows.write(0, ROWS[:9])
        raise KeyboardInterrupt
    assert cache.load("q", SPEC) is None
    with cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        assert rows.start == 9
        rows.write(5, ROWS[5:])  # going back is allowed, leaving a gap is not
    assert np.array_equal(cache.load("q", SPEC), ROWS) and cache.verify() == []


@pytest.mark.parametrize("shape, dtype", [((23, 8), "float32"), ((23, 7), "float64")])
def test_work_of_another_shape_is_not_resumed(shape, dtype):
    with pytest.raises(KeyboardInterrupt), cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        rows.write(0, ROWS[:9])
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), cache.writer("q", SPEC, shape, dtype) as rows:
        assert rows.start == 0
        raise KeyboardInterrupt


def test_gaps_wrong_rows_and_missing_rows_are_errors():
    for bad, pattern in (
        ((3, ROWS[:1]), "next is row 0, got 3"),
        ((0, ROWS[:, :3]), r"expected rows of shape \(7,\)"),
    ):
        with pytest.raises(ValueError, match=pattern), cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
            rows.write(*bad)
    with (
        pytest.raises(ValueError, match="has 2 of 23 rows"),
        cache.writer("q", SPEC, ROWS.shape, "float32") as rows,
    ):
        rows.write(0, ROWS[:2])


def damage_cut(at):
    file = at / "data.npy"
    file.write_bytes(file.read_bytes()[:-4])


def damage_meta(at):
    (at / "meta.json").write_text('{"spec": ')


def damage_gone(at):
    (at / "data.npy").unlink()


@pytest.mark.parametrize("damage", [damage_cut, damage_meta, damage_gone])
def test_torn_entries_are_never_used_and_are_replaced(damage):
    put()
    damage(folder())
    assert cache.load("q", SPEC) is None and len(cache.verify()) == 1
    assert np.array_equal(put(), ROWS) and cache.verify() == []


@pytest.mark.parametrize("spec", [SPEC | {"layer": "other"}, SPEC | {"layer": float("nan")}, "text"])
def test_an_entry_that_says_another_spec_is_damaged(spec, capsys):
    put()
    meta = json.loads((folder() / "meta.json").read_text())
    (folder() / "meta.json").write_text(json.dumps(meta | {"spec": spec}))
    assert cache.load("q", SPEC) is None
    assert np.array_equal(put(), ROWS) and cache.verify() == []
    if spec != "text":
        assert "says another spec than its key; it is computed anew" in capsys.readouterr().err


def test_verify_rereads_the_content():
    put()
    data = np.lib.format.open_memmap(folder() / "data.npy", mode="r+")
    data[4, 2] += 1
    data.flush()
    assert cache.verify() == [f"q/{cache.key_of(SPEC)}: data.npy differs from what was written"]


KILLED = """
    import sys, time, numpy as np
    from neuronym import cache
    rows_ = np.arange(23 * 7, dtype=np.float32).reshape(23, 7)
    with cache.writer("q", {spec!r}, rows_.shape, "float32") as rows:
        rows.write(0, rows_[:11])
        print("ready", flush=True)
        time.sleep(60)
"""


def start_writer():
    code = textwrap.dedent(KILLED.format(spec=SPEC))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_killed_process_loses_only_what_it_had_not_flushed():
    process = start_writer()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        assert rows.start == 11
        rows.write(11, ROWS[11:])
    assert np.array_equal(cache.load("q", SPEC), ROWS) and cache.verify() == []


STEPWISE = """
    import sys, time, numpy as np
    from neuronym import cache
    rows_ = np.arange(23 * 7, dtype=np.float32).reshape(23, 7)
    with cache.writer("q", {spec!r}, rows_.shape, "float32") as rows:
        print(rows.start, flush=True)
        for i in range(rows.start, 23):
            rows.write(i, rows_[i:i + 1])
            time.sleep(.005)
"""


def test_kills_at_any_moment_never_give_another_array():
    code, starts = textwrap.dedent(STEPWISE.format(spec=SPEC)), []
    for delay in (0.01, 0.03, 0.05, None):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        starts.append(int(process.stdout.readline()))
        if delay:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            assert cache.load("q", SPEC) is None
        process.wait()
    assert starts == sorted(starts) and starts[-1] > 0
    assert np.array_equal(cache.load("q", SPEC), ROWS) and cache.verify() == []
    assert [path.name for path in folder().parent.iterdir()] == [folder().name]


def test_the_slower_of_two_writers_drops_its_own(monkeypatch):
    """Where the other does not get on: it sleeps, and this one has no patience."""
    monkeypatch.setattr(stored, "STUCK", 0)
    process = start_writer()
    try:
        with cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
            assert rows.start == 0  # it does not touch what the other is writing
            rows.write(0, ROWS[:5])
            assert cache.prune(partial=True) == 0  # the work of living processes is left alone
            put(rows=ROWS)  # a third is quicker than both
            first = (folder() / "meta.json").stat().st_mtime_ns
            rows.write(5, ROWS[5:] + 1)
        assert (
            np.array_equal(cache.load("q", SPEC), ROWS)
            and (folder() / "meta.json").stat().st_mtime_ns == first
        )
    finally:
        process.kill()
        process.wait()
    assert cache.prune(partial=True) > 0 and [p.name for p in folder().parent.iterdir()] == [folder().name]


WAITING = """
    import numpy as np
    from neuronym import cache
    made = lambda: np.arange(23 * 7, dtype=np.float32).reshape(23, 7)
    def once():
        print("made", flush=True)
        return made()
    if {whole}:
        print(float(cache.array("q", {spec!r}, once).sum()))
    else:
        with cache.writer("q", {spec!r}, (23, 7), "float32") as rows:
            print(rows.start)
            rows.write(rows.start, made()[rows.start:])
"""


@pytest.mark.parametrize("whole", [True, False])
def test_the_second_process_waits_and_reads(whole):
    """Also for one that dies: its rows are taken up."""
    code = textwrap.dedent(WAITING.format(spec=SPEC, whole=whole))
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        second = subprocess.Popen([sys.executable, "-c", code], **given)
        said = second.stderr.readline()
        assert f"process {os.getpid()} is making what this one needs" in said and "waits" in said
        rows.write(0, ROWS)
        assert second.poll() is None
    out, _ = second.communicate(timeout=60)
    assert out == (f"{ROWS.sum()}\n" if whole else "23\n")  # nothing was made
    assert [path.name for path in folder().parent.iterdir()] == [folder().name] and cache.verify() == []
    shutil.rmtree(folder())
    first = start_writer()
    second = subprocess.Popen([sys.executable, "-c", code], **given)
    assert f"process {first.pid} is" in second.stderr.readline()
    first.kill()
    first.wait()
    out, _ = second.communicate(timeout=60)
    assert out == (f"made\n{ROWS.sum()}\n" if whole else "11\n") and np.array_equal(
        cache.load("q", SPEC), ROWS
    )


def test_who_has_nothing_to_write_keeps_nobody_waiting():
    """Else jobs of many networks with one CLIP would come one after another."""
    code = textwrap.dedent(WAITING.format(spec=SPEC, whole=True))
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        second = subprocess.Popen([sys.executable, "-c", code], **given)
        assert "waits for it" in second.stderr.readline()
        rows.write(0, ROWS)
    with cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        assert rows.start == 23 and not folder().with_name(folder().name + ".lock").exists()
        assert second.communicate(timeout=60)[0] == f"{ROWS.sum()}\n"


def test_an_owner_that_is_no_more_is_not_waited_for():
    """A lock that outlives its process: a child has inherited it."""
    put()
    entry = folder()
    shutil.rmtree(entry)
    lock = entry.with_name(entry.name + ".lock")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with open(lock, "w+") as file:
        fcntl = pytest.importorskip("fcntl")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        told = Holder(gone.pid, "here", this_machine(), "", "0")
        file.write(json.dumps(told._asdict()))
        file.flush()
        assert np.array_equal(cache.array("q", SPEC, lambda: ROWS), ROWS)


def test_a_writer_of_what_is_there_has_nothing_to_do():
    put()
    with cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        assert rows.start == 23
        rows.write(0, ROWS + 1)
    assert np.array_equal(cache.load("q", SPEC), ROWS) and cache.verify() == []


def test_processes_that_race_all_get_the_array():
    code = textwrap.dedent("""
        import sys, time, numpy as np
        from neuronym import cache
        print("ready", flush=True)
        sys.stdin.readline()
        made = lambda: np.arange(23 * 7, dtype=np.float32).reshape(23, 7)
        print(float(cache.array("q", {spec!r}, made).sum()))
    """).format(spec=SPEC)
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(3)
    ]
    assert [rival.stdout.readline() for rival in rivals] == ["ready\n"] * 3
    for rival in rivals:
        rival.stdin.write("go\n")
        rival.stdin.flush()
    assert [float(rival.communicate()[0]) for rival in rivals] == [ROWS.sum()] * 3
    assert [path.name for path in folder().parent.iterdir()] == [folder().name] and cache.verify() == []


def test_a_lock_left_behind_is_taken_over():
    folder().parent.mkdir(parents=True)
    lock = folder().with_name(folder().name + ".lock")
    lock.write_text("999999999")
    os.utime(lock, (0, 0))
    with pytest.raises(KeyboardInterrupt), cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        rows.write(0, ROWS[:3])
        assert holder(lock).pid == os.getpid()
        raise KeyboardInterrupt
    with cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        assert rows.start == 3
        rows.write(3, ROWS[3:])


def test_a_full_disk_is_an_error_and_the_rows_before_it_stay():
    code = textwrap.dedent("""
        import resource, numpy as np
        from neuronym import cache
        with cache.writer("q", {spec!r}, (64, 4096), "float32") as rows:
            rows.write(0, np.ones((8, 4096), "float32"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
            rows.write(8, np.ones((56, 4096), "float32"))
    """).format(spec=SPEC)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "OSError" in done.stderr
    with pytest.raises(KeyboardInterrupt), cache.writer("q", SPEC, (64, 4096), "float32") as rows:
        assert rows.start == 8
        raise KeyboardInterrupt


def test_values_of_another_kind_and_empty_arrays_are_refused():
    with pytest.raises(ValueError, match="holds float32, got rows of complex128"):
        with cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
            rows.write(0, ROWS.astype(complex))
    with pytest.raises(ValueError, match="at least one row"):
        put(rows=ROWS[:0])


def test_explain_names_the_field_that_differs():
    assert "no entry of kind 'q'" in cache.explain("q", SPEC)
    put()
    put(SPEC | {"layer": "x", "pool": "max"})
    said = cache.explain("q", SPEC | {"pool": "cls"})
    assert f"nearest is {cache.key_of(SPEC)}" in said and "layer" not in said
    assert "pool: asked 'cls', cached 'avg'" in said
    assert cache.explain("q", SPEC).startswith("hit")
    with (
        pytest.raises(KeyboardInterrupt),
        cache.writer("q", SPEC | {"schema": 9}, ROWS.shape, "float32") as rows,
    ):
        rows.write(0, ROWS[:9])
        raise KeyboardInterrupt
    said = cache.explain("q", SPEC | {"schema": 9})
    assert "schema: asked 9, cached 1" in said and said.endswith("9 of 23 rows are written")
    damage_cut(folder())
    assert "miss" in cache.explain("q", SPEC) and "it is torn" in cache.explain("q", SPEC)


def test_prune_by_size_age_and_unfinished_work():
    for i in range(3):
        put(SPEC | {"i": i})
        os.utime(folder(SPEC | {"i": i}) / "meta.json", (i + 1, time.time() if i == 2 else i + 1))
    one = cache.entries()[0]["bytes"]
    assert cache.prune(max_bytes=2 * one + 50) >= one - 50 and [e["spec"]["i"] for e in cache.entries()] == [
        1,
        2,
    ]
    assert cache.prune(older_than_days=1) > 0 and [e["spec"]["i"] for e in cache.entries()] == [2]
    with pytest.raises(KeyboardInterrupt), cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        rows.write(0, ROWS[:9])
        raise KeyboardInterrupt
    assert (
        cache.prune(partial=True) > 0
        and len(cache.entries()) == 1
        and not list(cache_dir().glob("q/*.partial"))
    )


def test_bundles_hold_named_tensors():
    made = []
    for _ in range(2):
        found = cache.bundle("b", SPEC, lambda: made.append(1) or {"x": torch.arange(3), "y": torch.eye(2).T})
    assert made == [1] and torch.equal(found["x"], torch.arange(3)) and cache.verify() == []


def test_bundles_are_refused_when_torn_or_foreign():
    def put_bundle():
        return cache.bundle("b", SPEC, lambda: {"x": torch.arange(3)})

    put_bundle()
    file = folder(kind="b") / "data.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(put_bundle()["x"], torch.arange(3)) and cache.verify() == []
    meta = json.loads((file.parent / "meta.json").read_text())
    (file.parent / "meta.json").write_text(json.dumps(meta | {"spec": SPEC | {"layer": "other"}}))
    assert torch.equal(put_bundle()["x"], torch.arange(3)) and cache.verify() == []


def test_entries_say_what_they_hold_and_what_made_them():
    cache.array("q", SPEC, lambda: ROWS, {"name": "units"})
    (entry,) = cache.entries()
    assert entry["spec"] == SPEC and entry["key"] == cache.key_of(SPEC) and entry["bytes"] > ROWS.nbytes
    assert {"name", "seconds", "created", "git", "torch", "numpy"} <= set(entry["info"])
    assert cache.entries("other") == []


def test_prune_leaves_what_another_machine_is_at():
    put()
    own, old, far = (own_folder(folder()) for _ in range(3))
    old = old.rename(old.with_name(f"{folder().name}.partial.999999999.ab"))
    far = far.rename(far.with_name(f"{folder().name}.partial.999999999-0123abcd.ab"))
    cache.prune(partial=True)
    assert own.exists() and far.exists() and not old.exists()
    os.utime(far, (0, 0))
    cache.prune(partial=True)
    assert own.exists() and not far.exists()


def test_prune_removes_torn_entries_only_when_asked():
    put()
    damage_meta(folder())
    assert cache.prune(max_bytes=0) == 0 and folder().exists()
    assert cache.prune(partial=True) > 0 and not list(folder().parent.iterdir())
    assert cache.prune(max_bytes=0, partial=True) == 0


def test_no_pickle_is_read_or_written():
    with pytest.raises(ValueError):
        cache.array("q", SPEC, lambda: np.array([object()]))


def damaged(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    elif how == "zeroed":
        data[-64:] = bytes(64)
    elif how == "misplaced":
        data[-64:], data[-128:-64] = data[-128:-64], data[-64:]
    elif how == "header":
        data[8:40] = b"(" * 32
    elif how == "cut":
        del data[-5:]
    elif how == "empty":
        data.clear()
    stat = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize("how", ["flipped", "zeroed", "misplaced", "header", "cut", "empty"])
def test_a_damaged_entry_counts_as_absent_is_said_and_made_anew(how, capsys):
    spec, values = {"of": how}, np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    made = []

    def make():
        made.append(1)
        return values

    file = Path(cache.array("kind", spec, make).filename)
    damaged(file, how)
    assert cache.load("kind", spec) is None
    found = cache.array("kind", spec, make)
    assert (np.asarray(found) == values).all() and len(made) == 2
    assert (np.asarray(cache.array("kind", spec, make)) == values).all() and len(made) == 2
    if how in ("flipped", "zeroed", "misplaced"):
        assert capsys.readouterr().err.count("is damaged: it differs from what was written") == 1


def spoiled(data: bytes, how: str, random: np.random.Generator) -> bytes:
    """Content of a file after one random fault: it may also come out as it was."""
    changed, size = bytearray(data), len(data)
    at, length = int(random.integers(size)), int(random.integers(1, 64))
    if how == "flipped":
        changed[at] ^= 1 << int(random.integers(8))
    elif how == "zeroed":
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    elif how == "misplaced":
        other = int(random.integers(size))
        changed[at : at + length] = changed[other : other + len(changed[at : at + length])]
    elif how == "header":
        changed[int(random.integers(min(size, 128)))] = int(random.integers(256))
    elif how == "cut":
        del changed[at:]
    return bytes(changed) if how != "empty" else b""


@pytest.mark.parametrize("how", ["flipped", "zeroed", "misplaced", "header", "cut", "empty"])
def test_thirty_random_faults_of_each_kind_are_never_used(how, capsys):
    random, spec = np.random.default_rng(5), {"of": how}
    values = random.normal(size=(40, 7)).astype(np.float32)
    file = Path(cache.array("kind", spec, lambda: values).filename)
    whole, tried = file.read_bytes(), 0
    while tried < 30:
        data = spoiled(whole, how, random)
        if data == whole:
            continue
        tried += 1
        file.write_bytes(data)
        os.utime(file, ns=(tried, tried))
        assert cache.load("kind", spec) is None
        assert (np.asarray(cache.array("kind", spec, lambda: values)) == values).all()
    assert "it is computed anew" in capsys.readouterr().err
    assert [path.name for path in file.parent.parent.iterdir()] == [file.parent.name]


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("kind", ["array", "bundle"])
def test_a_disk_that_is_full_at_any_write_leaves_no_entry_and_no_file(step, kind, monkeypatch):
    left, full = [step], OSError(errno.ENOSPC, "No space left on device")

    def failing(function):
        def call(*given, **more):
            left[0] -= 1
            if left[0] < 0:
                raise full
            return function(*given, **more)

        return call

    def make():
        if kind == "array":
            return np.asarray(cache.array("q", SPEC, lambda: ROWS))
        return cache.bundle("q", SPEC, lambda: {"x": torch.from_numpy(ROWS)})["x"].numpy()

    with monkeypatch.context() as patch:
        patch.setattr(cache, "empty_npy", failing(cache.empty_npy))
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(Path, "write_text", failing(Path.write_text))
        if kind == "array" or step < 2:
            with suppress(OSError):
                make()
    if left[0] < 0:
        assert not folder().exists() and cache.load("q", SPEC) is None
    assert np.array_equal(make(), ROWS) and cache.verify() == []
    assert len(list(folder().iterdir())) == 2 and (folder() / "meta.json").is_file()


def test_a_kill_leaves_nothing_in_what_is_published_later():
    with pytest.raises(KeyboardInterrupt), cache.writer("q", SPEC, ROWS.shape, "float32") as rows:
        rows.write(0, ROWS[:9])
        (folder().with_name(folder().name + ".partial") / "progress.json.4711").write_text("{")
        raise KeyboardInterrupt
    put()
    assert sorted(path.name for path in folder().iterdir()) == ["data.npy", "meta.json"]


def test_what_a_check_refuses_is_made_anew_and_said(capsys):
    put()
    found = cache.array("q", SPEC, lambda: ROWS + 1, check=lambda kept: "" if kept[0, 0] else "it is old")
    assert np.array_equal(found, ROWS + 1) and "is not used: it is old" in capsys.readouterr().err
    assert np.array_equal(cache.array("q", SPEC, lambda: 1 / 0, check=lambda kept: ""), ROWS + 1)
    for value in (1.0, 2.0):
        made = {"x": torch.tensor([value])}
        found = cache.bundle("b", SPEC, lambda: made, check=lambda kept: "" if kept["x"] == value else "old")
        assert found["x"] == value


def test_what_is_refused_and_cannot_be_removed_is_not_used(monkeypatch, capsys):
    put()

    def refuse(*given, **more):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(cache, "own_folder", refuse)
    found = cache.array("q", SPEC, lambda: ROWS + 1, check=lambda kept: "old" if kept[0, 0] == 0 else "")
    assert np.array_equal(found, ROWS + 1) and np.array_equal(cache.load("q", SPEC), ROWS + 1)
    assert "NEURONYM_CACHE" in capsys.readouterr().err
    assert np.array_equal(np.load(folder() / "data.npy"), ROWS)


def test_a_moved_cache_still_hits(tmp_path, monkeypatch):
    put()
    cache_dir().rename(tmp_path / "moved")
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "moved"))
    assert np.array_equal(cache.array("q", SPEC, lambda: 1 / 0), ROWS)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"spec": 1}', "null", '{"bytes": "x"}'])
def test_a_damaged_description_counts_as_absent(content):
    spec = {"of": content}
    file = Path(cache.array("kind", spec, lambda: np.arange(6.0)).filename)
    meta = json.loads((file.parent / "meta.json").read_text())
    if content.startswith('{"'):
        content = json.dumps(meta | json.loads(content))
    (file.parent / "meta.json").write_text(content)
    assert cache.load("kind", spec) is None
    assert cache.array("kind", spec, lambda: np.arange(6.0) + 1)[0] == 1


def test_a_damaged_bundle_is_made_anew():
    spec, good = {"of": "bundle"}, {"a": torch.arange(64.0)}
    cache.bundle("kind", spec, lambda: good)
    (file,) = (cache_dir() / "kind").glob("*/data.safetensors")
    damaged(file, "zeroed")
    assert torch.equal(cache.bundle("kind", spec, lambda: good)["a"], good["a"])


CLOSED = """
    import os
    import numpy as np
    from neuronym import cache
    from neuronym.runs.folders import cache_dir

    cache.array("kind", {"of": "there"}, lambda: np.arange(5.0))
    for folder, _, files in os.walk(cache_dir()):
        for name in files:
            os.chmod(os.path.join(folder, name), 0o444)
        os.chmod(folder, 0o555)
    os.chmod(cache_dir().parent, 0o755)
"""
READ_ONLY = """
    import os
    import numpy as np
    import torch
    from neuronym import cache

    if os.getuid() == 0:
        os.setuid(65534)  # root writes anywhere
    there = cache.array("kind", {"of": "there"}, lambda: 1 / 0)
    new = cache.array("kind", {"of": "new"}, lambda: np.arange(3.0))
    again = cache.array("kind", {"of": "new"}, lambda: 1 / 0)
    other = cache.bundle("other", {"of": "bundle"}, lambda: {"a": torch.ones(2)})
    print(there.sum(), new.sum(), again.sum(), float(other["a"].sum()))
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cache_that_can_only_be_read_is_used_as_far_as_it_goes(processes):
    folder = Path(tempfile.mkdtemp())  # tmp_path lies in a folder that another user may not enter
    os.chmod(folder, 0o755)
    env = {**os.environ, "NEURONYM_CACHE": str(folder / "shared")}
    subprocess.run([sys.executable, "-c", textwrap.dedent(CLOSED)], cwd=ROOT, env=env, check=True)
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(READ_ONLY)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for _ in range(processes)
    ]
    for process in begun:
        out, said = process.communicate(timeout=120)
        if process.returncode and "PermissionError" in said:
            pytest.skip("another user cannot read this Python or this folder")
        assert out.split() == ["10.0", "3.0", "3.0", "2.0"], said
        assert said.count("cannot be written") == 1 and "NEURONYM_CACHE" in said
