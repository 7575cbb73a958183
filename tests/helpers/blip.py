"""Tiny random BLIPs, saved to disk as Hugging Face does."""

from __future__ import annotations

import torch

from neuronym.models.weights import random_start

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
WORDS = [f"word{i}" for i in range(41)]
VISION = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.5,
}


def tokenizer():
    from tokenizers import models, pre_tokenizers, Tokenizer
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[DEC]",
    )


def image_processor(size=16):
    from transformers import BlipImageProcessor

    return BlipImageProcessor(size={"height": size, "width": size})


def save_blip(folder, seed=0, size=16, end=2.0, **generation):
    """A random BLIP with a processor, as save_pretrained leaves them; `end` is how much it likes to end."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor

    text = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 12,
        "encoder_hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": 5,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "initializer_range": 0.5,
        "max_position_embeddings": 48,
    }
    with random_start(seed):
        model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=VISION))
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[:6] = torch.tensor([-50.0, -50.0, -50.0, end, -50.0, -50.0])
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    BlipProcessor(image_processor(size), tokenizer()).save_pretrained(folder)
    return folder
