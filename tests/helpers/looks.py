"""Can a page be read, and by everybody? Contrast and labels, and axe-core where it is installed."""

from __future__ import annotations

import os
from pathlib import Path

ROOM = Path(__file__).parents[2]
CONTRAST = """root => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
      .map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = el => {
    const colour = getComputedStyle(el).backgroundColor;
    return /, 0\\)$/.test(colour) ? behind(el.parentElement) : colour;
  };
  const found = [];
  for (const el of document.querySelectorAll(root + " *")) {
    if (![...el.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !el.checkVisibility()) continue;
    const [a, b] = [getComputedStyle(el).color, behind(el)].map(light).sort((x, y) => y - x);
    found.push([el.tagName + "." + el.className, (a + .05) / (b + .05)]);
  }
  return found;
}"""
UNLABELLED = """root => [...document.querySelectorAll(root + " :is(input, select, [role=img])")]
  .filter(el => !(el.labels && el.labels[0]?.textContent.trim()) && !el.ariaLabel).map(el => el.outerHTML)"""

# files are not read by XMLHttpRequest, and what passed is counted: told of every node it takes as long again
AXE = """root => axe.run(root, { preload: false, resultTypes: ["violations"] })
  .then(({ passes, violations }) => [passes.length, violations])"""


def faults(page, root: str) -> list:
    """Texts below WCAG's contrast of 4.5, and inputs and pictures without a label, in what `root` selects."""
    found = page.evaluate(CONTRAST, root)
    assert len(found) > 5, "hardly a text is shown"
    return [(what, ratio) for what, ratio in found if ratio < 4.5] + page.evaluate(UNLABELLED, root)


def axe() -> str:
    """axe-core's script, of the file that NEURONYM_AXE names or of a node_modules beside or above here; ""
    where there is none.
    """
    asked = os.environ.get("NEURONYM_AXE")
    above = [ROOM, *ROOM.parents, Path("/usr/local/lib"), Path("/usr/lib")]
    places = [folder / "node_modules" / "axe-core" / "axe.min.js" for folder in above]
    found = [file for file in ([Path(asked)] if asked else places) if file.is_file()]
    return found[0].read_text(encoding="utf-8") if found else ""


def axe_faults(page, script: str, root: str) -> list:
    """What axe-core finds wrong in what `root` selects."""
    if page.evaluate("!window.axe"):
        page.evaluate(f"{script}; 0")
    passed, found = page.evaluate(AXE, root)
    assert passed > 10, "hardly anything was looked at"
    return [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found]
