"""Words: which rule of singular and plural finds what."""

from __future__ import annotations

from neuronym.common.text import EMPTY, name_pattern, names_it, singular, STOP


def test_the_stop_words_of_the_published_agreement_are_some_of_all():
    assert EMPTY < STOP


def test_three_ways_with_plurals_differ_where_they_must():
    assert [singular(word) for word in ("boxes", "leaves", "glass", "men")] == ["box", "leaf", "glass", "man"]
    published = [singular(word, only_s=True) for word in ("boxes", "leaves", "glass", "men")]
    assert published == ["boxe", "leave", "glass", "men"]
    assert name_pattern(["wolf"]).search("two wolves") and not names_it("two wolves", "wolf")
