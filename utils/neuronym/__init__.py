"""Names every neuron of a vision network, says how far each name can be trusted, and shows why.

    from neuronym import clip_dissect, load_clip, load_concepts, load_probe, load_target, measure, unit_cards

load_target, load_clip, load_probe, load_concepts   networks, image-text models, images and words, by name or
                                                    your own
measure                 activations Q, image embeddings I, text embeddings T
clip_dissect            labels by CLIP-Dissect
describe_and_dissect    labels by Describe-and-Dissect
second_order            words of a CLIP's neurons by the second-order lens
unit_cards              a figure of units: labels, most active images, where in them the unit fires

Nothing is imported until one of them is used.
"""

from importlib import import_module

_HOMES = {
    "load_target": "models.targets",
    "load_clip": "models.clips",
    "load_probe": "datasets.probe",
    "load_concepts": "datasets.concepts",
    "measure": "measurements",
    "clip_dissect": "dissect",
    "describe_and_dissect": "describe.naming",
    "second_order": "second_order",
    "unit_cards": "figures.cards",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'neuronym' has no attribute '{name}'; it has {', '.join(_HOMES)}")
    return getattr(import_module(f"neuronym.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
