"""What cannot succeed, said before any work.

resolve          key and value texts -> what is set, and all parameters
check_setup      names, paths and set-ups, without importing torch: what the command and start_run ask first
check_networks   what only the networks tell: layers, functions of the user's own, words that a CLIP does not
                 know, the device; in the kernel's process, before it is a kernel, where the notebook then
                 needs the same imports

Parameters are known by their names, and as names of something only where the notebook declares their `kinds`.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from neuronym.common.checks import check_ranked, import_extra, unknown, UnknownName
from neuronym.common.units import check_units, layers_named
from neuronym.runs.folders import check_transcript, chosen_device, from_root, notebook_path, results_dir, ROOT
from neuronym.runs.parameters import differing, from_text, Parameter, read_parameters
from neuronym.runs.spelling import from_command, names_in
from neuronym.runs.values import check_values

FEWEST = 20  # images that clusters of a unit take (trust.polysemy)
OWN = 10  # images of a unit that retrieved pictures leave out (describe.selection)
SUMS = 10  # images that sums of concepts are fitted to, in five parts of two (evaluation.linear)
SMOKE = 200  # images of a run in smoke, at most
COUNTED = set(
    """probe judge held_out limit clusters similarity images pictures generator ablation selection
    smoke""".split()
)  # parameters that a number of images can be too small for
WRONG = (KeyError, ValueError, OSError, ImportError)  # what a wrong name or path raises


def resolve(notebook: str, values: Iterable[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is set and the full parameters, from key and value texts; KeyError, ValueError or
    FileNotFoundError for what is wrong with them.
    """
    known = read_parameters(notebook_path(notebook))
    for key, _ in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            raise UnknownName(
                f"no parameter of {notebook} '{key}'; "
                + (f"nearest: {', '.join(near)}; " if near else "")
                + f"neuronym {notebook} --list shows all"
            )
    overrides = {key: from_text(known[key], text) for key, text in values}
    params = {name: parameter.default for name, parameter in known.items()} | overrides
    check_setup(known, params)
    return overrides, params


def check_setup(known: Mapping[str, Parameter], params: Mapping[str, Any]) -> None:
    """Raise KeyError, ValueError, FileNotFoundError or ModuleNotFoundError, in one sentence with the way out,
    for the first parameter that names nothing and for what cannot succeed together; PermissionError for
    results that cannot be written.
    """
    check_values(params)
    for name, check in CHECKS.items():
        value = params.get(name)
        if not value or not known[name].kinds or value == known[name].default:
            continue
        for one in value.split(",") if known[name].commas else [value]:
            try:
                check(one.strip())
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error}{_elsewhere(one)}") from None
    if params.get("units"):
        check_units(params["units"])
    _check_images(known, params)
    if params.get("together") and not params.get("captioner", "vlm:").startswith("vlm:"):
        raise ValueError(
            "examples are shown together to a model of a server, captioner=vlm:MODEL, got "
            f"'{params['captioner']}'; name one, or together=False"
        )
    _check_answers(known, params)
    _check_results()


def check_networks(known: Mapping[str, Parameter], params: Mapping[str, Any]) -> None:
    """Raise KeyError, ValueError, FileNotFoundError or ModuleNotFoundError for a device that is not there, a
    function that is no target and layers that the target does not have.

    What a user's own code raises is left to the notebook, which shows where.
    """
    if params.get("device", "auto") != "auto":
        chosen_device(params["device"])
    _check_words(known, params)
    target = params.get("target")
    if not target or not known["target"].kinds:
        return
    from neuronym.hooks import check_layer_names
    from neuronym.models.own import own_function
    from neuronym.models.targets import build_outline, TARGETS
    from neuronym.sparse import split_name

    own = target.partition(":")[0] not in TARGETS
    try:
        if own:
            own_function(target, list(TARGETS))
        # units name features by the short name of their file, which is found where layers are
        chosen = [name for name in layers_named(params.get("units", "")) if not split_name(name)[1]]
        layers = params.get("layers", "all").split(",") + chosen
        if any(part.strip() not in ("all", "every") for part in layers):
            check_layer_names(build_outline(target), layers)
    except Exception as error:
        if isinstance(error, WRONG) and _ours(error) or not own and isinstance(error, WRONG):
            raise


