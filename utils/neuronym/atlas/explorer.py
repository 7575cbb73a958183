"""The atlas inside JupyterLab: the site's own page as a widget, whose details and pictures come from memory
when they are looked at, and whose chosen units come back to Python.

explorer   Measurements and labels -> the widget; without anywidget the plain one of `neuronym.figures.style`
Answers    what the page asks for: details of a unit, top images, pictures, the units that a picture excites
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cached_property

import pandas as pd
import torch
from PIL import Image

from neuronym.atlas import facts
from neuronym.atlas.alike import closest, excited
from neuronym.atlas.contents import index_content, Network, ON_CARD, packed, TOPS
from neuronym.atlas.pictures import as_seen, QUALITY, where_firing
from neuronym.atlas.site import layer_details, names_alike, read_page
from neuronym.measurements import Measurements

SIZE = 128  # pixels of a picture's side
LISTED = 200  # units of the table that stands for the widget where nothing runs
WIDGET = """
export default { render({ model, el }) {
  const root = document.createElement("div"), asked = {}, kept = {};
  root.className = "atlas";
  root.dataset.lmSuppressShortcuts = "true";  // keys are the page's here, not the notebook's
  root.style.cssText = "max-height: 760px; overflow: auto; border: 1px solid var(--line)";
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
    sheet: (network, n) => kept["sheet " + n] ||= ask({ picture: n }).then(([, buffers]) =>
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
  root.querySelector("header").append(label, " ", all, told);
  return () => model.off("msg:custom", answer);
} };
"""


class Answers:
    """What the page asks for, of one network."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.layers = list(network.data.Q)
        self._alike: dict[str, tuple] = {}
        network.sheets.places.update({row: row for row in range(network.data.N)})  # a sheet is one picture

    @cached_property
    def first(self) -> list[int]:
        """Number of the first unit of each layer."""
        sizes = list(self.network.data.sizes.values())
        return [sum(sizes[:i]) for i in range(len(sizes))]

    @cached_property
    def named(self) -> dict[str, list]:
        """Units of like names, of every unit."""
        return names_alike([self.network])

    def details(self, number: int, unit: int) -> list[dict]:
        """What is told of one unit, as a file of one."""
        data, layer = self.network.data, self.layers[number]
        if layer not in self._alike:
            self._alike[layer] = closest(data.Q, layer)
        q = data.Q[layer]
        top = facts.parts_of_range(data.N).count("top")
        rows = facts.across_range(q[:, [unit]])[:top]
        where = None
        if data.layers[layer].layout != "fc":
            filled = rows.expand(-1, q.shape[1])
            where = where_firing(data, {layer: filled}).get(layer)
        alike = self._alike[layer]
        return layer_details(self.network, layer, 0, where, units=[unit], alike=alike, like_named=self.named)

    def tops(self, n: int) -> str:
        """Places of the highest images of TOPS units."""
        found, start = [], n * TOPS
        for first, q in zip(self.first, self.network.data.Q.values()):
            some = q[:, max(0, start - first) : max(0, start + TOPS - first)]
            if some.shape[1]:
                found.append(facts.top_images(some, min(ON_CARD, len(q))).T.cpu())
        rows = torch.cat(found).int()
        padded = torch.full((len(rows), ON_CARD), -1, dtype=torch.int32)
        padded[:, : rows.shape[1]] = rows
        return packed(padded.numpy())

    def picture(self, row: int) -> bytes:
        """An image of the probing set as WebP."""
        image = as_seen(self.network.data)(row)
        image.thumbnail((SIZE, SIZE))
        file = io.BytesIO()
        image.save(file, "webp", quality=QUALITY)
        return file.getvalue()

    def look(self, content: bytes, k: int = 24) -> list[list[float]]:
        """[unit, standard deviations] of the units that a picture excites most, counted over all layers."""
        with Image.open(io.BytesIO(content)) as picture:
            table = excited(self.network.data, picture, self.network.labels, k).head(120)
        first = dict(zip(self.layers, self.first))
        return [[first[row.layer] + int(row.unit), float(row.z)] for row in table.itertuples()]

    def units(self, chosen: list[int]) -> dict[str, list[int]]:
        """Numbers over all layers as {layer: units}."""
        found: dict[str, list[int]] = {}
        for i in sorted(chosen):
            number = max(n for n, start in enumerate(self.first) if start <= i)
            found.setdefault(self.layers[number], []).append(i - self.first[number])
        return found


def explorer(
    data: Measurements,
    labels: pd.DataFrame,
    *,
    kinds: Mapping[str, str] | None = None,
    trust: pd.DataFrame | None = None,
    title: str = "",
):
    """A widget to search, filter, sort and compare units, to open one, and to ask what a picture excites.

    `labels` is a labels table of one or several methods, the first one's labels are shown; `trust` the
    table of a run of the notebook trust; `kinds` concept -> kind. `widget.selected` is {layer: units} of
    those chosen in it, which every parameter `units` takes. Where anywidget is not installed, the plain
    explorer of `neuronym.figures.style` is returned.
    """
    try:
        import anywidget
        import traitlets
    except ImportError:
        from neuronym.figures import cards, style

        return style.plain_explorer(
            labels, lambda layer, unit: cards.unit_cards(labels, data, {layer: [unit]}, 8)
        )

    answers = Answers(as_network(data, labels, kinds, trust))

    class Explorer(anywidget.AnyWidget):
        """The atlas page of one network."""

        _esm = read_page("atlas.js") + WIDGET
        _css = read_page("atlas.css")
        meta = traitlets.Dict().tag(sync=True)
        chosen = traitlets.List().tag(sync=True)
        told = traitlets.Unicode().tag(sync=True)

        @property
        def selected(self) -> dict[str, list[int]]:
            """Units chosen in the widget, by layer."""
            return answers.units(self.chosen)

        def _repr_mimebundle_(self, **options):
            bundle = super()._repr_mimebundle_(**options)
            shown = bundle[0] if isinstance(bundle, tuple) else bundle
            if shown:
                shown["text/html"] = static_table(answers.network)
            return bundle

    meta = index_content([answers.network], title or data.target.name, shard=1, across=1)
    widget = Explorer(meta=meta)
    widget.on_msg(lambda _, asked, buffers: widget.send(*answered(answers, asked, buffers)))

    def tell(change) -> None:
        widget.told = ";".join(
            f"{layer}=ids:{','.join(map(str, some))}" for layer, some in widget.selected.items()
        )

    widget.observe(tell, "chosen")
    return widget


def as_network(
    data: Measurements,
    labels: pd.DataFrame,
    kinds: Mapping[str, str] | None = None,
    trust: pd.DataFrame | None = None,
) -> Network:
    """Measurements and labels as a Network, without what takes long: other methods and the null."""
    main = str(labels["method"].iloc[0])
    methods = facts.methods_table(data, labels, functions=())
    units = facts.join_trust(facts.units_table(data, methods, main, draws=0), labels)
    if trust is not None:
        units = facts.join_trust(units, trust)
    return Network(data, labels[labels["method"] == main], units, methods, main, kinds or {})


def answered(answers: Answers, asked: dict, buffers: list) -> tuple[dict, list[bytes]]:
    """Message and buffers that answer one of the page's questions; what goes wrong is told, not raised."""
    said, sent = {"id": asked.get("id")}, []
    try:
        if "picture" in asked:
            sent = [answers.picture(int(asked["picture"]))]
        elif "look" in asked:
            said["content"] = answers.look(bytes(buffers[0]))
        else:
            kind, *rest = str(asked["path"]).split("/")
            said["content"] = (
                answers.tops(int(rest[0])) if kind == "tops" else answers.details(int(rest[0]), int(rest[1]))
            )
    except Exception as error:  # shown in the widget, where a traceback would not be seen
        said["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return said, sent


def static_table(network: Network, listed: int = LISTED) -> str:
    """The units as an HTML table, texts escaped: what exported notebooks show of the widget."""
    table = network.units[["layer", "unit", "label", "score", "held", "trust"]]
    table = table.dropna(axis=1, how="all").rename(columns={"label": "name", "held": "held out"})
    more = f"<p>{len(table) - listed} more units in labels.csv</p>" if len(table) > listed else ""
    return table.head(listed).round(3).to_html(index=False, escape=True, border=0) + more
