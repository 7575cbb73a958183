"""A tiny random sentence encoder, saved to disk."""

from __future__ import annotations

import json

from neuronym.models.weights import random_start

TEXTS = [
    "dog",
    "a big red dog on the grass",
    "a photo of the sea",
    "grass",
    "red sea of red grass and a photo of a dog",
]
WORDS = sorted({word for text in TEXTS for word in text.split()})


def save_encoder(folder, seed=0, words=WORDS, longest=9):
    """A BERT of width 12 with random weights and a tokenizer of whole words."""
    from tokenizers import models, pre_tokenizers, processors, Tokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=40,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=40,
    )
    with random_start(seed):
        BertModel(config).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    return f"st:{folder}"
