"""How an unknown name is reported: `unknown`."""
from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnknownName(KeyError):
    """A KeyError whose message prints as a sentence instead of a quoted repr."""

    def __str__(self) -> str:
        return str(self.args[0])


def unknown(what: str, name: str, known: Iterable[str], shown: int = 12) -> UnknownName:
    """Build the error for a name that is not known: what was asked, the nearest names, and those that exist."""
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    listed = ", ".join(known[:shown]) + (f", ... ({len(known)} in all)" if len(known) > shown else "")
    return UnknownName(f"no {what} '{name}'" + (f"; nearest: {', '.join(near)}" if near else "") + f"; known: {listed}")
