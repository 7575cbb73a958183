"""What may stand before the colon of a name, for each kind of thing that a notebook takes by name.

A parameter whose help ends in `kinds: targets` takes these; the tests hold the table against the registries
that load them, which are not imported here, so that a mistyped name is refused before anything heavy is.
"""

from __future__ import annotations

KINDS: dict[str, tuple[str, ...]] = {
    "targets": (
        "microworld",
        "efficientnet_lite0",
        "efficientnet_lite1",
        "efficientnet_lite2",
        "torchvision",
        "timm",
        "places365",
        "package.module:function",
    ),
    "probes": ("microworld", "folder", "broden", "imagenet_val", "cifar100_train", "cifar100_val"),
    "concepts": ("microworld", "english", "imagenet", "broden", "places365", "file"),
    "clips": ("microworld", "openai", "open_clip", "hf", "conse"),
    "lens_clips": ("microworld", "openai", "open_clip", "hf"),
    "captioners": ("microworld", "blip", "blip2", "clip_words", "vlm"),
    "llms": ("extractive", "openai", "hf", "gguf"),
    "generators": ("microworld", "diffusers", "retrieval"),
    "sentences": ("minilm", "mpnet", "st"),
    "encoders": ("auto", "minilm", "mpnet", "st"),
    "tasks": ("microworld", "microworld_shapes", "folder", "imagenet_val", "cifar100_val"),
    "masks": ("microworld", "gtsegs"),
    "writers": ("microworld", "openai", "hf"),
}
