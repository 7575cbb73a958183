"""Text-to-image generators by name: a prompt and a seed give one picture, whatever it is drawn together with.

Generator       what is loaded
load_generator  name -> Generator
pictures        prompts and seeds -> pictures; what was drawn before comes from the cache
blacked         whether a picture is one that a safety checker blacked out
GENERATORS      name up to the colon -> loader
pictures_of     pictures of labels, the same seeds for each

    microworld           | reads the text as a scene and renders it; it knows the microworld's words only
    retrieval            | no generator: the probing set's own images nearest to the text
    diffusers:ID         | a text-to-image pipeline from a Hugging Face id or a folder, with its own settings
                           (`pip install -e '.[diffusers]'`) | diffusers:stabilityai/sd-turbo
    diffusers:ID@OPTIONS | some of steps=4, size=256, guidance=0, scheduler=dpm (DPM-Solver multistep) and
                           dtype=float32, float16 or bfloat16; Describe-and-Dissect's own are |
                           diffusers:CompVis/stable-diffusion-v1-4@steps=50,scheduler=dpm
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import nn

from neuronym import cache
from neuronym.common.checks import check_positive_int, import_extra, unknown
from neuronym.common.files import digest
from neuronym.microworld.world import LABEL_SEED, PICTURE_STEP
from neuronym.models.identity import identity
from neuronym.models.weights import NO_CODE, tokenizer_key
from neuronym.runs.folders import folder_or_id

BATCH = 8  # pictures that pass a pipeline together, and that a kill can cost
DTYPES = ("float32", "float16", "bfloat16")
SCHEDULERS = {"dpm": "DPMSolverMultistepScheduler"}
REDRAWN = 3  # other seeds that a picture is drawn from when a safety checker blacks it out
ELSEWHERE = 1_000_003  # seeds between them
SCHEMA = 2  # raised whenever the same key, prompt and seed would give another cached picture


@dataclass
class Generator:
    """draw: m prompts, m seeds -> m RGB pictures; how many are drawn together changes at most their
    rounding. None stands for a picture that a safety checker blacked out, whatever seed it was drawn from.
    """

    name: str
    key: str  # stands for all that determines a picture besides prompt and seed
    draw: Callable[[Sequence[str], Sequence[int]], list[Image.Image | None]]
    cached: bool  # whether `pictures` keeps what it draws
    reads: Callable[[str], str] = str  # a text -> what of it can be drawn, "" where it says nothing
    missing: set[tuple[str, int]] = field(default_factory=set)  # prompts and seeds that gave no picture
    bare: bool = False  # a label is drawn as it stands; others are asked in a sentence for a photo of it


def load_generator(name: str, device: str | torch.device = "cpu") -> Generator:
    """Load a generator by name (see the module's text).

    Errors: KeyError for an unknown name or option, ValueError for an option's value, FileNotFoundError for
    absent weights, ModuleNotFoundError for an absent extra.
    """
    kind, _, rest = name.partition(":")
    if kind not in GENERATORS or (kind == "microworld") == bool(rest):
        raise unknown(
            "generator", name, ["microworld", "diffusers:ID", "diffusers:ID@steps=4,size=256,guidance=0"]
        )
    generator = GENERATORS[kind](rest, torch.device(device))
    return replace(generator, name=name, draw=_checked(generator.draw))


def pictures(generator: Generator, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | None]:
    """What `generator.draw` gives, each (prompt, seed) drawn once and ever after read from the cache.

    None, which is not cached, stands for a picture that a safety checker blacked out; a line says how many.
    """
    _check(prompts, seeds)
    if not generator.cached:
        return generator.draw(prompts, seeds)

    def spec(prompt: str, seed: int) -> dict:
        return {"generator": generator.key, "prompt": digest(prompt), "seed": int(seed), "schema": SCHEMA}

    wanted = list(zip(prompts, map(int, seeds)))
    arrays = {one: _copy(cache.load("generated", spec(*one))) for one in dict.fromkeys(wanted)}
    absent = [one for one, found in arrays.items() if found is None]
    for start in range(0, len(absent), BATCH):
        some = absent[start : start + BATCH]
        for one, drawn in zip(some, generator.draw(*zip(*some)), strict=True):
            if drawn is None:
                continue
            info = {"generator": generator.name, "prompt": one[0], "seed": one[1]}
            arrays[one] = _copy(
                cache.array("generated", spec(*one), lambda: np.asarray(drawn.convert("RGB")), info)
            )
    lost = [one for one, found in arrays.items() if found is None and one not in generator.missing]
    if lost:
        generator.missing.update(lost)
        print(
            f"{generator.name}: {len(lost)} of {len(arrays)} pictures are missing, such as '{lost[0][0]}': a "
            f"safety checker blacked them out, also with {REDRAWN} other seeds; they are not scored",
            file=sys.stderr,
            flush=True,
        )
    return [None if arrays[one] is None else Image.fromarray(arrays[one]) for one in wanted]


def blacked(picture: Image.Image) -> bool:
    """Whether a picture is black all over: a checker's, or that of a decoder in too short numbers."""
    return not picture.convert("RGB").getbbox()


def _microworld(rest: str, device: torch.device) -> Generator:
    from neuronym.microworld.render import render
    from neuronym.microworld.world import parse, read, VERSION

    def reads(text: str) -> str:
        return text if any(read(text).values()) else ""

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        strange = next((text for text in prompts if not reads(text)), None)
        if strange is not None:
            raise ValueError(
                f"the microworld draws what its words say, and knows none in '{strange}'; name one of its "
                "shapes, colours, textures, places, ..., or use a generator diffusers:ID"
            )
        return [render(parse(text, int(seed))) for text, seed in zip(prompts, seeds)]

    return Generator("", digest(f"microworld {VERSION}"), draw, cached=False, reads=reads, bare=True)


def _diffusers(rest: str, device: torch.device) -> Generator:
    source, options = _options(rest)
    diffusers = import_extra("diffusers", "diffusers", f"diffusers:{rest}")
    source = folder_or_id(source)
    dtype = options.pop("dtype", "float32")
    try:
        pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
            source, torch_dtype=getattr(torch, dtype), **NO_CODE
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"diffusers:{source} could not be loaded ({reason}); download it where there is network"
            " and name its folder as diffusers:FOLDER, or set HF_HOME to a cache with it"
        ) from error
    solver = options.pop("scheduler", None)
    if solver is not None:
        pipeline.scheduler = getattr(diffusers, SCHEDULERS[solver]).from_config(pipeline.scheduler.config)
    key = _pipeline_key(pipeline, diffusers.__version__, dtype, repr(sorted(options.items())))
    pipeline.set_progress_bar_config(disable=True)
    pipeline = pipeline.to(device)
    size = options.pop("size", None)
    settings = {
        "num_inference_steps": options.get("steps"),
        "guidance_scale": options.get("guidance"),
        "height": size,
        "width": size,
    }
    settings = {k: v for k, v in settings.items() if v is not None}

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        drawn: list[Image.Image | None] = []
        for start in range(0, len(prompts), BATCH):
            some = [int(seed) for seed in seeds[start : start + BATCH]]
            told = list(prompts[start : start + BATCH])
            come = once(told, some)
            for again in range(1, REDRAWN + 1):
                lost = [i for i, image in enumerate(come) if image is None]
                if not lost:
                    break
                others = [some[i] + again * ELSEWHERE for i in lost]
                for i, image in zip(lost, once([told[i] for i in lost], others)):
                    come[i] = image
            drawn += come
        return drawn

    def once(prompts: list[str], seeds: list[int]) -> list[Image.Image | None]:
        # noise of its own for each picture, from the CPU: the same in every batch and on every device
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with torch.no_grad():
            made = pipeline(prompt=prompts, generator=noise, output_type="pil", **settings)
        if len(made.images) != len(seeds):
            raise ValueError(
                f"diffusers:{source} must give one picture per prompt, got {len(made.images)} for "
                f"{len(seeds)} prompts; name a text-to-image pipeline"
            )
        flags = getattr(made, "nsfw_content_detected", None) or getattr(made, "nsfw_detected", None)
        flags = list(flags) if isinstance(flags, (list, tuple)) else [False] * len(seeds)
        pairs = zip(made.images, flags, strict=True)
        return [None if flag or blacked(image) else image.convert("RGB") for image, flag in pairs]

    return Generator("", key, draw, cached=True)


