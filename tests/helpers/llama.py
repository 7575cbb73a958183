"""A tiny random Llama with a chat template, saved to disk."""

from __future__ import annotations

from neuronym.models.weights import random_start

WORDS = ["be", "brief", "say", "hello", "system", "user", "assistant", *(f"word{i}" for i in range(90))]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<s> {{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}<s> assistant{% endif %}"
)


def save_llama(folder, seed=0, template=TEMPLATE, longest=40, **generation):
    """A Llama of width 16 with random weights, a tokenizer of whole words and a chat template."""
    from tokenizers import models, pre_tokenizers, Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=longest,
        bos_token_id=1,
        eos_token_id=2,
    )
    with random_start(seed):
        model = LlamaForCausalLM(config)
    model.generation_config.update(**generation)
    model.save_pretrained(folder)
    return f"hf:{folder}"
