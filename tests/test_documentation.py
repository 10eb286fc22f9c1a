"""Pages of documentation: every link leads somewhere, and pictures are small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What its headings are called in an address."""
    titles = re.findall(r"^#+ +(.+)$", page.read_text(), re.M)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, part = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not part or part in anchors(target), link


def test_pictures_are_small_and_shown() -> None:
    pictures = [path for path in (ROOT / "docs" / "img").iterdir() if path.suffix == ".png"]
    assert sum(path.stat().st_size for path in pictures) < 1_000_000
    shown = "".join(page.read_text() for page in PAGES)
    assert not [path.name for path in pictures if path.name not in shown]
