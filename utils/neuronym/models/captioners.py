"""Captioners by name: pictures in, one line of text each out, whatever pictures come together.

Captioner       what is loaded
load_captioner  name -> Captioner
picture_key     what a caption can be kept by
nearest         the text nearest to each picture, as clip_words says it
CAPTIONERS      name up to the colon -> loader

    microworld[@FOLDER] | a tiny BLIP trained here; it knows the microworld's words only | microworld
    blip:ID             | BLIP from a Hugging Face id or a folder | blip:Salesforce/blip-image-captioning-base
    blip2:ID            | BLIP-2 alike | blip2:Salesforce/blip2-opt-2.7b
    clip_words          | no captioner: the nearest of `concepts` in the space of `clip`
    vlm:MODEL           | a model that reads pictures, on an OpenAI-compatible server | vlm:llava
"""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from neuronym.common.checks import unknown
from neuronym.common.files import digest
from neuronym.common.types import Answer
from neuronym.models.answers import caption_of
from neuronym.models.asking import each
from neuronym.models.identity import identity
from neuronym.models.llms import load_llm, TIMEOUT, TRIES
from neuronym.models.preprocess import MICRO, preprocess_text
from neuronym.models.weights import (
    microworld_weights,
    NO_CODE,
    quiet_transformers,
    random_start,
    tokenizer_key,
)
from neuronym.runs.folders import folder_or_id

if TYPE_CHECKING:
    from neuronym.common.types import Clip

BATCH = 16  # pictures that pass a network together
BLOCK = 4096  # words that pictures are compared with at once
WORKERS = 8  # pictures that a server is asked about at once
MOST_TOKENS = 300  # of a server's answer, where no more are allowed
LENGTHS = {"max_new_tokens": 32, "min_new_tokens": 4}  # minimum length 5 with the start token
PROMPT = (
    "Say in one sentence what this picture shows: the main thing, its colours, patterns and materials, and "
    "what "
    "is around it. Write plain words only, no list and no introduction."
)


@dataclass
class Captioner:
    """caption: n pictures -> n captions, each a line of text; the same picture always gets the same caption.

    How many are captioned together changes at most a network's rounding. A server may answer twice
    differently, and "" stands for a caption that it cut off or refused.
    """

    name: str
    key: str  # stands for all that determines a caption besides the picture
    caption: Callable[[Sequence[Image.Image]], list[str]]
    answer: Callable[..., Answer] | None = None  # of a server: picture, max_tokens, stop -> Answer
    max_tokens: int = MOST_TOKENS  # of such an answer
    more: int = 4  # times as many when one is asked for again
    look: Callable[..., Answer] | None = (
        None  # the same of several pictures: pictures, question, max_tokens, stop
    )


def load_captioner(
    name: str,
    device: str | torch.device = "cpu",
    *,
    clip: Clip | None = None,
    words: Sequence[str] = (),
    timeout: float = TIMEOUT,
    tries: int = TRIES,
    max_tokens: int = MOST_TOKENS,
) -> Captioner:
    """Load a captioner by name (see the module's text).

    BLIPs write at most 32 tokens, at least five with the start, without sampling, with as many beams as their
    folder says (one if it says nothing). `clip` and `words` are for clip_words; `timeout`, `tries` and
    `max_tokens`, at least MOST_TOKENS, for a server. Errors: KeyError for an unknown name, FileNotFoundError
    for absent weights, ValueError for weights of another kind of network, or no words; `caption` raises for a
    server what `neuronym.models.llms.load_llm` says.
    """
    kind, _, rest = name.partition("@" if name.startswith("microworld@") else ":")
    if (
        kind not in CAPTIONERS
        or (not rest and kind in ("blip", "blip2", "vlm"))
        or (rest and kind == "clip_words")
        or name.startswith("microworld:")
    ):
        raise unknown(
            "captioner",
            name,
            ["microworld", "microworld@FOLDER", "blip:ID", "blip2:ID", "clip_words", "vlm:MODEL"],
        )
    options = {
        "clip_words": {"clip": clip, "words": list(words)},
        "vlm": {"timeout": timeout, "tries": tries, "max_tokens": max(max_tokens, MOST_TOKENS)},
    }
    captioner = CAPTIONERS[kind](rest, torch.device(device), **options.get(kind, {}))
    return replace(captioner, name=name, caption=_checked(captioner.caption))


