"""Image-text models by name: two towers, one space.

load_clip  name -> Clip
CLIPS      name up to the colon -> loader

    microworld[:rn]           | the small CLIP with a ResNet tower trained here; it knows 78 words |
                                microworld
    microworld:vit            | the same with a ViT tower
    microworld:TOWER@FOLDER   | either, retrained: the folder of its .safetensors |
                                microworld:vit@mine/networks
    openai:NAME[@FILE]        | OpenAI's, with QuickGELU, from its cache or NEURONYM_CLIP_DIR |
                                openai:ViT-B/16
    open_clip:ARCH:PRETRAINED | open_clip's; PRETRAINED is a tag, a file or random:SEED (`pip install -e
                                '.[open_clip]'`) | open_clip:ViT-B-32:laion2b_s34b_b79k
    open_clip:hf-hub:ORG/NAME | open_clip's from the Hugging Face hub | open_clip:hf-hub:timm/ViT-B-16-SigLIP
    hf:ID                     | CLIP, SigLIP and their kin from a Hugging Face id or a folder |
                                hf:openai/clip-vit-base-patch32
    conse:TARGET              | ConSE: a target whose output units are named, read as an image-text model |
                                conse:efficientnet_lite2
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn, Tensor

from neuronym.common.checks import import_extra, missing, openai_package, unknown
from neuronym.common.files import digest
from neuronym.common.types import Clip
from neuronym.models.identity import identity, identity_of
from neuronym.models.openai_clip import bpe_key, openai_module, openai_weights, text_features
from neuronym.models.preprocess import CLIP_MEAN, CLIP_STD, MICRO, Preprocess, preprocess_text
from neuronym.models.sentences import load_sentence_encoder
from neuronym.models.targets import load_target
from neuronym.models.weights import (
    is_file_or_seed,
    is_torchscript,
    microworld_weights,
    NO_CODE,
    quiet_transformers,
    random_seed,
    random_start,
    read_weights,
    tokenizer_key,
)
from neuronym.runs.folders import folder_or_id, from_root

CONSE_CLASSES = 10  # T of Norouzi et al. 2014
TEXTS = 256  # texts that pass the tower together


def load_clip(name: str | Clip, device: str | torch.device = "cpu") -> Clip:
    """Load an image-text model by name (see the module's text), in evaluation mode and float32; a Clip is
    returned as it is.

    Errors: KeyError for an unknown name, FileNotFoundError for absent weights, ModuleNotFoundError for an
    absent extra.

    >>> load_clip("microworld").d
    128
    """
    if isinstance(name, Clip):
        return name
    kind, _, rest = name.partition(":")
    if kind not in CLIPS or (not rest and kind != "microworld"):
        raise unknown(
            "clip",
            name,
            [
                "microworld",
                "microworld:vit",
                "openai:ViT-B/16",
                "open_clip:ARCH:PRETRAINED",
                "hf:ID",
                "conse:efficientnet_lite2",
            ],
        )
    return replace(CLIPS[kind](rest, torch.device(device)), name=name)


def _microworld(rest: str, device: torch.device) -> Clip:
    from neuronym.microworld import world

    tower, _, folder = (rest or "rn").partition("@")
    if tower not in ("rn", "vit"):
        raise unknown("microworld clip", tower, ["rn", "vit"])
    model = openai_module(microworld_weights(f"clip_{tower}", folder))
    vocabulary = repr(sorted(world.VOCABULARY.items()))
    words = digest(vocabulary, identity_of(world.tokenize), str(model.context_length))
    clip = _clip(
        model,
        device,
        ("visual",),
        model.encode_image,
        lambda texts: text_features(model, world.tokenize(texts).to(device)),
        words,
        MICRO,
        preprocess_text(MICRO),
    )
    return replace(clip, reads=world.understood)


def _openai(rest: str, device: torch.device) -> Clip:
    clip = openai_package()
    known = clip.available_models()
    name = max((n for n in known if rest == n or rest.startswith(f"{n}@")), key=len, default=None)
    if name is None:
        raise unknown("openai-clip model", rest.partition("@")[0], known)
    model = openai_module(openai_weights(name, rest[len(name) + 1 :]))
    words, size = bpe_key(model), model.visual.input_resolution
    preprocess = Preprocess(size, size, "bicubic", CLIP_MEAN, CLIP_STD)
    return _clip(
        model,
        device,
        ("visual",),
        model.encode_image,
        lambda texts: text_features(
            model, clip.tokenize(texts, model.context_length, truncate=True).to(device)
        ),
        words,
        preprocess,
        preprocess_text(preprocess),
    )


def _open_clip(rest: str, device: torch.device) -> Clip:
    open_clip = import_extra("open_clip", "open_clip_torch", f"open_clip:{rest}")
    hub = rest.startswith(("hf-hub:", "local-dir:"))
    arch, _, tag = (rest, "", "") if hub else rest.partition(":")
    tags = [] if hub else open_clip.list_pretrained_tags_by_model(arch)
    if not hub and arch not in open_clip.list_models():
        raise unknown("open_clip architecture", arch, open_clip.list_models())
    if not hub and tag not in tags and not is_file_or_seed(tag):
        raise unknown(f"open_clip weights of {arch}", tag, [*tags, "random:0", "a file"])
    seed = random_seed(tag)
    tag = str(from_root(tag)) if not hub and tag not in tags and seed is None else tag
    if not hub and tag not in tags and seed is None and not Path(tag).is_file():
        raise FileNotFoundError(f"no weights file at {tag}; open_clip:{arch} also knows {', '.join(tags)}")
    # weights trained with QuickGELU are wrong under GELU, and open_clip would only warn
    quick = tag in tags and (open_clip.get_pretrained_cfg(arch, tag) or {}).get("quick_gelu", False)
    if not hub and tag not in tags and seed is None and not _is_quick(open_clip, arch):
        quick = _is_openais(tag)
        if not quick:
            warnings.warn(
                f"open_clip:{arch} runs {tag} under GELU; weights that began as OpenAI's were trained with "
                "QuickGELU: name them openai:NAME@FILE, or an architecture that ends in -quickgelu",
                stacklevel=2,
            )
    try:
        with random_start(seed or 0):
            model, _, preprocess = open_clip.create_model_and_transforms(
                arch, None if hub or seed is not None else tag, force_quick_gelu=quick
            )
    except (OSError, RuntimeError) as error:
        if tag and tag not in tags:
            raise ValueError(f"{tag} does not fit open_clip's {arch}: {_first_line(error)}") from error
        raise missing(
            f"weights of open_clip:{rest}",
            f"'{rest}' by open_clip where there is network",
            "the Hugging Face cache",
            "HF_HOME to that cache, or name a file: open_clip:ARCH:FILE",
        ) from error
    tokenizer = open_clip.get_tokenizer(arch)
    inner = getattr(tokenizer, "tokenizer", None)  # a Hugging Face tokenizer, wrapped
    words = digest(
        identity_of(type(tokenizer)),
        str(tokenizer.context_length),
        tokenizer_key(inner) if inner is not None else repr(sorted(tokenizer.encoder.items())),
    )
    return _clip(
        model,
        device,
        ("visual",),
        model.encode_image,
        lambda texts: model.encode_text(tokenizer(texts).to(device)),
        words,
        preprocess,
        preprocess_text(preprocess),
    )


def _is_quick(open_clip, arch: str) -> bool:
    return bool((open_clip.get_model_config(arch) or {}).get("quick_gelu", False))


def _is_openais(file: str) -> bool:
    """Whether a file is as OpenAI ships its CLIPs: an archive of TorchScript, or its sizes beside the
    weights.
    """
    return is_torchscript(file) or {"input_resolution", "vocab_size"} <= read_weights(file).keys()


def _hf(rest: str, device: torch.device) -> Clip:
    import transformers

    source = folder_or_id(rest)
    pil = (
        {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
    )  # as released
    try:
        with quiet_transformers(), random_start(0):
            model = transformers.AutoModel.from_pretrained(source, **NO_CODE)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **NO_CODE)
            processor = transformers.AutoImageProcessor.from_pretrained(source, **pil, **NO_CODE)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"hf:{rest} could not be loaded ({_first_line(error)}); download it where there is "
            "network and name its folder as hf:PATH, or set HF_HOME to a cache with it"
        ) from error
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise ValueError(
            f"an image-text model has get_image_features and get_text_features, got {type(model).__name__}"
            f" from hf:{rest}; use a CLIP or SigLIP"
        )
    positions = getattr(getattr(model.config, "text_config", None), "max_position_embeddings", None)
    longest = min(positions or tokenizer.model_max_length, tokenizer.model_max_length)
    masked = "siglip" not in model.config.model_type  # SigLIP was trained to read its padding
    all_tokens = model.config.model_type == "flava"

    def texts_in(texts: list[str]) -> Tensor:
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).to(device)
        mask = {"attention_mask": tokens["attention_mask"]} if masked else {}
        return _features(model.get_text_features(input_ids=tokens["input_ids"], **mask), all_tokens)

    def images_in(batch: Tensor) -> Tensor:
        return _features(model.get_image_features(pixel_values=batch), all_tokens)

    def preprocess(image: Image.Image) -> Tensor:
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    words = digest(tokenizer_key(tokenizer), f"max_length {longest} {masked}")
    _check_features(
        f"hf:{rest}",
        model,
        lambda: images_in(preprocess(Image.new("RGB", (64, 64)))[None]),
        lambda: texts_in(["a"]),
    )
    return _clip(
        model,
        device,
        ("image_model", "image_projection") if all_tokens else ("vision_model", "visual_projection"),
        images_in,
        texts_in,
        words,
        preprocess,
        preprocess_text(processor),
    )


def _conse(rest: str, device: torch.device) -> Clip:
    """ConSE: an image is the mean of its top T class names' sentence embeddings, weighted by probability (eq.
    3-4).
    """
    target, sentences = load_target(rest, device, suggest=False), load_sentence_encoder("minilm", device)
    if not target.classes:
        raise ValueError(
            f"ConSE needs a target whose output neurons have names, got '{rest}'; use efficientnet_lite2"
        )

    @cache
    def names() -> Tensor:  # when the first image comes, which with cached embeddings is never
        with torch.autocast(
            device.type, enabled=False
        ):  # what a pass of images asks for is not meant for texts
            return sentences.encode(target.classes).to(device)  # [C, d]

    def images_in(batch: Tensor) -> Tensor:
        p, classes = (
            target.model(batch).softmax(dim=1).topk(min(CONSE_CLASSES, len(names())), dim=1)
        )  # [n, T]
        return torch.einsum("nt,ntd->nd", p, names()[classes])

    key = digest(target.weights_key, sentences.weights_key, f"ConSE T={CONSE_CLASSES}", *target.classes)
    # there is no learned temperature; 100 is the one most CLIPs end at
    return Clip(
        "",
        *_encoders(images_in, sentences.encode, device),
        target.preprocess,
        target.preprocess_spec,
        key,
        sentences.weights_key,
        sentences.d,
        logit_scale=100.0,
        activation="-",
        model=target.model,
        channels_last=target.channels_last,
    )


CLIPS: dict[str, Callable[[str, torch.device], Clip]] = {
    "microworld": _microworld,
    "openai": _openai,
    "open_clip": _open_clip,
    "hf": _hf,
    "conse": _conse,
}


def _clip(
    model: nn.Module,
    device: torch.device,
    image_parts: tuple[str, ...],
    images_in: Callable,
    texts_in: Callable,
    words: str,
    preprocess: Callable,
    spec: str,
) -> Clip:
    """A Clip around a two-tower module: its parts `image_parts` are the image side, the others the text
    side.
    """
    model = model.float().eval().requires_grad_(False)
    tops = {name.partition(".")[0] for name in [*model.state_dict(), *dict(model.named_children())]}
    text_parts = tops - set(image_parts) - {"logit_scale", "logit_bias", "temperature"}
    keys = identity(model, set(image_parts)), identity(model, text_parts, words)
    model.to(device)
    quick = any("QuickGELU" in type(part).__name__ for part in model.modules())
    encode_image, encode_text = _encoders(images_in, texts_in, device)
    return Clip(
        "",
        encode_image,
        encode_text,
        preprocess,
        spec,
        *keys,
        encode_text(["a"]).shape[1],
        _scale(model),
        "QuickGELU" if quick else "GELU",
        model,
    )


def _encoders(
    images_in: Callable[[Tensor], Tensor], texts_in: Callable[[list[str]], Tensor], device: torch.device
) -> tuple[Callable, Callable]:
    """Unit rows and bounded batches around two towers."""

    @torch.no_grad()
    def encode_image(batch: Tensor) -> Tensor:
        return F.normalize(images_in(batch.to(device, torch.float32)).float(), dim=-1)

    @torch.no_grad()
    def encode_text(texts: Sequence[str]) -> Tensor:
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"encode_text takes a list of texts, got {texts!r}; wrap one text in a list")
        texts = list(texts)
        rows = [texts_in(texts[i : i + TEXTS]).to(device) for i in range(0, len(texts), TEXTS)]
        return F.normalize(torch.cat(rows).float(), dim=-1)  # [m, d]

    return encode_image, encode_text


def _check_features(name: str, model: nn.Module, picture: Callable, text: Callable) -> None:
    """ValueError unless one picture and one text give rows of one width, and the network has a scale."""
    try:
        with torch.no_grad():
            shapes = [list(features().shape) for features in (picture, text)]
    except Exception as error:
        raise ValueError(
            f"an image-text model embeds a picture and a text alone, {type(model).__name__} from {name} "
            f"cannot ({type(error).__name__}: {_first_line(error)}); use a CLIP or SigLIP"
        ) from error
    if any(len(shape) != 2 or shape[0] != 1 for shape in shapes) or shapes[0] != shapes[1]:
        raise ValueError(
            f"an image-text model gives one row of one width for a picture and for a text, "
            f"{type(model).__name__} from {name} gives {shapes[0]} and {shapes[1]}; use a CLIP or SigLIP"
        )
    if not hasattr(model, "logit_scale") and not hasattr(model, "temperature"):
        raise ValueError(
            f"an image-text model has a learned scale (logit_scale), {type(model).__name__} from {name} has "
            "none; use a CLIP or SigLIP"
        )


def _scale(model: nn.Module) -> float:
    """What cosines are multiplied by; ALIGN has its inverse."""
    if hasattr(model, "logit_scale"):
        return float(model.logit_scale.exp())
    return 1 / float(model.temperature)


def _features(output, tokens: bool = False) -> Tensor:
    """transformers 5 returns an object with the projected features as pooler_output, transformers 4 the
    tensor; those of all `tokens` (FLAVA), of which the first is what its contrastive loss reads.
    """
    found = output if isinstance(output, Tensor) else output.pooler_output
    return found[:, 0] if tokens else found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
