"""From finished runs to what an atlas shows: which runs are meant, what they measured, what they found.

chosen_runs    run folders by name or path
read_networks  runs as networks of an atlas
read_network   one run of labelling
add_run        what a run of another notebook says of the same network's units
check_features refuses runs of other features that are called alike
command        the command that makes a run again
trusted_only   fewer pictures
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from neuronym.atlas import facts, notes
from neuronym.atlas.contents import Network
from neuronym.common.checks import unknown
from neuronym.common.tables import read_table, TEXT
from neuronym.common.types import Progress
from neuronym.datasets.concepts import concept_kinds
from neuronym.datasets.probe import load_probe
from neuronym.dissect import clip_dissect, functions_for
from neuronym.measurements import measure
from neuronym.models.clips import load_clip
from neuronym.models.targets import load_target
from neuronym.runs.checks import SMOKE
from neuronym.runs.folders import from_root, notebook_path, results_dir
from neuronym.runs.parameters import differing, read_parameters
from neuronym.similarity.labels import read_labels
from neuronym.sparse import features_key, short_names, split_name

READ = ("labelling", "trust", "describe_and_dissect", "visualisation", "second_order")


def chosen_runs(runs: str) -> list[Path]:
    """Folders of finished runs: "" for the newest one of labelling (none where there is none) and, of the
    same target, of the other notebooks; else folders, or names such as labelling/defaults-1a2b3c4d or
    labelling, separated by commas. A run of second_order has a CLIP and no target: it is read where it is
    named.

    Errors: FileNotFoundError for what is no finished run, KeyError for a notebook that an atlas does not
    read, ValueError where no run is of labelling.
    """
    if runs.strip():
        found = [_folder(text.strip()) for text in runs.split(",") if text.strip()]
        if not any(folder.parent.name == "labelling" for folder in found):
            raise ValueError(
                "an atlas needs a run of labelling for every network; name one beside the others"
            )
        return found
    first = _newest("labelling")
    if first is None:
        return []
    target = _params(first).get("target")
    others = [_newest(name, target) for name in READ[1:]]
    return [first, *filter(None, others)]


def read_network(
    folder: Path | None,
    device: str | torch.device = "cpu",
    *,
    smoke: bool = False,
    draws: int = 200,
    functions: str = "run",
    seed: int = 0,
    memory: int = facts.MEMORY,
    progress: Progress | None = None,
) -> Network:
    """The network of a labelling run, measured from its parameters, which the cache holds; without a folder
    that of labelling's defaults, named here. `draws` shuffles say what is no better than chance where the run
    does not. `functions` whose labels are found beside the run's own: "run"
    those that it compared, "all" every similarity function.
    """
    if functions not in ("run", "all"):
        raise ValueError(f"methods is run or all, got {functions!r}")
    known = read_parameters(notebook_path("labelling"))
    params = {name: parameter.default for name, parameter in known.items()} | {"smoke": smoke}
    params |= _params(folder) if folder else {}
    limit = params["limit"] or None
    probe = load_probe(
        params["probe"],
        limit=min(limit or SMOKE, SMOKE) if params["smoke"] else limit,
        seed=params["seed"],
        on_error=params["on_error"],
        progress=progress,
    )
    data = measure(
        load_target(params["target"], device),
        params["layers"],
        probe,
        load_clip(params["clip"], device),
        params["concepts"],
        pool=params["pooling"],
        template=params["template"],
        batch_size=params["batch_size"],
        device=device,
        dtype=params["precision"],
        sparse=True,
        memory=memory,
        progress=progress,
    )
    generator = torch.Generator().manual_seed(seed)
    labels = read_labels(folder / "labels.parquet") if folder else clip_dissect(data, params["similarity"])
    main = str(labels["method"].iloc[0])
    wanted = functions_for(data.split(0.4)[0].N)
    if functions == "run":
        wanted = [name for name in wanted if name in params["compared"].replace(" ", "").split(",")]
    methods = facts.methods_table(data, labels, wanted, memory=memory, generator=generator)
    if "chance" in labels:
        draws = 0  # the run has asked
    units = facts.units_table(data, methods, main, draws, memory=memory, generator=generator)
    units = facts.join_meaning(facts.join_trust(units, labels), labels)
    kinds = concept_kinds(params["concepts"])
    said = command(folder) if folder else "neuronym labelling"
    words = folder / "several_words.csv" if folder else None
    several = read_table(words, TEXT | {"several"}) if words and words.is_file() else None
    network = Network(data, labels, units, methods, main, kinds, said)
    return network.noted(notes.label_notes(labels, several, data.sizes))


def add_run(network: Network, folder: Path) -> Network:
    """The network with what a run of another notebook found for its units (`atlas.notes` has what is no name
    and no number of all units).
    """
    kind, known, sizes = folder.parent.name, set(network.data.Q), network.data.sizes
    if kind == "visualisation":
        return replace(network, made={**network.made, **notes.made_pictures(folder, sizes)})
    if kind == "second_order":
        return network.noted({notes.LENS: notes.lens_words(folder, sizes)})
    if kind == "trust":
        trust = pd.read_csv(folder / "trust.csv")
        network = network.noted({notes.CAUSAL: notes.causal_notes(folder, sizes)})
        return replace(network, units=facts.join_trust(network.units, trust[trust["layer"].isin(known)]))
    found = read_labels(folder / "labels.parquet")
    found = found[found["layer"].isin(known) & (found["rank"] == 1)]
    if not len(found):
        raise ValueError(f"{folder} names units of no layer of {network.name}; it has {', '.join(known)}")
    held_correlation = network.data.split(0.4)[1]
    found = found[["layer", "unit", "method", "label", "score"]].reset_index(drop=True)
    found = found.assign(held=facts.held_correlation(held_correlation, found))
    return replace(network, methods=pd.concat([network.methods, found], ignore_index=True))


def check_features(folder: Path, network: Network) -> None:
    """ValueError where features in a run have the name of features of the network (`sparse.short_names`) and
    are of another file: two files can share their last part.
    """
    parts = [part.strip() for part in str(_params(folder).get("layers", "")).split(",")]
    own = {name: name for name in network.data.Q}
    for name in short_names(parts).values():
        file, there = split_name(name)[1], split_name(own.get(name, ""))[1]
        if file and there and from_root(file).is_file() and features_key(name) != features_key(own[name]):
            raise ValueError(
                f"{folder} is of features of {file}, and those called '{name}' here are of {there}; make "
                "both from one file, or give the files different names"
            )


def read_networks(folders: Sequence[Path], device: str | torch.device = "cpu", **options) -> list[Network]:
    """A Network for each run of labelling (for the defaults of labelling where there are no runs at all),
    with what the runs of other notebooks say of it; options as for `read_network`.
    """
    first = [folder for folder in folders if folder.parent.name == "labelling"] or [None]
    networks = [read_network(folder, device, **options) for folder in first]
    seen = [(network.data.probe.fingerprint, network.data.target.preprocess_spec) for network in networks]
    networks = [
        replace(network, sheets=networks[seen.index(see)].sheets) for network, see in zip(networks, seen)
    ]
    targets = [_params(folder).get("target") if folder else None for folder in first]
    for folder in folders:
        if folder in first:
            continue
        of = [i for i, target in enumerate(targets) if _is_of(folder, target, networks[i])]
        if not of:
            raise ValueError(
                f"{folder} is of {_params(folder).get('target', 'layers')}, which no run of labelling has; "
                "name a run of labelling of the same network beside it"
            )
        for i in of:
            check_features(folder, networks[i])
            networks[i] = add_run(networks[i], folder)
    return networks


def command(folder: Path) -> str:
    """The command that makes a run again: what differs from the defaults is written out."""
    notebook = folder.parent.name
    params = _params(folder)
    known = read_parameters(notebook_path(notebook))
    told = differing(known, {name: value for name, value in params.items() if name in known})
    given = [f"-p {name} {shlex.quote(str(value))}" for name, value in told.items()]
    return " ".join([f"neuronym {notebook}", *given])


def trusted_only(network: Network, least: float) -> Network:
    """The network with pictures of those units alone whose trust, as it is shown, or where it is not known
    held-out correlation, is at least `least`, without those no better than chance.
    """
    if not least:
        return network
    worth = network.trust.fillna(network.units["held"]).to_numpy()
    by_chance = network.units["odd"].to_numpy() & facts.CHANCE > 0
    return replace(network, shown=(worth >= least) & ~by_chance)


def _is_of(folder: Path, target: str | None, network: Network) -> bool:
    """Whether a run is of the network: by its target, one of second_order by layers that it has words of."""
    if folder.parent.name == "second_order":
        return bool(notes.lens_words(folder, network.data.sizes))
    return _params(folder).get("target") == target


def _folder(text: str) -> Path:
    for folder in (from_root(text), results_dir() / text):
        if (folder / "params.json").is_file():
            break
    else:
        newest = _newest(text) if text in READ else None
        if newest is None:
            raise FileNotFoundError(
                f"'{text}' is no run: a folder with params.json, or NOTEBOOK/RUN below {results_dir()}; "
                "neuronym runs lists them"
            )
        folder = newest
    if folder.parent.name not in READ:
        raise unknown("notebook whose runs an atlas reads", folder.parent.name, READ)
    if not (folder / "done").exists():
        raise FileNotFoundError(f"an atlas is made from finished runs, {folder} is not done; run it again")
    return folder


def _newest(notebook: str, target: str | None = None) -> Path | None:
    runs = [file.parent for file in (results_dir() / notebook).glob("*/done")]
    runs = [folder for folder in runs if target is None or _params(folder).get("target") == target]
    return max(runs, key=lambda folder: (folder / "done").stat().st_mtime, default=None)


def _params(folder: Path) -> dict:
    return json.loads((folder / "params.json").read_text(encoding="utf-8"))
