"""From neurons' sparse text codes to words for an image, a class, and an image that fools the network.

concepts_in_images  every word scored for every image by the neurons active in it (section 5, concept discovery)
words_for           words by what neurons that read a direction contribute to it (section 5, adversarial images)
speaking_neurons    the neurons whose directions lie most along a given one
allowed_words       words that do not give the wrong class away
naming              what finds a name, or its plural, in a text
"""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neuronym.common.blocks import whole

SIMILAR = .6  # cosine of sentence embeddings from which on a word counts as another name of the class
PLURALS = {"y": "ies", "f": "ves", "fe": "ves"}  # endings that change before the s


def concepts_in_images(strength: Tensor, order: Tensor, gamma: Tensor, words: int) -> Tensor:
    """Scores [N, M]: the sum over neurons of gamma times strength, for each of the M `words` of the pool.

    strength [N, K] is 0 where a neuron is not active: the length of its deviation where that is beyond its threshold,
    as released, or the deviation's part along r, whose sign says whether the words are there or missing.
    order, gamma [K, m] are the neurons' codes.
    """
    _check_codes("strength [N, K]", strength, strength.shape[1], order, gamma, words)
    units, places = (order >= 0).nonzero(as_tuple=True)
    at = torch.stack([order[units, places], units])
    values = gamma[units, places].to(strength.dtype)
    codes = torch.sparse_coo_tensor(at, values, (words, len(order)), check_invariants=True)
    return torch.sparse.mm(codes, strength.T).T


def words_for(v: Tensor, R: Tensor, order: Tensor, gamma: Tensor, words: Sequence[str], neurons: int = 100,
              summed: bool = True) -> list[tuple[str, float]]:
    """(word, score) by descending score: gamma (r . v) of the `neurons` with the largest |r . v|, summed over neurons.

    v [d], R [K, d], order and gamma [K, m]; the neurons of several layers go one after the other. Equation 6 sums;
    without `summed` a word has its largest single score, as released, where duplicates are not added up.
    """
    _check_codes("R [K, d]", R, len(R), order, gamma, len(words))
    units, reads = speaking_neurons(v, R, neurons)
    chosen, parts = order[units], gamma[units] * reads[:, None]
    kept = chosen >= 0
    scores = torch.full((len(words),), 0. if summed else -torch.inf, dtype=parts.dtype, device=parts.device)
    scores = scores.scatter_reduce(0, chosen[kept], parts[kept], "sum" if summed else "amax")
    said = torch.zeros(len(words), dtype=torch.bool, device=parts.device)
    said[chosen[kept]] = True
    best = scores.masked_fill(~said, -torch.inf).sort(descending=True, stable=True)
    return [(words[j], value) for j, value in zip(best.indices.tolist(), best.values.tolist()) if value > -torch.inf]


def speaking_neurons(v: Tensor, R: Tensor, neurons: int) -> tuple[Tensor, Tensor]:
    """The neurons with the largest |r . v|, in descending order, and their r . v; v [d], R [K, d]."""
    whole("neurons", neurons)
    reads = R @ v
    units = reads.abs().topk(min(neurons, len(reads))).indices
    return units, reads[units]


def allowed_words(words: Sequence[str], wrong: str, encode: Callable[[list[str]], Tensor] | None = None,
                  most: float = SIMILAR, block: Sequence[str] = ()) -> list[str]:
    """The words that neither contain the class `wrong` (or its plural) nor a blocked word, nor mean nearly the same.

    `encode` gives unit rows of sentence embeddings; words whose cosine with `wrong` is `most` or more are left out.
    """
    given_away = naming([wrong, *block])
    kept = [word for word in words if not given_away.search(word)]
    if encode is None or not kept:
        return kept
    near = encode(list(kept)) @ encode([wrong])[0]
    return [word for word, cosine in zip(kept, near.tolist()) if cosine < most]


def naming(names: Sequence[str]) -> re.Pattern[str]:
    """What finds one of the names, or its regular plural, as whole words in upper or lower case."""
    if not names or not all(name.strip() for name in names):
        raise ValueError(f"a name has letters, got {list(names)}; leave empty ones out")
    spelled = []
    for name in names:
        spelled.append(re.escape(name) + "(s|es)?")
        spelled += [re.escape(name.removesuffix(end)) + plural for end, plural in PLURALS.items() if name.endswith(end)]
    return re.compile(rf"(?<!\w)({'|'.join(spelled)})(?!\w)", re.IGNORECASE)  # a name may end in a bracket


def _check_codes(what: str, given: Tensor, neurons: int, order: Tensor, gamma: Tensor, words: int) -> None:
    if order.shape != gamma.shape or len(order) != neurons:
        raise ValueError(f"expected {what} and codes [K, m] with equal K, got {list(given.shape)}, {list(order.shape)} "
                         f"and {list(gamma.shape)}")
    if order.numel() and order.max() >= words:
        raise ValueError(f"codes are of a pool of {words} words, got word {int(order.max())}; pass the pool they were "
                         "made with")
