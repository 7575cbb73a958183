"""How soon does the explorer show units in a real JupyterLab?

    python benchmarks/explorer.py [--units 1000 10000] [--images 1000] [--repeat 3] [--csv FILE]

Units are made up: layers of 2,048 with random activations over scenes of the microworld, named at random out
of its concepts by two methods. A notebook in JupyterLab measures them in one cell and shows the explorer in
the next, which is what is timed. For each number of units: seconds from running the cell until the first
cards are drawn, and until the first of their pictures is there; and seconds of processor time, of Python in
`explorer` and showing it, and of JupyterLab's own thread in the browser until the pictures, which other work
on the machine does not change much. Medians. Needs jupyterlab, anywidget, playwright and Debian's chromium;
without them nothing is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from similarity import write_table

NEEDED = ("jupyterlab", "anywidget", "ipykernel", "playwright")
MADE_UP = """
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from IPython.display import display

from neuronym import measure
from neuronym.atlas.explorer import explorer

rng, count = np.random.default_rng(0), {units}
data = measure("microworld:resnet", "fc", "microworld:{images}", "microworld", "microworld")
sizes = {{f"layer{{k}}": min(2048, count - 2048 * k) for k in range(-(-count // 2048))}}
Q = {{name: torch.from_numpy(rng.random((data.N, K), dtype=np.float32)) for name, K in sizes.items()}}
data = replace(data, Q=Q, layers={{name: data.layers["fc"] for name in sizes}})
where = {{"layer": np.repeat(list(sizes), list(sizes.values())), "rank": 1, "model": "made up"}}
where["unit"] = np.concatenate([np.arange(K) for K in sizes.values()])
labels = pd.concat(
    pd.DataFrame(where).assign(method=method, label=rng.choice(data.concepts, count), score=rng.random(count))
    for method in ("one", "two")
)
"""
SHOWN = """
before = time.process_time()
widget = explorer(data, labels)
display(widget)
print("took", time.process_time() - before)
"""
KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
TIMED = """() => new Promise(done => {
  const before = performance.now(), took = {};
  window.jupyterapp.commands.execute("notebook:run-cell");
  const look = () => {
    const [card, pic] = [".card", ".card .pic"].map(what => document.querySelector(".atlas " + what));
    if (card) took.cards ||= performance.now() - before;
    if (pic?.style.backgroundImage) done({ ...took, pictures: performance.now() - before });
    else setTimeout(look, 5);
  };
  look();
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None or any(importlib.util.find_spec(name) is None for name in NEEDED):
        print("nothing measured: pip install 'neuronym[lab,browser]' and apt-get install chromium")
        return
    from playwright.sync_api import sync_playwright

    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        for units in args.units:
            write_notebook(Path(folder) / f"{units}.ipynb", units, args.images)
        with lab(Path(folder)) as address:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for units in args.units:
                runs = [
                    measured(browser, f"{address}/lab/tree/{units}.ipynb?reset") for _ in range(args.repeat)
                ]
                middle = {name: f"{statistics.median(run[name] for run in runs):.2f}" for name in runs[0]}
                rows.append({"units": units, "images": args.images, **middle})
                print(rows[-1], flush=True)
            browser.close()
    print(pd.DataFrame(rows).to_string(index=False))
    write_table(rows, args.csv)


def write_notebook(file: Path, units: int, images: int) -> None:
    """Two cells: what measures, and what is timed."""
    sources = [MADE_UP.format(units=units, images=images), SHOWN]
    shared = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    cells = [{**shared, "id": f"cell-{i}", "source": source.strip()} for i, source in enumerate(sources)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    file.write_text(json.dumps(whole), encoding="utf-8")


@contextmanager
def lab(folder: Path):
    """Address of a JupyterLab on a folder, with settings of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {f"JUPYTER_{name}": str(folder / name) for name in ("CONFIG_DIR", "RUNTIME_DIR")}
    env |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    env.pop("NEURONYM_HEADLESS", None)
    given = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root", "--expose-app-in-browser"]
    given += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *given], env=env, **quiet)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(address + "/api/status", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()  # takes its kernels with it
        server.wait(30)


def measured(browser, address: str) -> dict[str, float]:
    """Seconds of one explorer."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(240_000)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_function(KERNEL)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-cell-and-select-next')")
    page.wait_for_function(KERNEL)
    before = worked(session)
    took = page.evaluate(TIMED)
    busy = worked(session) - before
    said = page.locator(".jp-OutputArea-output", has_text="took").inner_text()
    page.evaluate("window.jupyterapp.commands.execute('kernelmenu:shutdown')")
    page.close()
    return {
        "first cards": took["cards"] / 1000,
        "first pictures": took["pictures"] / 1000,
        "processor of Python": float(said.split()[1]),
        "processor of the page": busy,
    }


def worked(session) -> float:
    """Seconds of processor time of the page's thread so far."""
    told = session.send("Performance.getMetrics")["metrics"]
    return next(one["value"] for one in told if one["name"] == "TaskDuration")


if __name__ == "__main__":
    main()
