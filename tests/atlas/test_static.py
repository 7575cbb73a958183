"""The page's own files: small, and asking nobody else. Needs no measurements, so it is seen at once."""

from __future__ import annotations

import re

from neuronym.atlas import site


def test_the_page_is_small_and_asks_nobody_else():
    page = "".join(site.read_page(name) for name in site.PAGE)
    assert len(page.encode()) < 30_000
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page) == []
    assert "fetch(" not in page and "innerHTML" not in page and 'type="module"' not in page
