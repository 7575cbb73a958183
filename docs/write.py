"""`make docs`: write the numbers of README.md and docs/results from CSV files of runs, and docs/names.md from
the code.

    python docs/write.py           take the CSV files from the newest default run of each notebook
    python docs/write.py --check   only compare pages with the files committed beside them (what the tests do)
    python docs/write.py take results/trust/RUN trust_map/vit_
                                   the CSV files trust_map/vit_* that pages show, from a run that is not of
                                   the defaults: vit_auroc.csv is its auroc.csv

In a page stands between markers what a command printed:

    <!-- table final_layer_by_similarity.csv; columns=top1,top5 -->   ... <!-- end -->
    <!--=metrics.csv;final_top1_soft_wpmi;.3f-->1.000<!--end-->
    <!--=ablation.csv;mean;.3f;metric:named;variant:no crops-->.904<!--end-->

A number is a metric of metrics.csv, or the column of the one row with these values. Its form is that of
Python (.3f, .1%), `minutes` for the sum of a column of seconds, or `written` for the digits of the file,
which are those printed. Options of a table: where=COLUMN:VALUE (several), among=COLUMN:A|B, columns=A,B,
pivot=ROWS|COLUMNS|VALUES, mean=A,B (means over all other rows), names=A:said,B:said, digits=3 or
digits=written. Files lie in docs/results/data/PAGE/; one of another page is written PAGE/FILE. For a page
that is no notebook they are taken from results/PAGE/, where `make bench` leaves its tables; `make faults`
writes those of faults.md. What no run has stays as it is.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
from names import names_page

from neuronym.common.tables import read_table
from neuronym.runs.folders import notebooks_dir, results_dir, ROOT
from neuronym.runs.parameters import read_parameters
from neuronym.runs.run import NOT_HASHED

DATA = ROOT / "docs" / "results" / "data"
TABLE = re.compile(r"(<!-- table (?P<what>[^>]*?) -->\n)(?P<old>.*?)(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"(<!--=(?P<what>[^>]*?)-->)(?P<old>[^<]*)(<!--end-->)")
WRITTEN = "written"


def main(arguments: list[str]) -> int:
    """Write or check all pages; returns 1 when a page is not what its files say."""
    check, take = "--check" in arguments, arguments[:1] == ["take"]
    pages = {path: path.read_text(encoding="utf-8") for path in numbered_pages()}
    wanted = sorted(set().union(*(wanted_files(text, path.stem) for path, text in pages.items())))
    if take:
        folder, _, prefix = arguments[2].partition("/")
        files = [file.name for file in wanted if file.parent.name == folder]
        _copy(Path(arguments[1]), folder, [name for name in files if name.startswith(prefix)], prefix)
    elif not check:
        for folder in sorted({file.parent.name for file in wanted}):
            _fetch(folder, [file.name for file in wanted if file.parent.name == folder])
    lacking = [f"{file.parent.name}/{file.name}" for file in wanted if not file.exists()]
    if lacking:
        raise SystemExit(f"pages show {', '.join(lacking)}, which {DATA} lacks; run what they are of")
    texts = {ROOT / "docs" / "names.md": names_page()}
    texts |= {path: rendered(text, DATA / path.stem) for path, text in pages.items()}
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        name = path.relative_to(ROOT)
        if check:
            print(f"{name} is not what its sources say; run make docs", file=sys.stderr)
        else:
            path.write_text(texts[path], encoding="utf-8")
            print(f"wrote {name}")
    return int(check and bool(stale))


def numbered_pages() -> list[Path]:
    """The pages whose numbers come from files."""
    own = [ROOT / "README.md", ROOT / "data" / "README.md", ROOT / "docs" / "scale.md"]
    return [*own, *sorted(DATA.parent.glob("*.md"))]


def wanted_files(text: str, page: str) -> set[Path]:
    """CSV files that a page shows."""
    whats = [match["what"] for pattern in (TABLE, NUMBER) for match in pattern.finditer(text)]
    return {_place(what.split(";")[0].strip(), DATA / page) for what in whats}


def rendered(text: str, folder: Path) -> str:
    """The page with every table and number as the files say; those without a folder lie in `folder`."""

    def table(match: re.Match) -> str:
        file, *options = (part.strip() for part in match["what"].split(";"))
        shown = _read(_place(file, folder), as_text="digits=written" in options)
        return f"{match[1]}{markdown(shown, options)}{match[4]}"

    def number(match: re.Match) -> str:
        file, column, form, *where = match["what"].split(";")
        return f"{match[1]}{one_number(_place(file, folder), column, form, where)}{match[4]}"

    return NUMBER.sub(number, TABLE.sub(table, text))


def one_number(file: Path, column: str, form: str, where: list[str]) -> str:
    """A metric, or the value of a column in the one row that has the values of `where`, as it is printed."""
    table = _read(file, as_text=True)
    if list(table.columns) == ["metric", "value"]:
        where, column = [f"metric:{column}"], "value"
    for condition in where:
        table = _chosen(table, condition)
    if form == "minutes":
        return _minutes(table[column].astype(float).sum() / 60)
    if len(table) != 1:
        raise ValueError(f"a number is of one row, {file} has {len(table)} with {', '.join(where)}")
    value = table[column].iloc[0]
    return _short(value if form == WRITTEN else format(float(value), form).replace("%", " %"))


def markdown(table: pd.DataFrame, options: list[str]) -> str:
    """A table as Markdown, with what the options choose of it."""
    digits = 3
    for option in options:
        key, _, value = option.partition("=")
        if key == "where":
            table = _chosen(table, value)
        elif key == "among":
            column, _, several = value.partition(":")
            table = table[table[column].astype(str).isin(several.split("|"))]
        elif key == "columns":
            table = table[value.split(",")]
        elif key == "mean":
            table = table.groupby(value.split(","), sort=False).mean(numeric_only=True).reset_index()
        elif key == "pivot":
            rows, columns, values = value.split("|")
            if "," in columns:
                joined = table[columns.split(",")].astype(str).agg(" ".join, axis=1)
                table = table.assign(**{columns: joined})
            table = table.pivot_table(index=rows, columns=columns, values=values, sort=False).reset_index()
        elif key == "names":
            table = table.rename(columns=dict(name.split(":") for name in value.split(",")))
        elif key == "digits":
            digits = 0 if value == WRITTEN else int(value)
        else:
            known = "where, among, columns, mean, pivot, names and digits"
            raise ValueError(f"options of a table are {known}, got '{option}'")
    lines = [list(map(str, table.columns)), ["---"] * table.shape[1]]
    lines += [[_cell(value, digits) for value in row] for row in table.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _fetch(folder: str, files: list[str]) -> None:
    """Copy the files of a notebook's newest default run, or of results/FOLDER, to those of the pages."""
    source = _newest(folder) if (notebooks_dir() / f"{folder}.ipynb").exists() else results_dir() / folder
    if source is None or not source.is_dir():
        print(f"no default run of {folder}; its numbers stay", file=sys.stderr)
    else:
        _copy(source, folder, files)


