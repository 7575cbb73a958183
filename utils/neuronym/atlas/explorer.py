"""The atlas inside JupyterLab: the site's own page as a widget, whose further columns, details and pictures
come from memory when they are looked at, and whose chosen units come back to Python.

explorer     Measurements and labels -> the widget; without anywidget that of `figures.style.plain_explorer`
explorer_of  the same of one or several networks of an atlas
as_network   Measurements and labels as a network of an atlas
Answers      what the page asks for
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from neuronym.atlas import facts
from neuronym.atlas.alike import closest, excited, matched, over_same_images, pairs_of_layers, unit_map
from neuronym.atlas.contents import (
    at_first,
    index_content,
    kinds_of_pictures,
    names_of,
    Network,
    ON_CARD,
    packed,
    quantised,
    TOPS,
)
from neuronym.atlas.notes import label_notes
from neuronym.atlas.pictures import as_seen, QUALITY, Sheets, where_firing
from neuronym.atlas.site import layer_details, names_alike, pairs_content, read_page
from neuronym.measurements import Measurements
from neuronym.similarity.sparse_columns import SparseColumns

SIZE = 128  # pixels of a picture's side
LISTED = 200  # units of the table that stands for the widget where nothing runs
QUICK_MAP = 2000  # units up to which the map takes t-SNE, for which somebody waits ten seconds
WIDGET = """
export default { render({ model, el }) {
  const root = document.createElement("div"), asked = {}, kept = {};
  root.className = "atlas";
  root.dataset.lmSuppressShortcuts = "true";  // keys are the page's here, not the notebook's
  root.style.cssText += "max-height: 760px; overflow: auto; border: 1px solid var(--line)";
  el.append(root);
  const ask = what => new Promise((done, fail) => {
    const id = String(Math.random());
    asked[id] = [done, fail];
    model.send({ id, ...what });
  });
  const answer = (m, buffers) => {
    if (!(m.id in asked)) return;
    const [done, fail] = asked[m.id];
    delete asked[m.id];
    m.error ? fail(Error(m.error)) : done([m.content, buffers]);
  };
  model.on("msg:custom", answer);
  const source = {
    get: path => kept[path] ||= ask({ path }).then(([content]) => ATLAS.opened(path, content)),
    sheet: (sheets, n) => kept[[sheets, n]] ||= ask({ picture: n, sheets }).then(([, buffers]) =>
      URL.createObjectURL(new Blob([buffers[0]], { type: "image/webp" }))),
  };
  const choose = i => {
    const some = model.get("chosen");
    model.set("chosen", some.includes(i) ? some.filter(x => x !== i) : [...some, i]);
    model.save_changes();
  };
  const page = ATLAS.mount(root, model.get("meta"), source, { hash: false, choose });
  const [file, label, all, told] = ["input", "label", "button", "p"].map(tag => document.createElement(tag));
  file.type = "file"; file.accept = "image/*";
  label.append("what excites it: a picture of yours ", file);
  all.textContent = "all units"; all.hidden = true;
  all.onclick = () => { all.hidden = true; page.only(null); };
  file.onchange = async () => {
    const bytes = await file.files[0].arrayBuffer();
    const id = String(Math.random());
    asked[id] = [([some]) => { all.hidden = false; page.only(some); }, e => alert(e.message)];
    model.send({ id, look: true }, undefined, [new DataView(bytes)]);
  };
  told.className = "dim";
  const say = () => {
    told.textContent = "chosen: " + (model.get("told") || "none; open a unit to choose it");
  };
  model.on("change:told", say);
  say();
  const header = root.querySelector("header");
  header.role = "group";  // the notebook's page has a banner
  header.append(label, " ", all, told);
  const theme = new MutationObserver(() => page.show());  // the map is drawn in its colours
  theme.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  return () => { theme.disconnect(); model.off("msg:custom", answer); };
} };
"""


THEME = """
[data-jp-theme-light=true] .atlas { color-scheme: light; }
[data-jp-theme-light=false] .atlas { color-scheme: dark; }
"""  # JupyterLab's, whatever that of the machine


class Answers:
    """What the page asks for, of one or several networks."""

    def __init__(self, networks: Sequence[Network]) -> None:
        whole = {id(of.sheets): Sheets({row: row for row in range(of.data.N)}) for of in networks}
        self.networks = [
            replace(of, sheets=whole[id(of.sheets)]) for of in networks
        ]  # a sheet is one picture
        self.measured = [network.data for network in networks]
        self.layers = [(which, layer) for which, data in enumerate(self.measured) for layer in data.Q]
        self.first = list(accumulate((q.shape[1] for q in self.activations), initial=0))[:-1]
        self._pictures = [
            as_seen(next(of.data for of in self.networks if of.sheets is sheets))
            for sheets in kinds_of_pictures(self.networks)
        ]
        self._named: dict[int, dict[str, list]] = {}
        self._later: dict[str, dict] = {}

    @property
    def activations(self) -> list[torch.Tensor | SparseColumns]:
        """[N, K] of every layer of every network."""
        return [q for data in self.measured for q in data.Q.values()]

    def start(self, title: str) -> dict:
        """What the page knows from the start; other columns are kept until it asks for them."""
        pairs = pairs_of_layers(self.measured)
        content = index_content(self.networks, title, pairs=pairs, shard=1, across=1, most=QUICK_MAP)
        first, self._later = at_first(content)
        return {**first, "mapped": bool(over_same_images(self.measured))}

    @cached_property
    def places(self) -> dict[str, dict]:
        """The map's columns."""
        places = unit_map(over_same_images(self.measured), most=QUICK_MAP)
        return {name: quantised(column) for name, column in zip("xy", places.T)}

    def column(self, name: str) -> dict:
        """A column, or a method's names."""
        return self.places[name] if name in ("x", "y") else self._later[name]

    def matches(self, a: int, b: int) -> dict:
        """Units of two layers paired one to one."""
        return pairs_content(matched(self.activations[a], self.activations[b]))

    def details(self, number: int, unit: int) -> list[dict]:
        """What is told of one unit, as a file of one."""
        which, layer = self.layers[number]
        network, data = self.networks[which], self.measured[which]
        if which not in self._named:
            self._named[which] = names_alike(self.networks, which)
        rows = facts.across_range(data.Q[layer][:, [unit]])
        where = where_firing(data, {layer: rows}, units={layer: [unit]}).get(layer)
        before = number - list(data.Q).index(layer)
        told = layer_details(
            network,
            layer,
            before,
            where,
            units=[unit],
            alike=closest(data.Q, layer, units=[unit]),
            like_named=self._named[which],
        )
        for said in told[0].get("x", {}).values():
            if isinstance(said, dict):  # the picture made for the unit, which lies in no folder of a page
                file, _ = network.made[layer, unit]
                said["src"] = "data:image/webp;base64," + base64.b64encode(as_webp(file)).decode()
        return told

    def tops(self, n: int) -> str:
        """Places of the highest images of TOPS units."""
        found, start = [], n * TOPS
        for first, q in zip(self.first, self.activations):
            some = q[:, max(0, start - first) : max(0, start + TOPS - first)]
            if some.shape[1]:
                top = facts.top_images(some, min(ON_CARD, len(q))).T.cpu()
                padded = torch.full((len(top), ON_CARD), -1, dtype=torch.int32)
                padded[:, : top.shape[1]] = top
                found.append(padded)
        return packed(torch.cat(found).numpy())

    def picture(self, sheets: int, row: int) -> bytes:
        """An image of a probing set as WebP."""
        return as_webp(self._pictures[sheets](row))

    def look(self, content: bytes, k: int = 24) -> list[list[float | None]]:
        """[unit, standard deviations, those of what the CLIP sees of its name] of the units that a picture
        excites most, counted over all layers.
        """
        found, number = [], dict(zip(self.layers, self.first))
        for which, network in enumerate(self.networks):
            with Image.open(io.BytesIO(content)) as picture:
                table = excited(network.data, picture, network.labels, k).head(120)
            for row in table.itertuples():
                seen = float(row.seen) if pd.notna(row.seen) else None
                found.append([number[which, row.layer] + int(row.unit), float(row.z), seen])
        return sorted(found, key=lambda one: -one[1])

    def units(self, chosen: Sequence[int]) -> dict[str, dict[str, list[int]]]:
        """Numbers over all layers as {network: {layer: units}}."""
        found: dict[str, dict[str, list[int]]] = {}
        names = names_of(self.networks)
        for i in sorted(chosen):
            number = max(n for n, start in enumerate(self.first) if start <= i)
            which, layer = self.layers[number]
            found.setdefault(names[which], {}).setdefault(layer, []).append(i - self.first[number])
        return found