GENERATORS: dict[str, Callable[[str, torch.device], Generator]] = {
    "microworld": _microworld,
    "diffusers": _diffusers,
}


def _options(rest: str) -> tuple[str, dict]:
    """Id or folder, and the options behind the last "@" (a folder may have one in its name)."""
    source, _, text = rest.rpartition("@")
    if not source or "=" not in text:
        return rest, {}
    kinds: dict[str, Callable] = {
        "steps": int,
        "size": int,
        "guidance": float,
        "dtype": str,
        "scheduler": str,
    }
    options = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in kinds:
            raise unknown("diffusers option", name, kinds)
        try:
            options[name] = kinds[name](value)
        except ValueError:
            raise ValueError(
                f"{name} must be a number, got '{value}' in diffusers:{rest}; write {name}=4"
            ) from None
        if name == "dtype" and value not in DTYPES:
            raise unknown("dtype", value, DTYPES)
        if name == "scheduler" and value not in SCHEDULERS:
            raise unknown("scheduler", value, SCHEDULERS)
        if name in ("steps", "size") and options[name] < 1:
            raise ValueError(
                f"{name} must be at least 1, got {value} in diffusers:{rest}; leave it out for the "
                "pipeline's own"
            )
    return source, options


def _pipeline_key(pipeline, *extra: str) -> str:
    """Hash of all parts of a pipeline: weights and structure of networks, tokenizers, settings of the
    scheduler.
    """
    texts = [type(pipeline).__name__, *extra]
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, nn.Module):
            said = identity(part)
        elif hasattr(part, "get_vocab"):
            said = tokenizer_key(part)
        else:  # names with "_" in front say where it was loaded from and by which version
            said = repr(
                sorted((k, repr(v)) for k, v in dict(getattr(part, "config", {})).items() if k[0] != "_")
            )
        texts.append(f"{name} {type(part).__name__} {said}")
    return digest(*texts)


