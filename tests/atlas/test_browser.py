"""The atlas in a real browser: from a folder and from a web host, by mouse, keyboard and link."""

from __future__ import annotations

import base64
import io
import shutil
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from neuronym.atlas import alike, contents, facts, site
from neuronym.atlas.pictures import Sheets
from tests.atlas.conftest import HOSTILE
from tests.helpers.looks import axe, axe_faults, faults

CHROMIUM = shutil.which("chromium")
UNIT = "unit/microworld%3Aresnet/fc/3"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright, or neuronym[browser]")
    if not CHROMIUM:
        pytest.skip("no chromium here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(browser):
    """Pages that nobody looks at, by width and scheme, each with the list where it tells what went wrong."""
    free: dict[tuple, list] = {}
    yield free
    for page, _ in sum(free.values(), []):
        page.context.close()


def new_page(browser, width: int, scheme: str) -> tuple:
    """A page, and what was wrong in it: errors told, addresses asked for that are not of this machine."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, wrong = context.new_page(), []
    page.set_default_timeout(8000)
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    inside = ("file:", "http://127.0.0.1:", "data:", "about:")
    page.on("request", lambda r: None if r.url.startswith(inside) else wrong.append(r.url))
    return page, wrong


@pytest.fixture
def visit(browser, pages):
    """Opens an address in a page; afterwards no error was told and nobody else was asked. Pages are used
    again by the next test.
    """
    taken = []

    def opened(address: str, width: int = 1200, scheme: str = "light"):
        kept = pages.setdefault((width, scheme), [])
        page, wrong = kept.pop() if kept else new_page(browser, width, scheme)
        taken.append((kept, page, wrong))
        page.goto("about:blank")  # the address may differ by what follows # alone, which loads nothing
        page.goto(address)
        return page

    yield opened
    told = [text for *_, wrong in taken for text in wrong]
    for kept, page, wrong in taken:
        wrong.clear()
        kept.append((page, wrong))
    assert told == []


@pytest.fixture(scope="module")
def folder(labelled, tmp_path_factory):
    written = tmp_path_factory.mktemp("atlas") / "site"
    network = replace(labelled, sheets=Sheets())
    site.write_site(written, [network], "An atlas", size=32, places=alike.unit_map(network.data.Q))
    return written


@pytest.fixture(scope="module")
def index(folder) -> str:
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def host(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def count(page) -> int:
    """Units that fit what is chosen, as the page tells."""
    return int(page.locator("main [role=status]").first.inner_text().split(" of ")[0].replace(",", ""))


def choose(page, field: str, **what) -> None:
    page.get_by_role("combobox", name=field).select_option(**what)


@pytest.mark.parametrize("kind", ["index", "host"])
def test_a_search_has_a_link_that_opens_the_same_view(kind, visit, network, request):
    address = request.getfixturevalue(kind)
    page = visit(address)
    page.wait_for_selector(".card .pic")
    assert count(page) == 76 and page.title() == "An atlas"
    page.get_by_label("search ( / )").fill("RED")
    names = network.methods[network.methods["label"] == "red"][["layer", "unit"]]
    units = network.units[network.units["label"] == "red"][["layer", "unit"]]
    expected = set(map(tuple, names.to_numpy())) | set(map(tuple, units.to_numpy()))
    assert count(page) == len(expected) < 76
    again = visit(page.url)
    assert count(again) == len(expected) and again.get_by_label("search ( / )").input_value() == "RED"
    page.get_by_label("search ( / )").fill("no such name")
    assert count(page) == 0 and "loosen" in page.locator("main").inner_text()
    assert page.locator(".card").count() == 0


def test_what_is_seen_at_first_is_what_a_search_finds(visit, index, network):
    alive = np.flatnonzero(network.units["odd"] & (facts.CONSTANT | facts.DEAD) == 0)
    shown = []
    for view in ("", "#/grid?layer=0-76"):  # which is every unit, found by a search
        page = visit(index + view)
        assert count(page) == len(alive)
        page.wait_for_function(
            "many => { scrollTo(0, 1e6); return document.querySelectorAll('.card').length === many }",
            arg=len(alive),
        )
        shown.append(page.evaluate("[...document.querySelectorAll('.card')].map(el => +el.dataset.unit)"))
    assert shown[0] == shown[1] and sorted(shown[0]) == alive.tolist()


def test_layers_kinds_and_columns(visit, index, network):
    page = visit(index)
    choose(page, "layer", label="fc (52)")
    page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('52 of')")
    choose(page, "kind of name", value="colour")
    page.wait_for_function("!document.querySelector('[role=status]').textContent.startsWith('52 of')")
    red = network.units[(network.units["layer"] == "fc") & (network.units["label"] == "red")]
    assert count(page) == len(red)
    page.goto(index + "#/table?sort=score")
    shown = page.locator("tbody tr").first.get_attribute("data-unit")
    assert int(shown) == int(network.units["score"].to_numpy(np.float32).argmax())
    page.get_by_role("button", name="score").click()
    page.wait_for_selector("text=▴")
    shown = page.locator("tbody tr").first.get_attribute("data-unit")
    assert int(shown) == int(network.units["score"].to_numpy(np.float32).argmin())
    page.goto(index + "#/table?sort=clarity")
    page.wait_for_selector("button:has-text('clarity ▾')")
    shown = page.locator("tbody tr").first.get_attribute("data-unit")
    assert int(shown) == int(network.units["clarity"].argmax())


def test_the_back_button_returns(visit, index):
    page = visit(index)
    page.get_by_role("button", name="table", exact=True).click()
    page.locator("tbody a").first.click()
    page.wait_for_selector("h2")
    page.go_back()
    page.wait_for_selector("tbody tr[data-unit]")
    page.go_back()
    page.wait_for_selector(".grid .card")


def test_keys_search_choose_open_and_leave(visit, index):
    page = visit(index)
    page.keyboard.press("/")
    page.wait_for_function("document.activeElement.type === 'search'")
    page.keyboard.type("s")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")
    page.wait_for_selector(".grid .card")  # other methods' names are loaded for the first search
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    chosen = page.locator(".card[aria-current=true]")
    assert chosen.get_attribute("data-unit") == page.locator(".card").nth(1).get_attribute("data-unit")
    page.keyboard.press("Enter")
    page.wait_for_selector("h2")
    before = page.url
    page.keyboard.press("ArrowRight" if not before.endswith("/51") else "ArrowLeft")
    page.wait_for_function("address => location.href !== address", arg=before)
    page.go_back()
    page.keyboard.press("Escape")
    page.wait_for_selector(".grid")
    assert "q=s" in page.url


def test_a_units_page_tells_what_is_known(visit, index, network):
    page = visit(index + "#/unit/microworld%3Aresnet/conv1/5")
    page.wait_for_selector("pre")
    text = page.locator("main").inner_text()
    row = network.units[(network.units["layer"] == "conv1") & (network.units["unit"] == 5)].iloc[0]
    assert page.locator("h2").inner_text() == row["label"]
    for told in (
        "unit 5 of 24",
        "clarity",
        "cos_similarity_cubed",
        "Highest activations",
        "Lowest activations",
    ):
        assert told in text
    assert "neuronym labelling" in text and page.url in text
    for told in ("null", "undefined", "NaN", "Its partners"):
        assert told not in text
    assert page.locator("figure .pic").count() == 20 and page.locator(".pic path").count() > 0
    for title, each in (("fire on the same images", "correlation"), ("names like its own", "cosine")):
        alike = page.locator(f"h3:has-text('{title}') + .grid .card")
        places = [text.split(" · ")[0] for text in alike.locator("div.dim").all_inner_texts()]
        assert places == sorted(places) and len(places) <= 6 and each in alike.first.inner_text()
    for address in ("microworld%3Aresnet/conv1/99", "microworld%3Aresnet/conv1/1.5", "%E0%A4%A/%/3", "a"):
        other = visit(index + "#/unit/" + address)
        assert "no unit" in other.locator("main").inner_text()


def test_methods_and_networks_are_compared(visit, network, tmp_path):
    other = replace(network, data=replace(network.data))
    pairs = alike.matched_layers([network.data, other.data])
    site.write_site(tmp_path / "two", [network, other], size=32, matches=pairs, firing=False)
    address = (tmp_path / "two" / "index.html").as_uri()
    page = visit(address + "#/compare?a=1")
    own, also = network.methods["method"].unique()[:2]
    two = [network.methods[network.methods["method"] == m].set_index(["layer", "unit"]) for m in (own, also)]
    differ = (two[0].loc["fc"]["label"] != two[1].loc["fc"]["label"]).sum()
    page.wait_for_selector(f"text={differ} of 52 units")
    assert page.locator("thead th").all_inner_texts() == ["unit", "left by " + own, "right by " + also]
    page.goto(address + "#/compare?a=0&b=1")
    page.wait_for_selector("text=names are of both layers")
    labels = two[0]["label"], two[1]["label"]
    names = labels[0].loc["conv1"].value_counts(), labels[1].loc["fc"].value_counts()
    assert page.locator("tbody tr").count() == len(set(names[0].index) | set(names[1].index))
    first = page.locator("tbody tr").first.locator("td")
    name, left, right = first.all_inner_texts()
    assert [int(text.split()[0]) for text in (left, right)] == [some[name] for some in names]
    assert names[0][name] * names[1][name] == max(names[0].mul(names[1]).dropna())
    first.nth(2).locator("a").first.click()
    page.wait_for_selector("h2")
    assert "/fc/" in page.url
    page.goto(address + "#/compare?a=1&b=3")
    page.wait_for_selector("text=52 pairs")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.scroll'))")
    page.set_viewport_size({"width": 1200, "height": 800})
    assert page.locator("tbody tr").count() == 52
    assert page.locator("thead th").all_inner_texts()[2:] == ["match", "held out"]
    page.goto(address + "#/unit/microworld%3Aresnet/fc/3")
    page.wait_for_selector("text=Its partners in other networks")


def test_compare_in_the_explorer_has_no_address(visit, network, tmp_path):
    """The page as the explorer mounts it: columns on demand, and the notebook's address left alone."""
    for name in site.PAGE:
        (tmp_path / name).write_text(site.read_page(name), encoding="utf-8")
    first, later = contents.at_first(contents.index_content([network], "Explorer", shard=1, across=1))
    site.script(tmp_path, "index", {**first, "later": later})
    mounted = """ATLAS.index = meta => ATLAS.mount(document.body, meta,
      { get: async path => { const [kind, name] = path.split("/");
          if (kind !== "columns") throw Error("asked");
          return meta.later[name]; }, sheet: async () => "" }, { hash: false })"""
    (tmp_path / "mounted.js").write_text(mounted, encoding="utf-8")
    page = tmp_path / "index.html"
    last = '<script src="index.js"'
    page.write_text(
        page.read_text(encoding="utf-8").replace(last, '<script src="mounted.js" defer></script>' + last),
        encoding="utf-8",
    )
    shown = visit(page.as_uri())
    shown.get_by_role("button", name="compare").click()
    own, also = network.methods["method"].unique()[:2]
    two = [network.methods[network.methods["method"] == m].set_index(["layer", "unit"]) for m in (own, also)]
    differ = (two[0].loc["conv1"]["label"] != two[1].loc["conv1"]["label"]).sum()
    shown.wait_for_selector(f"text={differ} of 24 units")
    choose(shown, "right", index=1)
    shown.wait_for_selector("text=names are of both layers")
    shown.locator("tbody a").first.click()
    shown.wait_for_selector("h2")
    assert shown.url == page.as_uri() and "asked" in shown.locator("header + div").inner_text()


def test_the_map_draws_and_opens_what_is_clicked(visit, index, network):
    page = visit(index + "#/map")
    drawn = """() => { const c = document.querySelector("canvas");
      return c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some(x => x > 0) }"""
    page.wait_for_function(drawn)
    page.set_viewport_size({"width": 900, "height": 700})  # drawn anew, not stretched
    fits = (
        "() => { const c = document.querySelector('canvas'); return Math.abs(c.width - c.clientWidth) <= 1 }"
    )
    page.wait_for_function(fits)
    page.set_viewport_size({"width": 1200, "height": 800})
    page.wait_for_function(fits)
    x, y = alike.unit_map(network.data.Q)[30]
    box = page.locator("canvas").bounding_box()
    width, height = box["width"] - 2, box["height"] - 2
    page.locator("canvas").scroll_into_view_if_needed()
    box = page.locator("canvas").bounding_box()
    page.mouse.click(
        box["x"] + 1 + (1 + float(x) * 0.94) * width / 2, box["y"] + 1 + (1 + float(y) * 0.94) * height / 2
    )
    page.wait_for_selector("h2")
    assert page.url.endswith("/fc/6")


def place_of_map(page) -> list[float]:
    """What lies in the middle of the map, and how many times it is enlarged, as the address has it."""
    page.wait_for_function("location.hash.includes('at=')")
    page.wait_for_timeout(300)  # the address is written when the map has come to rest
    return [float(x) for x in page.url.split("at=")[1].split("&")[0].split("_")]


def drawn_map(page) -> np.ndarray:
    """The map's pixels."""
    page.wait_for_selector("canvas")
    page.wait_for_timeout(200)
    url = page.evaluate("document.querySelector('canvas').toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as picture:
        return np.asarray(picture.convert("RGBA"), dtype=float)


def test_the_map_is_moved_and_enlarged_and_its_view_has_a_link(visit, index):
    page = visit(index + "#/map?q=red")
    whole = drawn_map(page)
    page.locator("canvas").scroll_into_view_if_needed()
    box = page.locator("canvas").bounding_box()
    half = (box["width"] - 2) / 2, (box["height"] - 2) / 2
    page.mouse.move(box["x"] + 1 + half[0] / 2, box["y"] + 1 + half[1])
    page.mouse.wheel(0, -400)  # what is under the pointer stays there
    x, y, zoom = place_of_map(page)
    assert zoom == pytest.approx(0.94 * np.e, rel=1e-3) and y == pytest.approx(0, abs=0.01)
    assert (x - 0.5 / 0.94) * zoom == pytest.approx(-0.5, abs=0.01)
    page.mouse.down()
    page.mouse.move(box["x"] + 1 + half[0], box["y"] + 1 + half[1] / 2)
    page.mouse.up()
    moved = place_of_map(page)
    expected = [x + 0.5 / zoom, y - 0.5 / zoom, zoom]
    assert moved == pytest.approx(expected, abs=0.005) and "q=red" in page.url
    there, linked = drawn_map(page), drawn_map(visit(page.url))
    assert np.abs(there - linked).mean() < 0.1 * np.abs(there - whole).mean()
    page.get_by_role("button", name="table", exact=True).click()
    page.wait_for_selector("tbody")
    page.go_back()
    np.testing.assert_array_equal(drawn_map(page), linked)
    page.get_by_role("button", name="map").click()
    page.wait_for_function("!location.hash.includes('at=')")
    assert visit(index + "#/map?at=nonsense").locator("canvas").count() == 1


def test_the_map_is_drawn_anew_in_another_theme(visit, index):
    page = visit(index + "#/map")
    light = drawn_map(page)
    try:
        page.emulate_media(color_scheme="dark")
        dark = drawn_map(page)
        np.testing.assert_array_equal(dark, drawn_map(visit(index + "#/map", scheme="dark")))
    finally:
        page.emulate_media(color_scheme="light")
    assert (dark != light).any()
    np.testing.assert_array_equal(drawn_map(page), light)


def test_two_fingers_enlarge_the_map(visit, index):
    page = visit(index + "#/map", width=400)
    page.locator("canvas").scroll_into_view_if_needed()
    box = page.locator("canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *apart: float) -> None:
        points = [{"x": x + side, "y": y, "id": i} for i, side in enumerate(apart)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", -50, 50)
    for side in (60, 80, 100):
        touch("touchMove", -side, side)
    touch("touchEnd")
    found = place_of_map(page)
    assert found == pytest.approx([0, 0, 2 * 0.94], abs=0.01) and "/map" in page.url  # no unit was opened


@pytest.mark.parametrize("view", ["grid", "table", "map", UNIT])
def test_hostile_labels_are_text(view, visit, index):
    page = visit(f"{index}#/{view}" + "?sort=label" * (view in ("grid", "table")))
    page.wait_for_selector("canvas" if view == "map" else f"text={HOSTILE[:9]}")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None and page.locator("main img").count() == 0


@pytest.mark.parametrize("view", ["grid", "table", "map", "compare", UNIT])
def test_nothing_is_wider_than_a_telephone(view, visit, index):
    page = visit(f"{index}#/{view}", width=400)
    page.wait_for_selector({"grid": ".pic", "map": "canvas", "table": "td", "compare": "td"}.get(view, "pre"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_a_row_that_is_moved_aside_keeps_its_name(visit, index):
    page = visit(index + "#/table", width=400)
    page.wait_for_selector("td")
    page.keyboard.press("ArrowDown")
    first = page.locator("[aria-current=true] td, th").evaluate_all("""cells => {
      const box = document.querySelector(".scroll"), left = box.getBoundingClientRect().left;
      box.scrollLeft = 200;
      return cells.filter(el => !el.previousSibling).map(el => el.getBoundingClientRect().left - left);
    }""")
    assert first == [0, 0] and page.evaluate("document.querySelector('.scroll').scrollLeft") == 200


@pytest.fixture(scope="module")
def long_names(labelled, tmp_path_factory) -> str:
    """A page whose every name is long, in one word and in many."""
    tables = {}
    for name in ("units", "methods"):
        table = getattr(labelled, name).copy()
        table["label"] = np.where(table["unit"] % 2, "Unbreakable" * 7, "a name of very many words " * 4)
        table.loc[table["unit"] == 4, "label"] = "Unbreakable" * 7 + "A"  # another in one method
        tables[name] = table
    main = tables["methods"]["method"] == labelled.main
    tables["methods"].loc[main, "label"] += "!"
    written = tmp_path_factory.mktemp("long") / "site"
    network = replace(labelled, sheets=Sheets(), **tables)
    places = alike.unit_map(network.data.Q)
    site.write_site(written, [network], "An atlas", size=32, places=places, firing=False)
    return (written / "index.html").as_uri()


@pytest.mark.parametrize("view", ["grid", "table", "map", "compare?a=1", "compare?b=1", UNIT])
def test_long_names_are_broken_on_a_telephone(view, visit, long_names):
    page = visit(f"{long_names}#/{view}", width=400)
    page.wait_for_selector({"grid": ".pic", "map": "canvas", UNIT: "pre"}.get(view, "tbody td"))
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for box in page.locator(".scroll").all():
        names = box.locator("td:not(.n)").evaluate_all("some => some.map(el => el.clientWidth)")
        assert 70 < min(names) and max(names) <= 300
        if view != "table":  # which has a dozen columns
            assert box.evaluate("el => el.scrollWidth <= el.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_and_inputs_have_labels(scheme, visit, index):
    page = visit(index, scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 27)"}[scheme]
    views = {"grid": ".card", "table": "td", "compare": "td", "map": "canvas"}
    for view, there in {**views, UNIT: "pre"}.items():
        page.goto(f"{index}#/{view}")
        page.wait_for_selector(there)
        assert faults(page, ".atlas") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 800, 400])
def test_axe_finds_nothing(width, scheme, visit, index):
    """What the test above looks at, and all else that axe-core knows, where it is installed."""
    script = axe()
    if not script:
        pytest.skip(
            "no axe-core here: npm install axe-core above the repository, or NEURONYM_AXE=its axe.min.js"
        )
    page = visit(index, width, scheme)
    views = {"grid": ".card", "compare?a=0&b=1": "td", "compare?a=1": "td", "map": "canvas"}
    for view, there in {**views, UNIT: "pre"}.items():
        page.goto(f"{index}#/{view}")
        page.wait_for_selector(there)
        assert axe_faults(page, script, "html") == [], view


def test_a_hundred_thousand_units_answer(visit, folder, network, tmp_path):
    many = 100_000
    folder = shutil.copytree(folder, tmp_path / "many")
    units = network.units.iloc[np.arange(many) % 76].assign(layer="wide", unit=range(many), trust=np.nan)
    methods = units[["layer", "unit", "label", "score", "held"]].assign(method=network.main)
    data = SimpleNamespace(
        **{name: getattr(network.data, name) for name in ("N", "target", "clip", "probe", "concepts")},
        sizes={"wide": many},
    )
    wide = contents.Network(data, network.labels, units, methods, network.main, network.kinds)
    site.write_index(folder, contents.index_content([wide], "Many"))
    shutil.rmtree(folder / "tops")  # of the small one; whoever has no pictures still has cards
    (folder / "tops").mkdir()
    for n in range(-(-many // contents.TOPS)):
        none = contents.packed(np.full(contents.TOPS * contents.ON_CARD, -1, dtype=np.int32))
        site.script(folder, f"tops/{n:04d}", none)
    page = visit((folder / "index.html").as_uri())
    assert count(page) == many
    page.get_by_label("search ( / )").fill("red")
    assert count(page) == (units["label"] == "red").sum() > 0