def explorer(
    data: Measurements,
    labels: pd.DataFrame,
    *,
    kinds: Mapping[str, str] | None = None,
    trust: pd.DataFrame | None = None,
    several: pd.DataFrame | None = None,
    title: str = "",
):
    """A widget to search, filter, sort and compare units, to open one, and to ask what a picture excites.

    `labels` is a labels table of one or several methods, the first one's labels are shown; `trust` the
    table of a run of the notebook trust, `several` the several_words.csv of one of labelling; `kinds` concept
    -> kind. `widget.selected` is {layer: units} of those chosen in it, which every parameter `units` takes.
    Where anywidget is not installed, the plain explorer of `neuronym.figures.style` is returned.
    """
    return explorer_of([as_network(data, labels, kinds, trust, several)], title)


def explorer_of(networks: Sequence[Network], title: str = ""):
    """`explorer` of one or several networks, as `as_network` and `atlas.runs.read_networks` give them: layers
    of two that saw the same images are compared unit by unit. Of several networks `widget.selected` is
    {network: {layer: units}}.
    """
    try:
        import anywidget
        import traitlets
    except ImportError:
        return _plain(networks)

    answers = Answers(networks)
    names = names_of(networks)

    class Explorer(anywidget.AnyWidget):
        """The page of an atlas."""

        _esm = read_page("atlas.js") + WIDGET
        _css = read_page("atlas.css") + THEME
        meta = traitlets.Dict().tag(sync=True)
        chosen = traitlets.List().tag(sync=True)
        told = traitlets.Unicode().tag(sync=True)

        @property
        def selected(self) -> dict:
            """Units chosen in the widget, by layer; of several networks by network and layer."""
            found = answers.units(self.chosen)
            return found if len(names) > 1 else found.get(names[0], {})

        def _repr_mimebundle_(self, **options):
            bundle = super()._repr_mimebundle_(**options)
            shown = bundle[0] if isinstance(bundle, tuple) else bundle
            if shown:
                shown["text/html"] = static_table(networks)
            return bundle

    widget = Explorer(meta=answers.start(title or ", ".join(names)))
    widget.on_msg(lambda _, asked, buffers: widget.send(*answered(answers, asked, buffers)))

    def tell(change) -> None:
        widget.told = "; ".join(
            f"{name} " * (len(names) > 1)
            + ";".join(f"{layer}=ids:{','.join(map(str, some))}" for layer, some in layers.items())
            for name, layers in answers.units(widget.chosen).items()
        )

    widget.observe(tell, "chosen")
    return widget