def _checked(draw: Callable) -> Callable:
    def checked(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        _check(prompts, seeds)
        return draw(prompts, seeds)

    return checked


def _check(prompts: Sequence[str], seeds: Sequence[int]) -> None:
    if isinstance(prompts, str):
        raise ValueError(f"a generator takes a list of prompts, got the text '{prompts}'; wrap it in a list")
    if len(prompts) != len(seeds):
        raise ValueError(
            f"each prompt has a seed, got {len(prompts)} prompts and {len(seeds)} seeds; "
            "repeat a prompt to draw it from several seeds"
        )


def _copy(found: np.ndarray | None) -> np.ndarray | None:
    """Out of the file, which a memory map would keep open: thousands of pictures are more than a process
    may.
    """
    return None if found is None else np.array(found)


PROMPT = "realistic photo of a close up of {}"


def pictures_of(
    labels: Sequence[str],
    source: Generator,
    n: int = 50,
    seed: int = 0,
    template: str | None = None,
    first: int = LABEL_SEED,
) -> dict[str, list[Image.Image]]:
    """n pictures of each different label, with the same n seeds for each; `template` holds {} for the label.

    Without one it is PROMPT, and for a generator of bare labels the label itself. The seeds are those from
    `first` + `seed` PICTURE_STEP on. A picture that a safety checker blacked out is one less. Errors:
    ValueError for a template without {}, empty labels, and what the generator cannot draw.
    """
    check_positive_int("n", n, PICTURE_STEP, "the pictures of a seed")
    template = template if template is not None else "{}" if source.bare else PROMPT
    if template.count("{}") != 1:
        raise ValueError(f"a template holds {{}} once, got '{template}'; write '{PROMPT}'")
    different = list(dict.fromkeys(_texts(labels)))
    seeds = [first + seed * PICTURE_STEP + i for i in range(n)]
    made = {label: pictures(source, [template.replace("{}", label)] * n, seeds) for label in different}
    return {label: [one for one in some if one is not None] for label, some in made.items()}


def _texts(labels: Sequence[str]) -> list[str]:
    if isinstance(labels, str):
        raise ValueError(f"labels are a list of texts, got the text '{labels}'; wrap it in a list")
    wrong = [label for label in labels if not isinstance(label, str) or not label.strip()]
    if wrong or not len(labels):
        raise ValueError(f"labels are texts, none empty, got {repr(wrong[0]) if wrong else 'none'}")
    return list(labels)
