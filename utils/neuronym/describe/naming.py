"""Describe-and-Dissect as one call: from what was measured to a phrase for every unit.

describe_and_dissect  Measurements -> the labels table
picture_options       what step 3 needs for pictures that are drawn, or retrieved from the probe
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd

from neuronym.common.types import Progress
from neuronym.common.units import Units
from neuronym.describe.candidates import AskAll
from neuronym.describe.pipeline import caption_examples, describe_units, labels_of, ordinary_captions
from neuronym.measurements import Measurements
from neuronym.models.captioners import Captioner, load_captioner
from neuronym.models.generators import Generator, load_generator
from neuronym.models.llms import Llm, load_llm
from neuronym.models.transcripts import ask_all, open_transcript, Transcript
from neuronym.runs.folders import results_dir


def describe_and_dissect(
    data: Measurements,
    captioner: str | Captioner = "clip_words",
    llm: str | Llm = "extractive",
    generator: str | Generator = "retrieval",
    units: Units = 10,
    *,
    k: int = 3,
    images: int = 10,
    crops: int = 4,
    tries: int = 5,
    prompt: str = "objects",
    pictures: int = 10,
    selection: str = "sq_mean",
    transcript: str | Path | Transcript | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The k best phrases of each unit (Bai et al., TMLR 2025) as the labels table: method dnd, rank 1 is the
    label.

    Step 1 crops the unit's `images` of highest activation and captions them; step 2 asks `llm` what the
    captions share, `tries` times ("extractive" counts phrases and is no language model); step 3 takes the
    candidate whose `pictures` (of `generator`, or "retrieval" from the probe itself) excite the unit most by
    `selection`. The defaults need no download: captions are words of `data.concepts`. Answers of models are
    kept in `transcript` (by default among the results), so that nothing is asked twice. Errors: those of the
    loaders.

    >>> from neuronym import measure
    >>> data = measure("microworld:resnet", "fc", "microworld:60", "microworld", "microworld:atoms")
    >>> options = {"units": "ids:0", "images": 3, "crops": 0}
    >>> table = describe_and_dissect(data, "microworld", generator="microworld", **options)
    >>> table["layer"].unique().tolist(), int(table["rank"].min())
    (['fc'], 1)
    """
    place = data.I.device
    if isinstance(captioner, str):
        captioner = load_captioner(captioner, place, clip=data.clip, words=data.concepts)
    if isinstance(generator, str) and generator != "retrieval":
        generator = load_generator(generator, place)
    if not isinstance(transcript, Transcript):
        transcript = open_transcript(transcript or results_dir() / "answers.jsonl")
    ask = _ask(llm, transcript, place, progress)
    wanted = data.units(units)
    ordinary = ordinary_captions(data.probe, captioner, transcript, min(200, data.N), seed, progress)
    tables = []
    for layer, some in wanted.items():
        examples = caption_examples(
            data.target,
            data.layers[layer],
            some,
            data.probe,
            data.Q[layer],
            captioner,
            transcript,
            data.clip,
            images=min(images, data.N),
            crops=crops,
            batch_size=batch_size,
            device=place,
            progress=progress,
        )
        described = describe_units(
            examples,
            generator,
            ask=ask,
            reference=ordinary,
            tries=tries,
            prompt=prompt,
            selection=selection,
            seed=seed,
            **picture_options(data, layer, generator, pictures, batch_size),
        )
        tables.append(labels_of(described, data.target.name, k, activations=data.Q[described.layer]))
    return pd.concat(tables, ignore_index=True)


def _ask(llm: str | Llm, transcript: Transcript, device, progress: Progress | None) -> AskAll | None:
    """What asks the language model; None for the extractive summariser."""
    if llm == "extractive":
        return None
    model = load_llm(llm, device) if isinstance(llm, str) else llm
    return partial(ask_all, transcript, model, progress=progress)


def picture_options(
    data: Measurements, layer: str, generator: str | Generator, pictures: int, batch_size: int
) -> dict[str, object]:
    """Options of step 3 (`describe_units`) for n pictures of each candidate, drawn by a generator or by
    "retrieval" from the probe.
    """
    if isinstance(generator, str):
        return {"n": min(pictures, data.N), "Q": data.Q[layer], "I": data.I, "clip": data.clip}
    return {
        "n": pictures,
        "target": data.target,
        "layer": data.layers[layer],
        "clip": data.clip,
        "batch_size": batch_size,
        "device": data.I.device,
    }
