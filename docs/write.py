"""`make docs`: write the tables of docs/results from the CSV files of runs, and docs/names.md from the code.

    python docs/write.py           take the CSV files from the newest default run of each notebook
    python docs/write.py --check   only compare pages with the files committed beside them (what the tests do)

In a page of docs/results, NOTEBOOK.md, stands between markers what a command printed:

    <!-- table final_layer_by_similarity.csv; columns=top1,top5 -->   ... <!-- end -->
    <!-- = metrics.csv final_top1_soft_wpmi .3f -->1.000<!-- end -->

Options of a table: where=COLUMN:VALUE (several), among=COLUMN:A|B, columns=A,B, pivot=ROWS|COLUMNS|VALUES,
mean=A,B (means over all other rows), digits=3. Files lie in docs/results/data/NOTEBOOK/.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd

from neuronym.runs.folders import notebooks_dir, results_dir, ROOT
from neuronym.runs.kinds import KINDS
from neuronym.runs.parameters import read_parameters
from neuronym.runs.run import NOT_HASHED

PAGES = ROOT / "docs" / "results"
DATA = PAGES / "data"
TABLE = re.compile(r"(<!-- table (?P<what>[^>]*?) -->\n)(?P<old>.*?)(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"(<!-- = (?P<file>\S+) (?P<key>[^>]*?) (?P<form>[^ >]+) -->)(?P<old>.*?)(<!-- end -->)")
REGISTRIES = (  # kind of name, what reads it
    ("target", "targets", "neuronym.models.targets"),
    ("probe", "probes", "neuronym.datasets.probe"),
    ("concepts", "concepts", "neuronym.datasets.concepts"),
    ("clip, judge, clips", "clips", "neuronym.models.clips"),
    ("captioner", "captioners", "neuronym.models.captioners"),
    ("llm, llms", "llms", "neuronym.models.llms"),
    ("generator", "generators", "neuronym.models.generators"),
    ("sentences", "sentences", "neuronym.models.sentences"),
    ("task, masks", "tasks", "neuronym.datasets.tasks"),
    ("units", "", "neuronym.common.units"),
)


def main(arguments: list[str]) -> int:
    """Write or check all pages; returns 1 when a page is not what its files say."""
    check = "--check" in arguments
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.md"))}
    wanted = {path: wanted_files(text) for path, text in pages.items()}
    texts = {ROOT / "docs" / "names.md": names_page()}
    for path, files in wanted.items():
        folder = DATA / path.stem
        if files and not check:
            _fetch(path.stem, files)
        lacking = [file for file in sorted(files) if not (folder / file).exists()]
        if lacking:
            raise SystemExit(
                f"{path.name} shows {', '.join(lacking)}, which {folder} lacks; run neuronym {path.stem}"
            )
        texts[path] = rendered(pages[path], folder)
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        name = path.relative_to(ROOT)
        if check:
            print(f"{name} is not what its sources say; run make docs", file=sys.stderr)
        else:
            path.write_text(texts[path], encoding="utf-8")
            print(f"wrote {name}")
    return int(check and bool(stale))


def wanted_files(text: str) -> set[str]:
    """CSV files that a page shows."""
    tables = {match["what"].split(";")[0].strip() for match in TABLE.finditer(text)}
    return tables | {match["file"] for match in NUMBER.finditer(text)}


def rendered(text: str, folder: Path) -> str:
    """The page with every table and number as the files in `folder` say."""

    def table(match: re.Match) -> str:
        file, *options = (part.strip() for part in match["what"].split(";"))
        return f"{match[1]}{markdown(_read(folder / file), options)}{match[4]}"

    def number(match: re.Match) -> str:
        values = pd.read_csv(folder / match["file"], index_col=0).iloc[:, 0]
        value = float(values[match["key"]])
        return f"{match[1]}{_short(format(value, match['form']))}{match[6]}"

    return NUMBER.sub(number, TABLE.sub(table, text))


def markdown(table: pd.DataFrame, options: list[str]) -> str:
    """A table as Markdown, with what the options choose of it."""
    digits = 3
    for option in options:
        key, _, value = option.partition("=")
        if key == "where":
            column, _, wanted = value.partition(":")
            table = table[table[column].astype(str) == wanted]
        elif key == "among":
            column, _, several = value.partition(":")
            table = table[table[column].astype(str).isin(several.split("|"))]
        elif key == "columns":
            table = table[value.split(",")]
        elif key == "mean":
            table = table.groupby(value.split(","), sort=False).mean(numeric_only=True).reset_index()
        elif key == "pivot":
            rows, columns, values = value.split("|")
            joined = table[columns.split(",")].agg(" ".join, axis=1)
            table = table.assign(**{columns: joined} if "," in columns else {})
            table = table.pivot_table(index=rows, columns=columns, values=values, sort=False).reset_index()
        elif key == "digits":
            digits = int(value)
        else:
            raise ValueError(
                f"options of a table are where, among, columns, mean, pivot and digits, got '{option}'"
            )
    lines = [list(map(str, table.columns)), ["---"] * table.shape[1]]
    lines += [[_cell(value, digits) for value in row] for row in table.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def names_page() -> str:
    """docs/names.md: what each parameter takes, from the texts of the modules that load it."""
    from importlib import import_module

    parts = [
        "# Names that parameters take\n",
        "Written by `make docs` from the modules that load them. `@FILE` after a name gives it the weights "
        "of a file,",
        "`@none` and `@random:0` random ones; relative paths start at the repository root.\n",
    ]
    for parameters, kinds, module in REGISTRIES:
        parts.append(f"## {parameters}\n")
        if kinds:
            parts.append("Kinds: " + ", ".join(f"`{kind}`" for kind in KINDS[kinds]) + ".\n")
        text = import_module(module).__doc__.strip()
        parts.append(f"```text\n{text}\n```\n")
    return "\n".join(parts)


def _fetch(notebook: str, files: set[str]) -> None:
    """Copy files from the newest done run with default parameters; what no run has stays as it is."""
    if not (
        notebooks_dir() / f"{notebook}.ipynb"
    ).exists():  # a script of benchmarks/ writes its files itself
        return
    known = read_parameters(notebooks_dir() / f"{notebook}.ipynb")
    usual = {name: p.default for name, p in known.items() if name not in NOT_HASHED}
    runs = []
    for done in (results_dir() / notebook).glob("*/done"):
        params = json.loads((done.parent / "params.json").read_text(encoding="utf-8"))
        if {name: value for name, value in params.items() if name not in NOT_HASHED} == usual:
            runs.append((done.stat().st_mtime, done.parent))
    if not runs:
        print(f"no default run of {notebook}; its page keeps its numbers", file=sys.stderr)
        return
    folder = max(runs)[1]
    (DATA / notebook).mkdir(parents=True, exist_ok=True)
    for file in sorted(files):
        if file == "metrics.csv":
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            rows = [(name, value) for name, value in metrics.items() if isinstance(value, int | float)]
            pd.DataFrame(rows, columns=["metric", "value"]).to_csv(DATA / notebook / file, index=False)
        else:
            shutil.copyfile(folder / file, DATA / notebook / file)
    print(f"{notebook}: {len(files)} files from {folder.name}")


def _read(file: Path) -> pd.DataFrame:
    """A CSV file; headers of several rows are joined, and a first column without a name is one of names."""
    first = file.read_text(encoding="utf-8").splitlines()[:3]
    if file.name == "sanity.csv":
        table = pd.read_csv(file, header=[0, 1, 2], index_col=0)
        table.columns = [" ".join(dict.fromkeys(parts)) for parts in table.columns]
        return table.rename_axis("metric").reset_index()
    table = pd.read_csv(file)
    return table.rename(columns={"Unnamed: 0": "layer" if "oracle" in first[0] else "name"})


def _cell(value: object, digits: int) -> str:
    if isinstance(value, float):
        if value != value:
            return ""
        return str(int(value)) if value.is_integer() and abs(value) > 1 else _short(f"{value:.{digits}f}")
    return str(value).replace("|", "\\|")


def _short(number: str) -> str:
    """.981 for 0.981, as papers print."""
    return re.sub(r"^(-?)0\.", r"\1.", number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