def _copy(source: Path, folder: str, files: list[str], prefix: str = "") -> None:
    """Copy the files of a run to those of the pages, whose names have a `prefix` besides."""
    (DATA / folder).mkdir(parents=True, exist_ok=True)
    absent = []
    for file in files:
        found = source / file.removeprefix(prefix)
        if found.name == "metrics.csv" and (source / "metrics.json").exists():
            metrics = json.loads((source / "metrics.json").read_text(encoding="utf-8"))
            rows = [(name, value) for name, value in metrics.items() if isinstance(value, int | float)]
            pd.DataFrame(rows, columns=["metric", "value"]).to_csv(DATA / folder / file, index=False)
        elif found.exists():
            shutil.copyfile(found, DATA / folder / file)
        else:
            absent.append(file)
    print(f"{folder}: {len(files) - len(absent)} files from {source.name}")
    if absent:
        print(f"{folder}: {source.name} has no {', '.join(absent)}, which stay as they are", file=sys.stderr)


def _newest(notebook: str) -> Path | None:
    """Folder of the newest done run with default parameters."""
    known = read_parameters(notebooks_dir() / f"{notebook}.ipynb")
    usual = {name: p.default for name, p in known.items() if name not in NOT_HASHED}
    runs = []
    for done in (results_dir() / notebook).glob("*/done"):
        params = json.loads((done.parent / "params.json").read_text(encoding="utf-8"))
        if {name: value for name, value in params.items() if name not in NOT_HASHED} == usual:
            runs.append((done.stat().st_mtime, done.parent))
    return max(runs)[1] if runs else None


def _place(file: str, folder: Path) -> Path:
    return DATA / file if "/" in file else folder / file


def _read(file: Path, as_text: bool = False) -> pd.DataFrame:
    """A CSV file; headers of several rows are joined, and a first column without a name is one of names."""
    if file.name == "sanity.csv":
        table = pd.read_csv(file, header=[0, 1, 2], index_col=0)
        table.columns = [" ".join(dict.fromkeys(parts)) for parts in table.columns]
        return table.rename_axis("metric").reset_index()
    table = pd.read_csv(file, dtype=str, keep_default_na=False) if as_text else read_table(file)
    return table.rename(columns={"Unnamed: 0": "layer" if "oracle_correlation" in table else "name"})


def _chosen(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    column, _, wanted = condition.partition(":")
    return table[table[column].astype(str) == wanted]


def _cell(value: object, digits: int) -> str:
    if isinstance(value, float):
        if value != value:
            return ""
        return str(int(value)) if value.is_integer() and abs(value) > 1 else _short(f"{value:.{digits}f}")
    text = _short(" ".join(html.escape(str(value), quote=False).split()))
    return re.sub(r"([|`\[\]$])", r"\\\1", text)  # what a reader wrote is text, not markup


def _minutes(minutes: float) -> str:
    """To the next half below one minute, to the next whole one above."""
    return "½" if minutes <= 0.5 else f"{-int(-minutes // 1)}"


def _short(number: str) -> str:
    """.981 for 0.981, as papers print."""
    return re.sub(r"^([+-]?)0(\.\d+( %)?)$", r"\1\2", number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
