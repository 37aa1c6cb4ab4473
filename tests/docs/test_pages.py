"""The pages wrap at 100 columns, and their links and pictures exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT

IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_lines_have_at_most_100_columns(page: Path) -> None:
    lines = page.read_text("utf-8").split("\n")
    long = {number: len(line) for number, line in enumerate(lines, 1) if len(line) > 100 and "://" not in line}
    assert long == {}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_local_links_exist(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.S)
    targets = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text)
    local = [
        target for target in targets if "://" not in target and not target.startswith(("mailto:", "../../actions"))
    ]
    assert [target for target in local if not (page.parent / target).exists()] == []
