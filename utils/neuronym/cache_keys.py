"""What stands for an entry: its spec as canonical text, and the hash of that.

key_of     spec -> key
canonical  spec -> text
"""
from __future__ import annotations

import hashlib
import json
import math


def key_of(spec: dict) -> str:
    """16 hex digits of SHA-256 over the spec as canonical JSON: the order of fields does not matter, all else does.

    Raises ValueError for what JSON cannot hold exactly and for texts with a memory address, which change every time.
    """
    return hashlib.sha256(canonical(spec).encode()).hexdigest()[:16]


def canonical(spec: dict) -> str:
    """The spec as JSON with sorted keys; ValueError as in `key_of`."""
    def check(value: object, where: str) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                if not isinstance(k, str):
                    raise ValueError(f"keys of a spec are strings, got {k!r} in {where or 'the spec'}")
                check(v, f"{where}.{k}" if where else k)
        elif isinstance(value, (list, tuple)):
            for v in value:
                check(v, where)
        elif isinstance(value, str) and "at 0x" in value:
            raise ValueError("a spec must not change from process to process; "
                             f"'{where}' holds a memory address: {value[:80]!r}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"a spec holds finite numbers, got {value} in '{where}'")
        elif not (value is None or isinstance(value, (str, bool, int, float))):
            raise ValueError(f"a spec holds JSON values, got {type(value).__name__} in '{where}'")

    check(spec, "")
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
