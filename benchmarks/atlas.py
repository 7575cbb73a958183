"""How large is the page of an atlas, and how fast does it load and answer in a real browser?

    python benchmarks/atlas.py [--units 10000 100000 1000000] [--repeat 5] [--before utils] [--csv FILE]

Units, names and numbers are made up: layers of 2,048 units, a fifth as many names as units and at most
20,000, two methods; no pictures and no details of units, which are loaded one file at a time when they are
looked at. For each number of units: MB of all files that are loaded at the start, and of the columns and
names by other methods that further views and searches load; milliseconds from opening the page, from a
folder, until all is loaded and until something is drawn, and those until an empty page is loaded in the same
browser, each after the browser has rested for a second and with nothing else attached to the page. Then what
the page's own thread did until all was loaded, in a visit more, whose tasks Chromium records: milliseconds at
work, those in the midst of a task without a processor, which other work on the machine and the browser's
other threads had, and those without a task, waiting for files and the browser. `at work` and `waiting` are
what a machine with free processors needs. Then milliseconds of processor time on the page's own thread, which
other work on the machine does not change much: to load (an empty page's taken off), of it scripts, and style
and layout; to search "a" (many names; the first time, when names by other methods and files of pictures are
loaded, and again), to search "no such name", to filter by trust, and to sort the table by name (the first
time, when its columns are loaded and the order is made, and again). A query's is that of scripts, without the
browser's layout and painting; what is done the first time loads files, and there it is that of everything.
Medians. `--before` names the folder utils of another version, whose page is opened in turn with this one's:
where other work comes and goes, such pairs can be compared. Needs playwright and Debian's chromium; without
them nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from similarity import write_table

from neuronym.atlas import contents, site

LAYER = 2048
TYPED = """async ([name, value]) => {
  const field = document.querySelector(name);
  field.value = value;
  field.dispatchEvent(new Event("input"));
  while (!document.querySelector("main [role=status]")) await new Promise(done => setTimeout(done));
}"""
GONE = """address => new Promise(done => {
  const there = () => document.querySelector("tbody tr") ? done() : setTimeout(there);
  addEventListener("hashchange", () => setTimeout(there), { once: true });
  location.hash = address;
})"""
SEARCH, LEAST = "[type=search]", "[type=range]"
QUERIES = {  # what is done, what it is called; nothing where it only leads back
    "many names at first": (TYPED, [SEARCH, "a"]),
    "no name": (TYPED, [SEARCH, "no such name"]),
    "many names again": (TYPED, [SEARCH, "a"]),
    "": (TYPED, [SEARCH, ""]),
    "trust": (TYPED, [LEAST, ".5"]),
    " ": (TYPED, [LEAST, "0"]),
    "sort at first": (GONE, "#/table?sort=label"),
    "  ": (GONE, "#/table?sort=layer"),
    "sort again": (GONE, "#/table?sort=label"),
}
REST = 1.0  # seconds
EMPTY = '<!doctype html><title>empty</title><link rel="icon" href="data:,"><p class="card">empty'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--before", type=Path, help="utils of another version, measured in turn")
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("nothing measured: pip install 'neuronym[browser]' and apt-get install chromium")
        return
    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for units in args.units:
            versions = {"before": args.before.resolve()} if args.before else {}
            versions["now"] = None
            with tempfile.TemporaryDirectory() as folder:
                places = {name: Path(folder, name) for name in versions}
                sizes = {name: write_version(places[name], units, versions[name]) for name in versions}
                runs = {name: [] for name in versions}
                for _ in range(args.repeat):
                    for name, place in places.items():
                        runs[name].append(measured(browser, place))
            for name, (size, later) in sizes.items():
                told = {"units": units} | ({"version": name} if args.before else {})
                told |= {"MB": f"{size / 1e6:.2f}", "MB later": f"{later / 1e6:.2f}"}
                for kind in runs[name][0]:
                    told[kind] = f"{statistics.median(run[kind] for run in runs[name]):.0f}"
                rows.append(told)
                print(rows[-1], flush=True)
        browser.close()
    print(pd.DataFrame(rows).to_string(index=False))
    write_table(rows, args.csv)


def write_version(folder: Path, count: int, package: Path | None) -> tuple[int, int]:
    """`write_made_up` by this package or by another, in a process of its own."""
    folder.mkdir()
    if package is None:
        size, later = write_made_up(folder, count)
    else:
        code = "import pathlib, sys, atlas; "
        code += "print(*atlas.write_made_up(pathlib.Path(sys.argv[1]), int(sys.argv[2])))"
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), str(Path(__file__).parent)])}
        command = [sys.executable, "-c", code, str(folder), str(count)]
        told = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
        size, later = map(int, told.split())
    (folder / "empty.html").write_text(EMPTY, encoding="utf-8")
    return size, later


def write_made_up(folder: Path, count: int) -> tuple[int, int]:
    """The page's files for made-up units; returns the bytes that are loaded to show the first cards, and
    those of the columns that other views load.
    """
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnoprstuvw"))
    names = np.array(["".join(rng.choice(letters, 7)) for _ in range(min(20_000, count // 5))])
    sizes = {f"layer{k}": min(LAYER, count - k * LAYER) for k in range(-(-count // LAYER))}
    where = {
        "layer": np.repeat(list(sizes), list(sizes.values())),
        "unit": np.concatenate([np.arange(size) for size in sizes.values()]),
    }
    methods = pd.concat(
        pd.DataFrame(where).assign(
            method=method, label=rng.choice(names, count), score=rng.random(count), held=rng.random(count)
        )
        for method in ("one", "two")
    )
    own = methods[methods["method"] == "one"]
    units = own.assign(p=rng.random(count), odd=0, active=rng.random(count), trust=rng.random(count))
    data = SimpleNamespace(
        sizes=sizes,
        N=1000,
        target=SimpleNamespace(name="made up"),
        clip=SimpleNamespace(name="none"),
        probe=SimpleNamespace(name="none", scenes=None),
        concepts=list(names),
    )
    network = contents.Network(data, own, units, methods, "one")
    for name in site.PAGE:
        (folder / name).write_text(site.read_page(name), encoding="utf-8")
    none = np.full((count, contents.ON_CARD), -1, dtype=np.int32)
    content = contents.index_content([network], "Made up", rng.random((count, 2)) * 2 - 1, tops=none)
    _, later = site.write_index(folder, content)
    for n in range(0, count, contents.TOPS):
        site.script(folder, f"tops/{n // contents.TOPS:04d}", contents.packed(none[n : n + contents.TOPS]))
    return sum(file.stat().st_size for file in folder.glob("*.*")), later


def measured(browser, folder: Path) -> dict[str, float]:
    """Milliseconds passed in a visit at rest; what the page's thread did in another; and of processor time in
    a third, to load and to answer.
    """
    took = dict(zip(("load", "drawn"), at_rest(browser, folder / "index.html")))
    took["empty page"], _ = at_rest(browser, folder / "empty.html")
    empty, page = opened(browser, folder / "empty.html"), opened(browser, folder / "index.html")
    took |= until_loaded(browser, folder / "index.html")
    took["processor to load"] = page.busy - empty.busy
    took |= {"scripts": page.scripts - empty.scripts, "layout": page.drawn - empty.drawn}
    for name, (done, what) in QUERIES.items():
        kind = "TaskDuration" if name.endswith("first") else "ScriptDuration"
        before = worked(page.session)[kind]
        page.page.evaluate(done, what)
        if name.strip():
            took[name] = worked(page.session)[kind] - before
    empty.page.close()
    page.page.close()
    return took


def at_rest(browser, file: Path) -> tuple[float, float]:
    """Milliseconds until a page is loaded and until something is drawn, in a browser that has rested: it is
    busy for a while after a page was closed and another begun.
    """
    page = browser.new_page()
    page.set_default_timeout(120_000)
    time.sleep(REST)
    page.goto(file.as_uri())
    time.sleep(REST)
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    drawn = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.close()
    time.sleep(REST)
    return loaded, drawn


def opened(browser, file: Path) -> SimpleNamespace:
    """A page, its session, and ms of processor time until it was loaded."""
    page = browser.new_page()
    page.set_default_timeout(120_000)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(file.as_uri())
    page.wait_for_selector(".card")
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint')[0]")
    told = worked(session)
    drawn = told["LayoutDuration"] + told["RecalcStyleDuration"]
    return SimpleNamespace(
        page=page, session=session, busy=told["TaskDuration"], scripts=told["ScriptDuration"], drawn=drawn
    )


def until_loaded(browser, file: Path) -> dict[str, float]:
    """What the page's own thread did until all was loaded, by the tasks that Chromium records."""
    page = browser.new_page()
    browser.start_tracing(page=page, categories=["toplevel", "blink.user_timing"])
    page.goto(file.as_uri())
    told = json.loads(browser.stop_tracing())["traceEvents"]
    page.close()
    start = next(e for e in told if e["name"] == "navigationStart" and file.name in json.dumps(e["args"]))
    told = [e for e in told if (e["pid"], e["tid"]) == (start["pid"], start["tid"])]
    opened = start["ts"]
    loaded = max(e["ts"] for e in told if e["name"] == "loadEventEnd")
    at_work = in_tasks = until = 0
    tasks = [e for e in told if e["name"] == "ThreadControllerImpl::RunTask" and e["ph"] == "X"]
    for task in sorted(tasks, key=lambda e: e["ts"]):
        begun, ended = task["ts"], task["ts"] + task["dur"]
        inside = min(ended, loaded) - max(begun, opened)
        if inside <= 0 or ended <= until:  # within another task
            continue
        in_tasks, until = in_tasks + inside, ended
        at_work += (
            inside / task["dur"] * task.get("tdur", task["dur"])
        )  # short ones have no time of their own
    took = {"at work": at_work, "without a processor": in_tasks - at_work}
    took["waiting"] = loaded - opened - in_tasks
    return {name: value / 1000 for name, value in took.items()}


def worked(session) -> dict[str, float]:
    """Milliseconds of processor time of the page's thread so far, by kind."""
    told = session.send("Performance.getMetrics")["metrics"]
    return {one["name"]: 1000 * one["value"] for one in told}


if __name__ == "__main__":
    main()