def _check_words(known: Mapping[str, Parameter], params: Mapping[str, Any]) -> None:
    """ValueError for concepts that the microworld's CLIP has no words for."""
    own = str(params.get("clip", "")).partition(":")[0] == "microworld"
    named = params["concepts"] if "concepts" in known and known["concepts"].kinds else ""
    if own and named and not named.startswith("microworld"):
        from neuronym.datasets.concepts import load_concepts
        from neuronym.microworld.world import tokenize

        tokenize(load_concepts(named))


def _ours(error: Exception) -> bool:
    """Whether this package raised it, and not the code of a user's that it called."""
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    return Path(last.tb_frame.f_code.co_filename).is_relative_to(ROOT / "utils" / "neuronym")


def _target(name: str) -> None:
    kind, _, rest = name.partition(":")
    network, _, chosen = rest.partition("@")
    if kind in ("torchvision", "timm"):
        if importlib.util.find_spec(kind) is None:
            import_extra(kind, kind, name)
        if ":" not in network and network.partition(".")[0] not in names_in(kind):
            raise unknown(f"{kind} network", network, sorted(names_in(kind)))
    elif kind == "microworld" and network not in ("resnet", "vit", "marked"):
        raise unknown("microworld target", network, ["resnet", "vit", "marked"])
    _chosen_file(chosen)


def _clip(name: str) -> None:
    kind, _, rest = name.partition(":")
    model, _, chosen = rest.partition("@")
    if kind == "conse":
        return _target(rest)
    if kind == "openai" and not any(model == one for one in names_in("clip")):
        raise unknown("openai-clip model", model, sorted(names_in("clip")))
    if kind == "open_clip" and not rest.startswith(("hf-hub:", "local-dir:")):
        if importlib.util.find_spec("open_clip") is None:
            import_extra("open_clip", "open_clip_torch", name)
        model, _, chosen = rest.partition(":")
        if model not in names_in("open_clip"):
            raise unknown("open_clip architecture", model, sorted(names_in("open_clip")))
    if kind == "microworld" and model not in ("", "rn", "vit"):
        raise unknown("microworld clip", model, ["rn", "vit"])
    if kind == "hf":
        return _hf(name)
    _chosen_file(chosen)


def _probe(name: str) -> None:
    if "cifar100" not in name:  # whose list of images takes torchvision
        from neuronym.datasets.probe_sets import list_images

        list_images(name)


def _concepts(name: str) -> None:
    kind, _, rest = name.partition(":")
    if not (
        kind == "english" and rest.isdigit() and int(rest) or name == "imagenet"
    ):  # these take seconds, and are there
        from neuronym.datasets.concepts import load_concepts

        load_concepts(name)


def _hf(name: str) -> None:
    """A model of a Hugging Face id or of a folder; only a folder is looked for."""
    kind, _, rest = name.partition(":")
    if rest.startswith(("/", "~", ".")) and not from_root(rest).exists():
        raise FileNotFoundError(
            f"no folder at {from_root(rest)}; {kind}: takes a folder or an id of Hugging Face"
        )


def _llm(name: str) -> None:
    kind, _, rest = name.partition(":")
    if kind == "gguf" and rest.endswith(".gguf"):
        _chosen_file(rest)
    elif kind == "hf":
        _hf(name)


def _chosen_file(chosen: str) -> None:
    if ("/" in chosen or "." in chosen) and not from_root(chosen).exists():
        raise FileNotFoundError(f"no file of weights at {from_root(chosen)}")


CHECKS: dict[str, Callable[[str], None]] = {
    "target": _target,
    "clip": _clip,
    "judge": _clip,
    "clips": _clip,
    "probe": _probe,
    "concepts": _concepts,
    "concept_sets": _concepts,
    "captioner": lambda name: _hf(name) if name.startswith(("blip:", "blip2:")) else None,
    "sentences": lambda name: _hf(name) if name.startswith("st:") else None,
    "llm": _llm,
    "llms": _llm,
}


