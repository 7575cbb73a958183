"""docs/names.md: what every parameter takes, as tables, from the texts of the modules that load it.

A line `    name | what it is | example` in a module's text is a row of its table, a line indented further
goes on with it, and a name without an example is its own. Choices come from the notebooks' parameters.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import dropwhile, takewhile

from neuronym.runs.folders import notebooks_dir, PACKAGE
from neuronym.runs.parameters import Parameter, read_parameters


@dataclass(frozen=True)
class Section:
    """One table of the page."""

    title: str
    parameters: tuple[str, ...]  # of notebooks, that take its names
    module: str  # whose text has the rows
    kinds: tuple[str, ...] = ()  # rows of runs/kinds.py that it shows
    under: str = ""  # the line of the text before its rows, where there are several tables
    after: str = ""  # said below the table


SECTIONS = (
    Section(
        "Networks",
        ("target",),
        "models/targets",
        ("targets",),
        after="In scripts also a module of yours: `load_target(module, preprocess=..., name=...)`.",
    ),
    Section(
        "Weights",
        (),
        "models/weights",
        after="Networks of torchvision and timm take all of these, `openai:NAME` takes a FILE.",
    ),
    Section(
        "Layers",
        ("layers",),
        "hooks",
        after="`second_order` counts from 0, such as `8,9,10`: a ViT's MLPs but the last, all of a SigLIP's; "
        "a ResNet has `4`.",
    ),
    Section("Units", ("units",), "common/units"),
    Section(
        "Images",
        ("probe",),
        "datasets/probe_sets",
        ("probes",),
        after="Several are joined by `+`: `folder:/a+folder:/b`. In scripts also paths or PIL pictures.",
    ),
    Section(
        "Words",
        ("concepts", "concept_sets", "pools"),
        "datasets/concepts",
        ("concepts",),
        after="In scripts also a list of strings.",
    ),
    Section(
        "Image-text models",
        ("clip", "clips", "judge"),
        "models/clips",
        ("clips", "lens_clips"),
        after="`second_order` reads the image tower, a ViT, a ResNet or a SigLIP: all but `conse`.",
    ),
    Section("Similarity functions", ("similarity",), "similarity/scores"),
    Section("Captioners", ("captioner",), "models/captioners", ("captioners",)),
    Section(
        "Language models",
        ("llm", "llms"),
        "models/llms",
        ("llms",),
        after="`OPENAI_BASE_URL` and `OPENAI_API_KEY` name the server; nothing writes them down.",
    ),
    Section("What a language model is told", ("prompt",), "describe/prompts"),
    Section(
        "Pictures of a text",
        ("generator",),
        "models/generators",
        ("generators",),
        after="`second_order` draws new pictures, so it takes no `retrieval`.",
    ),
    Section("Choice among candidates", ("selection",), "describe/scoring"),
    Section("Captions that fool", ("writer",), "second_order/adversarial", ("writers",)),
    Section("Sentence encoders", ("sentences",), "models/sentences", ("sentences", "encoders")),
    Section("Images with classes", ("task",), "datasets/tasks", ("tasks",), "Tasks:"),
    Section("Images with masks", ("masks",), "datasets/tasks", ("masks",), "Masks:"),
)
HEAD = """# Names that parameters take

A notebook takes its networks, images, words and models by name: `neuronym labelling -p target timm:resnet18`.
Capitals stand for what you choose, brackets for what may be left out. Relative paths start at the repository
root. What is missing on disk is said in one sentence: what, from where, to where. `neuronym --list NOTEBOOK`
prints all parameters of a notebook. (Written by `make docs` from the modules that load these names.)
"""


def names_page() -> str:
    """docs/names.md."""
    parts = [HEAD]
    for section in SECTIONS:
        parts.append(f"## {section.title}\n")
        if section.parameters:
            parts.append(f"{_listed(section.parameters)}.\n")
        cells = [(f"`{name}`", what, f"`{example}`") for name, what, example in rows(section)]
        parts.append("".join(_lines(("name", "what it is", "for example"), cells)))
        if section.after:
            parts.append(f"{section.after}\n")
    parts.append("## Other choices\n")
    parts.append("".join(_lines(("parameter", "of", "takes", "what it is"), other_choices())))
    parts.append("## Other texts\n")
    parts.append("".join(_lines(("parameter", "of", "if not set", "what it is"), other_texts())))
    return "\n".join(parts)


def rows(section: Section) -> list[tuple[str, str, str]]:
    """(name, what it is, example) of the table in a module's text; ValueError where there is none."""
    file = PACKAGE / f"{section.module}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")), clean=False) or ""
    lines = iter(text.splitlines())
    if section.under and section.under not in lines:  # goes on behind that line
        raise ValueError(f"{file} has no line '{section.under}'")
    found = list(_table(lines))
    if not found:
        raise ValueError(f"{file} has no lines `    name | what it is | example`")
    return found


def other_choices() -> list[tuple[str, str, str, str]]:
    """(parameter, notebooks, choices, help) of all parameters with choices that have no table."""
    return [
        (
            name,
            of,
            ", ".join(f"`{one}`" for one in parameter.choices),
            parameter.help.partition("choices:")[0],
        )
        for name, of, parameter in _without_table()
        if parameter.choices
    ]


def other_texts() -> list[tuple[str, str, str, str]]:
    """(parameter, notebooks, default, help) of all other texts."""
    return [
        (name, of, f"`{parameter.default}`" if parameter.default else "", parameter.help)
        for name, of, parameter in _without_table()
        if parameter.type == "str" and not parameter.choices
    ]


def _without_table() -> list[tuple[str, str, Parameter]]:
    """Parameters that no section shows, each with the notebooks that take it in the same way."""
    shown = {name for section in SECTIONS for name in section.parameters}
    found: dict[Parameter, list[str]] = {}
    for path in sorted(notebooks_dir().glob("*.ipynb")):
        for name, parameter in read_parameters(path).items():
            if name not in shown:
                found.setdefault(parameter, []).append(f"`{path.stem}`")
    rows = [(f"`{parameter.name}`", ", ".join(of), parameter) for parameter, of in found.items()]
    return sorted(rows, key=lambda row: row[:2])


def _table(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """The first rows that come, each with the lines that go on with it."""
    block = takewhile(_indented, dropwhile(lambda line: not (_indented(line) and " | " in line), lines))
    joined: list[str] = []
    for line in block:
        if line.startswith("     "):
            joined[-1] += " " + line.strip()
        else:
            joined.append(line.strip())
    for row in joined:
        name, what, *example = (part.strip() for part in row.split(" | "))
        yield name, what, example[0] if example else name


def _indented(line: str) -> bool:
    return line.startswith("    ") and bool(line.strip())


def _lines(head: tuple[str, ...], cells: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for line in (head, ["---"] * len(head), *cells):
        escaped = [cell.strip().replace("|", r"\|") for cell in line]
        yield f"| {' | '.join(escaped)} |\n"


def _listed(parameters: tuple[str, ...]) -> str:
    named = [f"`{name}`" for name in parameters]
    return "Parameter " + named[0] if len(named) == 1 else "Parameters " + ", ".join(named)
