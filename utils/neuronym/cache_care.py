"""Looking after the cache: what is stored, what is damaged, why a spec is not found, and what may go.

entries  finished entries
verify   damaged ones
explain  why a spec misses
prune    remove old, torn and unfinished ones
"""
from __future__ import annotations

import shutil
import time
from pathlib import Path

from neuronym.cache_files import read_json, read_meta, sha256, usable, whole
from neuronym.cache_keys import key_of
from neuronym.common.cache_lock import alive, locked
from neuronym.runs.runs import cache_dir


def entries(kind: str | None = None) -> list[dict]:
    """Finished entries, oldest first: kind, key, spec, info, bytes, made (seconds since 1970), folder."""
    found = []
    for path in sorted(cache_dir().glob(f"{kind or '*'}/*/meta.json")):
        meta = read_meta(path.parent)
        if meta is not None and "." not in path.parent.name:
            size = sum(f.stat().st_size for f in path.parent.iterdir())
            found.append({"kind": path.parent.parent.name, "key": path.parent.name, "spec": meta["spec"],
                          "info": meta["info"], "bytes": size, "made": path.stat().st_mtime, "folder": path.parent})
    return sorted(found, key=lambda e: e["made"])


def verify(kind: str | None = None) -> list[str]:
    """Reread every entry and compare with the checksum taken when it was published; one sentence per damaged entry."""
    problems = []
    for folder in sorted(p for p in cache_dir().glob(f"{kind or '*'}/*") if p.is_dir() and "." not in p.name):
        meta = read_meta(folder)
        if meta is None:
            problems.append(f"{folder.parent.name}/{folder.name}: meta.json is missing or unreadable")
        elif key_of(meta["spec"]) != folder.name:
            problems.append(f"{folder.parent.name}/{folder.name}: its spec belongs to {key_of(meta['spec'])}")
        elif not whole(folder, meta):
            problems.append(f"{folder.parent.name}/{folder.name}: {meta['file']} is torn")
        elif sha256(folder / meta["file"]) != meta["sha256"]:
            problems.append(f"{folder.parent.name}/{folder.name}: {meta['file']} differs from what was written")
    return problems


def explain(kind: str, spec: dict) -> str:
    """Why does this spec miss? Names the nearest entry of the kind and every field in which it differs."""
    key = key_of(spec)
    there = entries(kind)
    if usable(cache_dir() / kind / key, spec):
        return f"hit: {kind}/{key}"
    begun = read_json(cache_dir() / kind / f"{key}.partial" / "progress.json")
    begun = f"; {begun['rows']} of {begun['shape'][0]} rows are written" if begun else ""
    if not there:
        return f"miss: no entry of kind '{kind}' in {cache_dir()}{begun}"

    def differing(entry: dict) -> list[str]:
        both = spec.keys() | entry["spec"].keys()
        return [k for k in sorted(both) if spec.get(k, "absent") != entry["spec"].get(k, "absent")]

    near = min(there, key=lambda e: len(differing(e)))
    changes = "; ".join(f"{k}: asked {spec.get(k, 'absent')!r}, cached {near['spec'].get(k, 'absent')!r}"
                        for k in differing(near)) or "nothing, but it is torn"
    return f"miss: {kind}/{key}; nearest is {near['key']}, which differs in {changes}{begun}"


def prune(max_bytes: int | None = None, older_than_days: float | None = None, partial: bool = False) -> int:
    """Remove entries, oldest first, until `max_bytes` remain, and those older than so many days; tells the bytes freed.

    With `partial` also torn entries, and unfinished work that no living process is at.
    """
    there, freed = entries(), 0
    total = sum(e["bytes"] for e in there)
    for entry in there:
        old = older_than_days is not None and time.time() - entry["made"] > older_than_days * 86400
        if old or (max_bytes is not None and total - freed > max_bytes):
            freed += _remove(entry["folder"])
    for folder in [f for f in cache_dir().glob("*/*") if f.is_dir()] if partial else ():
        key, _, mark = folder.name.partition(".")
        owner = mark.split(".")[1:2]                 # <key>.partial.<pid>.<any>, <key>.torn.<pid>.<any>
        if owner and alive(int(owner[0])) or not mark and whole(folder, read_meta(folder)):
            continue
        with locked(folder.with_name(f"{key}.lock")) as ours:
            freed += _remove(folder) if ours else 0
    return freed


def _remove(folder: Path) -> int:
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    shutil.rmtree(folder)
    return size
