"""Files that several processes share: contents by their hash, whole or not at all.

digest      16 hex of texts
sha256      checksum of a file
read_json   content of a JSON file, None when it is missing or torn
write_json  replace a JSON file in one step
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def digest(*texts: str) -> str:
    """16 hex of SHA-256 over texts, each with its length, so that no two lists of texts run together."""
    found = hashlib.sha256()
    for text in texts:
        found.update(f"{len(text)}:{text}".encode())
    return found.hexdigest()[:16]


def sha256(file: Path) -> str:
    """Checksum of a file's content."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_json(file: Path) -> dict | None:
    """Content of a JSON file; None when it is missing or torn."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(file: Path, value: dict) -> None:
    """Replace a JSON file in one step; on a full disk it stays as it was."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
