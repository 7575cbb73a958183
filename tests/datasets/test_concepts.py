"""Concept sets: what a list may contain without shifting a label, and embeddings that depend on the texts
alone.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from types import SimpleNamespace

import pytest
import torch

from neuronym.activations import embed_concepts, zero_shot_head
from neuronym.datasets import concepts as module
from neuronym.datasets.concepts import CONCEPTS, english_words, LISTS, load_concepts, read_lists

# --- lists

DIRTY = [
    ("plain", b"red\nblue\n"),
    ("no end", b"red\nblue"),
    ("windows", b"red\r\nblue\r\n"),
    ("old mac", b"red\rblue\r"),
    ("mixed ends", b"red\r\n\rblue\n\n"),
    ("blank lines", b"\n\nred\n   \n\t\nblue\n\n"),
    ("duplicates", b"red\nblue\nred\n red \nblue"),
    ("spaces", b"  red\t\n\xc2\xa0blue \n"),
    ("byte-order mark", b"\xef\xbb\xbfred\nblue\n"),
    ("two marks", b"\xef\xbb\xbf\xef\xbb\xbfred\n\xef\xbb\xbfblue\n"),
    ("zero width", b"red\xe2\x80\x8b\nblue\n"),
]


@pytest.mark.parametrize("data", [data for _, data in DIRTY], ids=[name for name, _ in DIRTY])
def test_dirt_cannot_shift_labels(tmp_path, data):
    (tmp_path / "words.txt").write_bytes(data)
    assert load_concepts(f"file:{tmp_path}/words.txt") == ["red", "blue"]


def test_what_is_kept(tmp_path, monkeypatch):
    lines = [
        "Polish",
        "polish",
        "red  circle",
        "red circle",
        "caf\u00e9",
        "cafe\u0301",
        "a\u2028b\x0cc",
        "# not a comment",
        "x: y",
        "\u5c71",
    ]
    (tmp_path / "a+b words.txt").write_text("\n".join(lines), encoding="utf-8")
    want = ["Polish", "polish", "red circle", "caf\u00e9", "a b c", "# not a comment", "x: y", "\u5c71"]
    assert load_concepts(f"file:{tmp_path}/a+b words.txt") == want
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert load_concepts("file: a+b words.txt") == want


@pytest.mark.parametrize(
    "data, message",
    [
        (b"red\nblue\ncaf\xe9\ngreen", "is not UTF-8 text: byte 0xe9 in line 3; save it as UTF-8"),
        (b"\xef\xbb\xbfred\r\ncaf\xe9", "byte 0xe9 in line 2"),
        ("red\nblue".encode("utf-16"), "byte 0xff in line 1"),
        ("red\nblue".encode("utf-16-le"), "a null character in line 1"),
        (b"red\nbl\0ue", "a null character in line 2"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n\r\n", "is empty"),
    ],
)
def test_unreadable_file(tmp_path, data, message):
    (tmp_path / "words.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_concepts(f"file:{tmp_path}/words.txt")


def test_imagenet_has_1000_names():
    names = load_concepts("imagenet")
    assert len(names) == 1000 and names[0] == "tench" and {"cardigan", "Cardigan"} <= set(names)


def test_microworld():
    from neuronym.microworld import world

    assert load_concepts("microworld") == world.CONCEPTS


def test_lists_the_user_brings(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONYM_DATA", str(tmp_path))
    (tmp_path / "broden").mkdir()
    (tmp_path / "broden/label.csv").write_text(
        "number,name,category,frequency,coverage,syns\n1,wall,object,9,1.0,\n"
        '2,wine_cellar-s,scene,1,2.0,"a;b"\n3,black-c,color,3,1.0,\n'
    )
    assert load_concepts("broden") == ["wall", "wine cellar", "black"]
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("NEURONYM_CONCEPTS", str(tmp_path / "mine"))
    (tmp_path / "mine/broden_labels_clean.txt").write_text("sky\nwall\n")
    (tmp_path / "mine/categories_places365.txt").write_text(
        "/a/airfield 0\n/c/church/indoor 1\n/z/zen_garden 2\n"
    )
    assert load_concepts("broden") == ["sky", "wall"]
    assert load_concepts("places365") == ["airfield", "church, indoor", "zen garden"]


def test_published_lists(shared, monkeypatch):
    monkeypatch.setenv("NEURONYM_CONCEPTS", str(shared / "concept-lists"))
    places = load_concepts("places365")
    assert len(places) == 365 and places[8] == "apartment building, outdoor"
    assert not [place for place in places if re.search(r"\d|/|_", place)]
    assert len(load_concepts("broden")) == 1153  # of 1,197 lines 44 come again
    assert len(load_concepts(f"file:{shared}/concept-lists/20k.txt")) == 20000


ERRORS = [
    ("imagenett", KeyError, "no concept set 'imagenett'; nearest: imagenet"),
    ("", KeyError, "no concept set ''"),
    ("imagenet:5", ValueError, "imagenet takes nothing after it, got 'imagenet:5'"),
    ("english", ValueError, "english:<n> takes a number of words, as in 'english:20000', got 'english:'"),
    ("english:many", ValueError, "got 'english:many'"),
    ("english:0", ValueError, "got 'english:0'"),
    ("english:1000000", ValueError, r"english:<n> chooses among \d+ words, got 1000000"),
    ("file:", FileNotFoundError, "no file at"),
    (
        "file:{tmp}/none.txt",
        FileNotFoundError,
        "no file at .*none.txt; 'file:<path>' is absolute or starts at",
    ),
    (
        "broden",
        FileNotFoundError,
        "run ./dlbroden.sh, or get broden_labels_clean.txt from .* set NEURONYM_CONCEPTS",
    ),
    (
        "places365",
        FileNotFoundError,
        "get categories_places365.txt from .* or set NEURONYM_CONCEPTS to its folder",
    ),
]


@pytest.mark.parametrize("name, error, message", ERRORS, ids=[name for name, _, _ in ERRORS])
def test_bad_names(tmp_path, monkeypatch, name, error, message):
    monkeypatch.setenv("NEURONYM_DATA", str(tmp_path))
    for variable in ("NEURONYM_CONCEPTS", "NEURONYM_BRODEN"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(error, match=message) as caught:
        load_concepts(name.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


def test_every_set_has_a_test():
    assert set(CONCEPTS) == {"microworld", "english", "imagenet", "broden", "places365", "file"}


# --- English words


@pytest.fixture(scope="module")
def words():
    return english_words(20000)


def test_english_words_are_clean(words):
    words, dropped = words
    lists = read_lists(LISTS)
    assert len(words) == len(set(words)) == 20000 and all(re.fullmatch("[a-z]{3,}", word) for word in words)
    assert not set(words) & lists["stop"] and not set(words) & lists["names"]
    vulgar = re.compile("|".join(codecs.decode(word, "rot13").replace("*", ".*") for word in lists["vulgar"]))
    assert not [word for word in words if vulgar.fullmatch(word)]
    assert set(dropped) == {"letters", "stop", "vulgar", "inflected", "names", "initials", "foreign"}
    assert dropped["vulgar"] > 100 and dropped["names"] > 2000


def test_english_words_are_those_wanted(words):
    words = set(words[0])
    assert (
        not {
            "the",
            "dont",
            "toyota",
            "google",
            "nike",
            "obama",
            "paris",
            "germany",
            "john",
            "cpu",
            "bbc",
            "dogs",
            "women",
            "boxes",
            "cities",
            "walks",
            "workin",
            "hmm",
            "nbsp",
            "une",
            "der",
        }
        & words
    )
    assert {
        "dog",
        "red",
        "blue",
        "striped",
        "zebra",
        "piano",
        "pizza",
        "news",
        "jeans",
        "glass",
        "bus",
        "woman",
        "child",
        "city",
        "box",
        "walking",
        "building",
        "wolf",
        "guitar",
        "apple",
        "turquoise",
        "sky",
    } <= words


def test_english_lists_are_prefixes_of_each_other(words):
    assert load_concepts("english:23") == words[0][:23] and load_concepts("english:1") == words[0][:1]


def test_english_is_the_same_everywhere(words):
    """The list is part of published results: a change of rules or of wordfreq has to be a decision."""
    assert hashlib.sha256("\n".join(words[0]).encode()).hexdigest()[:16] == "4d74d5d6f1d4074e"


# --- embeddings

D = 7


def make_clip(calls=None, spoil=lambda rows: rows, key="tower 1"):
    """A CLIP-like that hashes words into unit vectors."""

    def encode_text(texts):
        if calls is not None:
            calls.append(list(texts))
        seeds = [int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) for text in texts]
        rows = torch.stack([torch.randn(D, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return spoil(torch.nn.functional.normalize(rows, dim=1))

    return SimpleNamespace(name="fake", text_key=key, d=D, encode_text=encode_text)


NAMES = [f"word {i}" for i in range(11)]


def test_embeddings_are_cached_by_what_matters():
    calls = []
    clip = make_clip(calls)
    T = embed_concepts(clip, NAMES)
    assert T.shape == (11, D) and T.dtype == torch.float32 and torch.allclose(T.norm(dim=1), torch.ones(11))
    assert torch.equal(T, clip.encode_text(NAMES))
    calls.clear()
    assert torch.equal(embed_concepts(clip, NAMES, batch_size=3), T)
    assert torch.equal(embed_concepts(clip, tuple(NAMES), device="cpu"), T)
    assert calls and max(map(len, calls)) < len(NAMES)  # a few are looked at again
    T[0] = 0  # the caller's copy: the cache stays as it is
    assert embed_concepts(clip, NAMES)[0].norm() > 0.9
    for change in [
        dict(concepts=NAMES[::-1]),
        dict(concepts=NAMES[:-1]),
        dict(template="a {}"),
        dict(clip=make_clip(calls, key="tower 2")),
    ]:
        calls.clear()
        embed_concepts(**{"clip": clip, "concepts": NAMES} | change)
        assert len(calls) == 1, change


@pytest.mark.parametrize("batch_size", [1, 4, 11, 256])
def test_batch_size_does_not_matter(batch_size):
    calls = []
    T = embed_concepts(make_clip(calls), NAMES, "a photo of a {}.", batch_size)
    assert torch.equal(T, make_clip().encode_text([f"a photo of a {name}." for name in NAMES]))
    assert [len(call) for call in calls] == [min(batch_size, 11 - i) for i in range(0, 11, batch_size)]


def test_order_moves_rows_only():
    assert torch.equal(embed_concepts(make_clip(), NAMES[::-1]), embed_concepts(make_clip(), NAMES).flip(0))


def test_braces_in_concepts_are_text():
    calls = []
    embed_concepts(make_clip(calls), ["{x}", "{0}", "a{}b"], "<{}>")
    assert calls == [["<{x}>", "<{0}>", "<a{}b>"]]


def put(rows, row, value):
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda rows: put(rows, 2, float("nan")),
            "fake gives 1 text embeddings .* not of length 1, .* for 'word 2': nan",
        ),
        (lambda rows: put(rows, 0, 0.0), "the first for 'word 0': 0"),
        (lambda rows: rows * 1.1, "gives 11 text embeddings"),
        (lambda rows: rows[:-1], r"one row per text, \[11, d\], got \[10, 7\]"),
    ],
)
def test_bad_embeddings_are_refused_and_not_cached(spoil, message):
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            embed_concepts(make_clip(spoil=spoil), NAMES)
    assert embed_concepts(make_clip(), NAMES).isfinite().all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: embed_concepts(make_clip(), []), "at least one concept"),
        (lambda: embed_concepts(make_clip(), NAMES, "a photo"), "a template contains {} once, got 'a photo'"),
        (lambda: embed_concepts(make_clip(), NAMES, "{} {}"), "got '{} {}'"),
        (lambda: zero_shot_head(make_clip(), NAMES, []), "at least one template"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_zero_shot_head_is_the_mean_of_templates():
    templates = ["a {}", "the {}", "{}!"]
    T = zero_shot_head(make_clip(), NAMES, templates)
    for m, name in enumerate(NAMES):
        rows = make_clip().encode_text([template.replace("{}", name) for template in templates]).double()
        mean = sum(rows) / 3
        torch.testing.assert_close(T[m].double(), mean / mean.norm(), rtol=1e-5, atol=1e-6)
    assert torch.allclose(
        zero_shot_head(make_clip(), NAMES, "a {}"), embed_concepts(make_clip(), NAMES, "a {}")
    )


def test_kinds_come_from_the_set_that_tells_them(tmp_path, monkeypatch):
    from neuronym.datasets.concepts import concept_kinds

    words = tmp_path / "words.txt"
    words.write_text("\ufeffred \tcolour\ncat\n  tabby  cat\tanimal \nred\tother\n\n", encoding="utf-8")
    assert load_concepts(f"file:{words}") == ["red", "cat", "tabby cat"]
    assert concept_kinds(f"file:{words}")["tabby cat"] == "animal"
    assert concept_kinds(f"file:{words}")["red"] == "colour" and "cat" not in concept_kinds(f"file:{words}")
    assert concept_kinds("microworld")["striped"] == "texture" and concept_kinds("english:9") == {}
    monkeypatch.setenv("NEURONYM_BRODEN", str(tmp_path))
    monkeypatch.setenv("NEURONYM_CONCEPTS", str(tmp_path / "none"))
    (tmp_path / "label.csv").write_text(
        "number,name,category\n1,sea-s,scene(120)\n2,red-c,color(9);part(1)\n", encoding="utf-8"
    )
    assert load_concepts("broden") == ["sea", "red"] and concept_kinds("broden") == {
        "sea": "scene",
        "red": "color",
    }
