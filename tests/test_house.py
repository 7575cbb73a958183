"""The house: rooms import only rooms above them, heavy packages have their room, no name means two things by
accident.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "utils" / "neuronym"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
# each line may import what stands in the lines above it, and nothing of its own line but itself
ORDER = (
    "common",
    "layouts",
    "trials blocks",
    "microworld runs similarity",
    "sparse",  # a layer's name may be of features, which hooks encodes
    "hooks",
    "stored",
    "cache datasets",
    "jobs",
    "passes",
    "activations",
    "active models",
    "measurements published shards",
    "dissect evaluation second_order",
    "describe trust",
    "figures",
    "applications sae atlas",
    "__main__",
)
PLACE = {room: i for i, line in enumerate(ORDER) for room in line.split()}
# the ways in: what is asked for is imported when it is asked for
ENTRIES = {
    "__init__.py": "names of the package",
    "runs/command.py": "the command line",
    "runs/checks.py": "asks the loaders, before work, whether what a run is given is there",
}
ROOM_OF = {
    **dict.fromkeys(("matplotlib", "seaborn"), "figures/"),
    **dict.fromkeys(("transformers", "diffusers", "timm", "open_clip", "llama_cpp"), "models/"),
}
EXCEPTIONS = {
    ("microworld/networks.py", "transformers"): "the microworld's captioner is transformers' own BLIP",
    ("microworld/training.py", "transformers"): "the type of that captioner",
}
# names of two things, each with what tells them apart
TWICE = {
    "auroc": "of one list; the metric of that name, which METRICS lists by its name",
    "correlation": "of columns; the metric and the similarity function of that name, listed by their names",
    "main": "the command line; the kernel of a notebook",
    "explain": "where a cached array comes from; a unit as a sum of concepts",
    "wpmi": "the similarity function and the metric of that name, listed by their names",
}
# a constant in capitals is its own file's: these stand in two files with values that have nothing to do with
# each other, but for MPNET, which names one sentence encoder
CONSTANTS = set(
    """ALIKE BATCH BLOCK COLOURS CONCEPTS CONSTANT CONTEXT COUNTS DRAWS DTYPES FEWEST GAP HIGHEST
    LARGEST LAYERS LEAST LIST LISTED LONGEST MARKS METRICS MPNET OTHERS PAGE POOL PROMPT RANDOM
    SCHEMA SCORES SETTINGS SHARES SIZE SOURCES START SUFFIXES TILE TOGETHER""".split()
)


def imports(path: Path, above: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, also inside functions and for type checkers only; `above` leaves
    these out.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if above else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: imports name the whole path"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room(name: str) -> str:
    """ "common" of "common/text.py", "hooks" of "hooks.py"."""
    return name.split("/")[0].removesuffix(".py")


def defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [
            name.id
            for target in node.targets
            for name in ast.walk(target)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        ]
    return [node.target.id] if isinstance(node, ast.AnnAssign) else []


@pytest.mark.parametrize("name", [name for name in FILES if name not in ENTRIES])
def test_a_room_imports_only_rooms_above_it(name):
    own = room(name)
    if own == "__init__":
        return
    assert own in PLACE, f"{own} has no place in ORDER"
    wrong = []
    for line, module in imports(FILES[name]):
        if not module.startswith("neuronym."):
            continue
        other = module.split(".")[1]
        if other != own and not PLACE.get(other, 99) < PLACE[own]:
            wrong.append(f"{name} line {line} imports {module}")
    assert wrong == []


def test_no_file_imports_itself_in_a_circle():
    """Within a room too: files can be put in an order in which each imports earlier ones only."""
    modules = {f"neuronym.{name.removesuffix('.py').replace('/', '.')}": name for name in FILES}
    needs = {}
    for module, name in modules.items():
        found = {m for _, m in imports(FILES[name], above=name in ENTRIES)}
        needs[module] = {
            m for m in modules if m != module and any(f == m or f.startswith(f"{m}.") for f in found)
        }
    placed: set[str] = set()
    while ready := [m for m, others in needs.items() if m not in placed and others <= placed]:
        placed |= set(ready)
    assert sorted(set(modules) - placed) == []


def test_heavy_packages_are_imported_in_their_room_only():
    wrong = [
        f"{name} line {line} imports {module}"
        for name, path in FILES.items()
        for line, module in imports(path)
        for package in [module.split(".")[0]]
        if package in ROOM_OF and not name.startswith(ROOM_OF[package]) and (name, package) not in EXCEPTIONS
    ]
    assert wrong == []
    for name, package in EXCEPTIONS:
        assert any(module.split(".")[0] == package for _, module in imports(FILES[name])), (
            "one less exception"
        )


def test_names_of_two_things_are_known():
    homes: dict[str, list[str]] = {}
    for name, path in FILES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for found in defined(node):
                if not found.startswith("_"):
                    homes.setdefault(found, []).append(name)
    twice = {found: files for found, files in homes.items() if len(set(files)) > 1}
    assert {found: files for found, files in twice.items() if found not in TWICE.keys() | CONSTANTS} == {}
    assert sorted((TWICE.keys() | CONSTANTS) - set(twice)) == [], "no longer twice: take it off the list"
