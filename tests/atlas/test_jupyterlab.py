"""The explorer where it is used: a JupyterLab that runs the notebook labelling, driven as a person would."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from neuronym.runs.folders import notebook_path
from tests.helpers.looks import axe, axe_faults, faults

CHROMIUM = shutil.which("chromium")
LAST = "print('chosen:', widget.selected)"
TWO = """
from dataclasses import replace

from neuronym.atlas.explorer import as_network, explorer_of

explorer_of([as_network(data, labels), as_network(replace(data), labels)], "Two networks")
"""
READY = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab in whose folder labelling.ipynb stands, in smoke mode, with two cells more."""
    pytest.importorskip("playwright.sync_api", reason="pip install playwright, or neuronym[browser]")
    for name in ("jupyterlab", "anywidget", "ipykernel"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"no {name} here: pip install neuronym[lab]")
    if not CHROMIUM:
        pytest.skip("no chromium here: apt-get install chromium")
    folder = tmp_path_factory.mktemp("lab")
    notebook = json.loads(notebook_path("labelling").read_text(encoding="utf-8"))
    [parameters] = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    asked = "".join(parameters["source"])
    assert "smoke = False" in asked
    parameters["source"] = asked.replace("smoke = False", "smoke = True")
    for name, source in (("last", LAST), ("two", TWO)):
        notebook["cells"].append({**parameters, "id": name, "metadata": {}, "source": source})
    notebook["metadata"]["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (folder / "labelling.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = ("CONFIG_DIR", "RUNTIME_DIR")
    env = {name: value for name, value in os.environ.items() if name != "NEURONYM_HEADLESS"}
    env |= {f"JUPYTER_{name}": str(folder / name) for name in places}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder)}
    env |= {"NEURONYM_RESULTS": str(folder / "results"), "NEURONYM_CACHE": str(folder / "cache")}
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    given = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root", "--expose-app-in-browser"]
    given += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *given], env=env, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(address + "/api/status", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()  # takes its kernels with it
        server.wait(30)


def test_search_open_and_choose_a_unit_and_have_it_in_python_and_compare_networks(lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(20_000)
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(lab + "/lab/tree/labelling.ipynb?reset", timeout=60_000)
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        page.wait_for_function(READY, timeout=60_000)
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        atlas, two = (
            page.locator(".jp-OutputArea .atlas", has=page.locator(f"h1:text-is('{title}')"))
            for title in ("microworld:resnet", "Two networks")
        )
        atlas.locator(".card .pic").first.wait_for(timeout=180_000)
        status = atlas.locator("header + div > [role=status]")
        total = status.inner_text().split(" of ")[1]
        name = atlas.locator(".card b").first.inner_text()
        atlas.get_by_label("search ( / )").fill(name.upper())
        assert status.inner_text().split(" of ")[1] == total and not status.inner_text().startswith("0 ")
        card = atlas.locator(".card").first
        place = card.locator("div.dim").inner_text()
        card.click()
        atlas.locator("h2").wait_for()
        atlas.locator("figure .pic").first.wait_for()
        assert atlas.locator("h2").inner_text() == name
        layer, unit = place.split(" · unit ")
        unit = int(unit.split()[0])
        atlas.get_by_role("button", name="choose this unit").click()
        atlas.locator(f"text=chosen: {layer}=ids:{unit}").wait_for()
        page.locator(".jp-CodeCell").nth(-2).locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        told = {layer: [unit]}
        page.locator(".jp-OutputArea-output", has_text=f"chosen: {told}").wait_for()
        two.get_by_role("button", name="compare").click()
        two.get_by_role("combobox", name="right").select_option(label=f"microworld:resnet (2) · {layer}")
        two.get_by_role("combobox", name="left").select_option(label=f"microworld:resnet · {layer}")
        two.locator("text=/ pairs, one to one/").wait_for()
        assert two.locator("thead th").last.inner_text() == "held out" and two.locator("tbody tr").count() > 1
        two.get_by_role("button", name="map").click()
        two.locator("canvas").wait_for(timeout=90_000)  # t-SNE of 872 units, beside whatever else runs
        drawn = two.locator("canvas").evaluate("canvas => canvas.toDataURL()")
        for theme, ground in (("Light", "rgb(255, 255, 255)"), ("Dark", "rgb(21, 24, 27)")):
            change = {"theme": f"JupyterLab {theme}"}
            page.evaluate(
                "asked => window.jupyterapp.commands.execute('apputils:change-theme', asked)", change
            )
            light = str(theme == "Light").lower()
            page.wait_for_function(f"document.body.dataset.jpThemeLight === '{light}'")
            assert two.evaluate("el => getComputedStyle(el).backgroundColor") == ground
            wrong += faults(page, ".jp-OutputArea .atlas")
            wrong += axe_faults(page, axe(), ".jp-OutputArea .atlas") if axe() else []
        assert two.locator("canvas").evaluate("canvas => canvas.toDataURL()") != drawn
        assert wrong == []
        browser.close()
