"""Describe-and-Dissect as one call: from what was measured to a phrase for every unit.

describe_and_dissect  Measurements -> the labels table
needs_ordinary        whether captions of ordinary images are read at all
picture_options       what step 3 needs for pictures that are drawn, or retrieved from the probe
image_options         what it needs where it needs no pictures
choice_options        one or the other, by the name of the selection
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd

from neuronym.common.types import Progress
from neuronym.common.units import Units
from neuronym.describe.candidates import AskAll, propose, TOKENS
from neuronym.describe.pipeline import (
    caption_examples,
    captioned,
    describe_units,
    labels_of,
    of_units,
    ordinary_captions,
    ordinary_rows,
)
from neuronym.describe.prompts import layer_prompts
from neuronym.describe.scoring import SCORES
from neuronym.describe.simulation import SIMULATED
from neuronym.describe.together import need_server
from neuronym.measurements import Measurements
from neuronym.models.captioners import Captioner, load_captioner
from neuronym.models.generators import Generator, load_generator
from neuronym.models.llms import Llm
from neuronym.models.transcript_files import Transcript
from neuronym.models.transcripts import as_recorded, ask_all, load_recorded, open_transcript
from neuronym.similarity.labels import COLUMNS

ORDINARY = 1000  # images at random that are captioned too
OWN_WORDS = "clip_words"  # the captioner whose captions are the CLIP's own words


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
    ordinary: int = ORDINARY,
    captions_of: str = "both",
    tries: int = 5,
    prompt: str = "objects",
    pictures: int = 10,
    selection: str = "simulate",
    transcript: str | Path | Transcript | None = None,
    max_tokens: int = TOKENS,
    together: bool = False,
    dry_run: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The k best phrases of each unit (Bai et al., TMLR 2025) as the labels table: method dnd, rank 1 is the
    label.

    Step 1 crops the unit's `images` of highest activation and captions them; step 2 asks `llm` what the
    captions share, `tries` times ("extractive" counts phrases and is no language model), and adds the phrases
    of captions of `ordinary` images that go with the unit (`captions_of` takes one or the other); step 3
    takes the best candidate by `selection`: "simulate" correlates what the CLIP sees of it in all images with
    the unit, and "balanced", the notebook's default, takes in what captions say where they are not the CLIP's
    own words; the paper's functions (`describe.scoring`) show `pictures` of it (of `generator`, which is
    loaded for them alone, or "retrieval" from the probe itself) to the network. The defaults need no
    download: captions are words of `data.concepts`. Answers of models are kept in `transcript` (by default
    among the results), so that nothing is asked twice. `max_tokens` bounds an answer of `llm`. `together`
    shows a captioner vlm:MODEL all examples of a unit in one request, which asks for `tries` phrases that
    they share; these are the candidates of the examples, without `llm`. `dry_run` asks models of servers
    nothing, prints how much they would be asked and what that would cost at the transcript's prices, and
    returns an empty table. Units of which no caption comes are left out, and a line says so. Errors: those of
    the loaders.

    >>> from neuronym import measure
    >>> data = measure("microworld:resnet", "fc", "microworld:60", "microworld", "microworld:atoms")
    >>> options = {"units": "ids:0", "images": 3, "crops": 0}
    >>> table = describe_and_dissect(data, "microworld", generator="microworld", **options)
    >>> table["layer"].unique().tolist(), int(table["rank"].min())
    (['fc'], 1)
    """
    place = data.I.device
    if isinstance(captioner, str):
        how = {"clip": data.clip, "words": data.concepts, "max_tokens": max_tokens}
        captioner = load_captioner(captioner, place, **how)
    if isinstance(generator, str) and generator != "retrieval" and selection in SCORES:
        generator = load_generator(generator, place)
    if not isinstance(transcript, Transcript):
        transcript = open_transcript(transcript, dry_run=dry_run)
    if dry_run and transcript.dry is None:
        raise ValueError("a dry run needs a transcript opened for one; open_transcript(..., dry_run=True)")
    captioner = as_recorded(transcript, captioner)
    if together:
        need_server(captioner)
    ask = _ask(llm, transcript, place, progress)
    wanted = data.units(units)
    prompts = layer_prompts(prompt, list(wanted), data.target.layers)
    rows = ordinary_rows(data.N, ordinary, seed)
    usual = []
    if needs_ordinary(captions_of, selection, counts=ask is None and not together):
        usual = ordinary_captions(data.probe, captioner, transcript, ordinary, seed, progress)
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
            together=tries if together else 0,
            prompt=prompts[layer],
            batch_size=batch_size,
            device=place,
            progress=progress,
        )
        examples = of_units(examples, captioned(examples))
        if transcript.dry is not None:
            if ask is not None and captions_of != "ordinary" and not together:
                told = {"tries": tries, "prompt": prompts[layer], "seed": seed, "max_tokens": max_tokens}
                propose(examples.captions, ask, **told)
            continue
        described = describe_units(
            examples,
            generator,
            ask=ask,
            reference=usual,
            reference_Q=data.Q[layer][rows],
            captions_of=captions_of,
            tries=tries,
            prompt=prompts[layer],
            selection=selection,
            seed=seed,
            max_tokens=max_tokens,
            **choice_options(
                data, layer, selection, generator, pictures, batch_size, captioner.name == OWN_WORDS
            ),
        )
        tables.append(labels_of(described, data.target.name, k, activations=data.Q[described.layer]))
    if transcript.dry is not None:
        print(transcript.dry.told(transcript.prices))
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(tables, ignore_index=True)


def needs_ordinary(captions_of: str, selection: str, counts: bool) -> bool:
    """Whether captions of ordinary images are read: candidates come from them, a choice goes by them, or what
    examples share is counted and compared with them.
    """
    return captions_of != "examples" or selection in ("balanced", "agreed", "mention") or counts


def _ask(llm: str | Llm, transcript: Transcript, device, progress: Progress | None) -> AskAll | None:
    """What asks the language model; None for the extractive summariser."""
    if llm == "extractive":
        return None
    model = load_recorded(transcript, llm, device) if isinstance(llm, str) else llm
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


def image_options(data: Measurements, layer: str, own_words: bool = False) -> dict[str, object]:
    """Options of step 3 (`describe_units`) without pictures: what unit and CLIP see of all images, and
    whether captions are the CLIP's own words.
    """
    return {"Q": data.Q[layer], "I": data.I, "clip": data.clip, "T": data.T, "own_words": own_words}


def choice_options(
    data: Measurements,
    layer: str,
    selection: str,
    generator: str | Generator,
    pictures: int,
    batch_size: int,
    own_words: bool = False,
) -> dict[str, object]:
    """Options of step 3 for a selection: of pictures, of images, or none."""
    if selection in SIMULATED:
        return image_options(data, layer, own_words)
    if selection == "first":
        return {}
    return picture_options(data, layer, generator, pictures, batch_size)