def _check_images(known: Mapping[str, Parameter], params: Mapping[str, Any]) -> None:
    """Set-ups that fail for their images, whatever the networks are."""
    probe, judge = params.get("probe", ""), params.get("judge")
    if not probe or not known["probe"].kinds or "cifar100" in probe:
        return
    if not differing(known, params).keys() & COUNTED:
        return
    from neuronym.datasets.probe_sets import list_images

    rows = list_images(probe, params.get("seed", 0))
    if judge == "" and any(isinstance(row.item, Path) for row in rows):
        raise ValueError(
            f"what is in the images is known in the microworld alone, got probe '{probe}' without a judge; "
            "name another image-text model, as judge=conse:efficientnet_lite1 or openai:ViT-L/14"
        )
    images = min(len(rows), params.get("limit") or len(rows), SMOKE if params.get("smoke") else len(rows))
    share, naming, held = params.get("held_out"), images, 0
    if share is not None:
        if not 0 < share < 1 or not 1 <= round(images * share) < images:
            raise ValueError(
                f"held_out is a share above 0 and below 1 that leaves images to name from and to test with, "
                f"got {share} of {images} images"
            )
        held = round(images * share)
        naming = images - held
    _check_numbers(params, naming, held)


def _check_numbers(params: Mapping[str, Any], naming: int, held: int) -> None:
    """Set-ups that so many images, to name from and held out, are too few for."""
    told = f"{naming} to name from" + (
        f" and {held} held out with held_out={params['held_out']}" if held else ""
    )
    halves, sums = "splits" in params, "terms" in params
    least = SUMS if sums else 4 if halves else 2
    if naming < least or held and held < (4 if halves or sums else 1):
        raise ValueError(
            f"names take at least {least} images" + ", and 4 held out" * (halves or sums) + f", got {told}; "
            "probe with more images"
        )
    check_ranked(
        params.get("similarity", ""),
        naming // 2 if halves else naming,
        "images in each half of those to name from" if halves else "images to name from",
    )
    if params.get("clusters", 1) > 1 and naming < FEWEST:
        raise ValueError(
            f"clusters={params['clusters']} take at least {FEWEST} images to name from, got {told}; probe "
            "with more images, or set clusters=1"
        )
    pictures, retrieves = params.get("pictures", 0), params.get("generator") == "retrieval"
    if "crops" in params:
        if params["images"] > naming:
            raise ValueError(
                f"images={params['images']} of a unit are the most active ones, got {told}; probe with more "
                "images, or set images lower"
            )
        without = ("balanced", "agreed", "simulate", "mention", "first")  # pictures
        retrieves = params["ablation"] or (retrieves and params["selection"] not in without)
        if retrieves and pictures + OWN > naming:
            raise ValueError(
                f"pictures={pictures} of a candidate are retrieved from the images beside {OWN} of the "
                f"unit's own, got {told}; probe with more images, set pictures lower, or draw them and set "
                "ablation=False"
            )
    elif retrieves and not params["smoke"] and pictures and pictures + 2 > held:
        raise ValueError(
            f"pictures={pictures} of a label are retrieved from the images held out, of which two at least "
            f"stay to compare with, got {told}; probe with more images, or set pictures lower"
        )


def _check_answers(known: Mapping[str, Parameter], params: Mapping[str, Any]) -> None:
    """The file that answers of models are kept in."""
    transcript = differing(known, params).get("transcript")
    if transcript:
        check_transcript(from_root(transcript), replay=params.get("answers") == "replay")


def _check_results() -> None:
    place = results_dir()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise PermissionError(
            f"results must be writable, {results_dir()} is not; set NEURONYM_RESULTS to a folder of your own"
        )


def _elsewhere(name: str) -> str:
    """Where a relative path would have led in the folder of the command, if it leads anywhere there."""
    path = name.rpartition("@" if "@" in name else ":")[2]
    there = from_command(path)
    if path and not os.path.isabs(os.path.expanduser(path)) and there.exists() and there != from_root(path):
        return f"; relative paths start at {ROOT}, the one in your folder is {there}"
    return ""