def _plain(networks: Sequence[Network]):
    """The plain explorer of networks, whose layers are called NETWORK LAYER where there are several."""
    from neuronym.figures import cards, style

    of, tables = {}, []
    for name, network in zip(names_of(networks), networks):
        called = {layer: f"{name} {layer}" if len(networks) > 1 else layer for layer in network.data.Q}
        of |= {text: (network, layer) for layer, text in called.items()}
        tables.append(network.labels.assign(layer=network.labels["layer"].map(called), method=""))

    def draw(text: str, unit: int):
        network, layer = of[text]
        return cards.unit_cards(network.labels, network.data, {layer: [unit]}, 8)

    return style.plain_explorer(pd.concat(tables, ignore_index=True), draw)


def as_network(
    data: Measurements,
    labels: pd.DataFrame,
    kinds: Mapping[str, str] | None = None,
    trust: pd.DataFrame | None = None,
    several: pd.DataFrame | None = None,
) -> Network:
    """Measurements and labels as a Network, without what takes long: other methods and the null."""
    main = str(labels["method"].iloc[0])
    methods = facts.methods_table(data, labels, functions=())
    units = facts.join_trust(facts.units_table(data, methods, main, draws=0), labels)
    units = facts.join_meaning(units, labels)
    if trust is not None:
        units = facts.join_trust(units, trust)
    network = Network(data, labels[labels["method"] == main], units, methods, main, kinds or {})
    return network.noted(label_notes(labels, several, data.sizes))


def answered(answers: Answers, asked: dict, buffers: list) -> tuple[dict, list[bytes]]:
    """Message and buffers that answer one of the page's questions; what goes wrong is told, not raised."""
    said, sent = {"id": asked.get("id")}, []
    try:
        if "picture" in asked:
            sent = [answers.picture(int(asked["sheets"]), int(asked["picture"]))]
        elif "look" in asked:
            said["content"] = answers.look(bytes(buffers[0]))
        else:
            said["content"] = _file(answers, *str(asked["path"]).split("/"))
    except Exception as error:  # shown in the widget, where a traceback would not be seen
        said["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return said, sent


def _file(answers: Answers, kind: str, name: str, part: str = "") -> object:
    """What a site has in a file of that path."""
    if kind == "columns":
        return answers.column(name)
    if kind == "matches":
        return answers.matches(*map(int, name.split("-")))
    return answers.tops(int(name)) if kind == "tops" else answers.details(int(name), int(part))


def as_webp(image: Image.Image | Path) -> bytes:
    """A picture, or that of a file, of at most SIZE pixels a side."""
    if isinstance(image, Path):
        with Image.open(image) as opened:
            image = opened.convert("RGB")
    image.thumbnail((SIZE, SIZE))
    file = io.BytesIO()
    image.save(file, "webp", quality=QUALITY)
    return file.getvalue()


def static_table(networks: Sequence[Network], listed: int = LISTED) -> str:
    """The units as an HTML table, texts escaped: what exported notebooks show of the widget."""
    names, columns = names_of(networks), ["layer", "unit", "label", "score", "held", "trust"]
    tables = [of.units[columns].assign(network=name, trust=of.trust) for name, of in zip(names, networks)]
    table = pd.concat(tables)[["network"] * (len(names) > 1) + columns]
    count = len(table)
    table = table.dropna(axis=1, how="all").rename(columns={"label": "name", "held": "held out"})
    more = f"<p>{count - listed} more units in labels.csv</p>" if count > listed else ""
    return table.head(listed).round(3).to_html(index=False, escape=True, border=0) + more