def picture_key(picture: Image.Image) -> str:
    """16 hex of SHA-256 over the size of a picture and its RGB pixels."""
    rgb = picture.convert("RGB")
    return hashlib.sha256(f"{rgb.width} x {rgb.height} ".encode() + rgb.tobytes()).hexdigest()[:16]


def _microworld(folder: str, device: torch.device) -> Captioner:
    from neuronym.microworld.networks import build_blip, say, SETTINGS
    from neuronym.microworld.world import VOCABULARY

    model = build_blip(microworld_weights("captioner", folder)).requires_grad_(False)
    key = identity(model, None, repr(sorted(VOCABULARY.items())), repr(SETTINGS), preprocess_text(MICRO))
    model = model.to(device)

    def caption(pictures: Sequence[Image.Image]) -> list[str]:
        return [
            text
            for some in _batches(pictures)
            for text in say(model, torch.stack([MICRO(picture) for picture in some]).to(device))
        ]

    return Captioner("", key, caption)


def _blip(source: str, device: torch.device, kind: str = "blip") -> Captioner:
    import transformers

    source = folder_or_id(source)
    new = int(transformers.__version__.split(".")[0]) >= 5
    own = {"dtype": "auto"} if new else {"torch_dtype": "auto"}  # the checkpoint's type
    pil = {"backend": "pil"} if new else {"use_fast": False}  # as released
    model_type, network = {
        "blip": ("blip", "BlipForConditionalGeneration"),
        "blip2": ("blip-2", "Blip2ForConditionalGeneration"),
    }[kind]
    try:
        with quiet_transformers(), random_start(0):
            found = transformers.AutoConfig.from_pretrained(source, **NO_CODE).model_type
            if found == model_type:
                processor = transformers.AutoProcessor.from_pretrained(source, **pil, **NO_CODE)
                model, info = getattr(transformers, network).from_pretrained(
                    source, output_loading_info=True, **own
                )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{kind}:{source} could not be loaded ({reason}); download it where there is network "
            f"and name its folder as {kind}:PATH, or set HF_HOME to a cache with it"
        ) from error
    if found != model_type:
        raise ValueError(
            f"{kind}:ID takes a checkpoint of type {model_type}, got {found} from {source}; name a "
            "captioning checkpoint of that type"
        )
    absent = sorted({name for name, _ in model.named_parameters()} & set(info["missing_keys"]))
    if absent:  # they would be random, and so would every caption
        raise ValueError(
            f"{kind}:{source} must hold all weights of a captioner, and lacks {len(absent)} "
            f"({', '.join(absent[:3])}); name a captioning checkpoint"
        )
    if kind == "blip2" and model.config.image_token_index is None:
        model.config.image_token_index = _free_token(model, f"{kind}:{source}")
    beams = model.generation_config.num_beams or 1
    # the values behind are transformers' neutral ones: version 4 warns about a folder's own
    settings = LENGTHS | {
        "num_beams": beams,
        "do_sample": False,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
    }
    key = identity(
        model,
        None,
        tokenizer_key(processor.tokenizer),
        preprocess_text(processor.image_processor),
        model.generation_config.to_json_string(),
        repr(settings),
    )
    model = model.eval().requires_grad_(False).to(device)

    def caption(pictures: Sequence[Image.Image]) -> list[str]:
        texts: list[str] = []
        for some in _batches(pictures):
            pixels = processor.image_processor(images=some, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                ids = model.generate(pixel_values=pixels.to(device, model.dtype), **settings)
            texts += processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    return Captioner("", key, caption)


def _free_token(model, name: str) -> int:
    """A token that stands for the picture in files of before image tokens were part of them: any but the one
    that begins a text, since the picture's own values take its place.

    Errors: ValueError for a checkpoint that names none.
    """
    text = model.config.text_config
    known = [text.pad_token_id, text.eos_token_id]
    free = next((i for i in known if isinstance(i, int) and i >= 0 and i != text.bos_token_id), None)
    if free is None:
        raise ValueError(
            f"{name} was saved before image tokens were part of its files, and names no token that could "
            "stand for them; set image_token_index in its config.json, or name a newer revision"
        )
    return free


def _blip2(source: str, device: torch.device) -> Captioner:
    return _blip(source, device, "blip2")


def _clip_words(rest: str, device: torch.device, clip: Clip | None, words: list[str]) -> Captioner:
    from neuronym.activations import embed_concepts

    if clip is None or not words:
        raise ValueError(
            f"clip_words takes a CLIP and words, got {'a CLIP' if clip else 'none'} and {len(words)} "
            "words; write load_captioner('clip_words', clip=load_clip(...), words=load_concepts(...))"
        )
    T = embed_concepts(clip, words)  # [M, d]

    def caption(pictures: Sequence[Image.Image]) -> list[str]:
        texts: list[str] = []
        for some in _batches(pictures):
            with torch.no_grad():
                I = clip.encode_image(
                    torch.stack([clip.preprocess(picture) for picture in some])
                ).cpu()  # [n, d]
            texts += [words[i] for i in nearest(I, T).tolist()]
        return texts

    return Captioner("", digest(clip.weights_key, clip.text_key, clip.preprocess_spec, *words), caption)


def nearest(I: Tensor, T: Tensor, block: int = BLOCK) -> Tensor:
    """For each row of I [n, d] the row of T [M, d] of the largest product, the first of equal ones -> [n]."""
    best, index = torch.full((len(I),), -torch.inf, dtype=I.dtype), torch.zeros(len(I), dtype=torch.long)
    for start in range(0, len(T), block):
        P = I @ T[start : start + block].T  # [n, block]
        most, first = P.max(1)  # the first of equal ones
        index, best = torch.where(most > best, start + first, index), torch.maximum(most, best)
    return index


def _vlm(model: str, device: torch.device, timeout: float, tries: int, max_tokens: int) -> Captioner:
    llm = load_llm(f"openai:{model}", timeout=timeout, tries=tries)

    def look(
        pictures: Sequence[Image.Image], question: str, most: int, stop: threading.Event | None
    ) -> Answer:
        content = [{"type": "text", "text": question}, *map(_sent, pictures)]
        messages = [{"role": "user", "content": content}]
        return llm.answer(messages, stop=stop, temperature=0.0, max_tokens=most, seed=0)

    def answer(picture: Image.Image, most: int = max_tokens, stop: threading.Event | None = None) -> Answer:
        return look([picture], PROMPT, most, stop)

    def caption(pictures: Sequence[Image.Image]) -> list[str]:
        found: dict[int, str] = {}

        def one(key: str) -> bool:
            for most in (max_tokens, max_tokens * llm.more):
                given = answer(pictures[int(key)], most, stop)
                if not given.fault or stop.is_set():
                    break
            found[int(key)] = "" if given.fault else caption_of(given.text)
            return True

        stop = threading.Event()
        for _ in each(one, deque(map(str, range(len(pictures)))), WORKERS, str, lambda n: None, stop):
            pass
        return [found[i] for i in range(len(pictures))]

    key = digest(llm.key, PROMPT, str(max_tokens))
    return Captioner("", key, caption, answer, max_tokens, llm.more, look)


def _sent(picture: Image.Image) -> dict:
    """A picture as a part of a message."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


CAPTIONERS: dict[str, Callable[..., Captioner]] = {
    "microworld": _microworld,
    "blip": _blip,
    "blip2": _blip2,
    "clip_words": _clip_words,
    "vlm": _vlm,
}


def _batches(pictures: Sequence[Image.Image]) -> Iterator[list[Image.Image]]:
    for start in range(0, len(pictures), BATCH):
        yield list(pictures[start : start + BATCH])


def _checked(
    caption: Callable[[Sequence[Image.Image]], list[str]],
) -> Callable[[Sequence[Image.Image]], list[str]]:
    def checked(pictures: Sequence[Image.Image]) -> list[str]:
        if not isinstance(pictures, (list, tuple)) or not all(isinstance(p, Image.Image) for p in pictures):
            raise ValueError(
                f"a captioner takes a list of PIL pictures, got {type(pictures).__name__}; wrap one "
                "picture in a list"
            )
        return (
            [" ".join(text.split()) for text in caption([p.convert("RGB") for p in pictures])]
            if pictures
            else []
        )

    return checked
