"""Code blocks of the Markdown pages, and what the tests need to check the shell commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "datasets/README.md",
        ROOT / "benchmarks/README.md",
        *list((ROOT / "docs").rglob("*.md")),
    ]
)
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[\w{}-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)(?P=fence)\s*$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced code block: its page, its first line there, its language and its text."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks in these languages, in order."""
    text = page.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        if match["language"] in languages:
            line = text.count("\n", 0, match.start()) + 1
            code = "\n".join(row.removeprefix(match["indent"]) for row in match["code"].split("\n"))
            found.append(Block(page, line, match["language"], code))
    return found


def command_lines(code: str) -> list[list[str]]:
    """The words of each command: continued lines joined, comments and `$ ` prompts removed, `&&` split."""
    lines = code.replace("\\\n", " ").split("\n")
    found = []
    for line in lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while "&&" in words:
            cut = words.index("&&")
            found.append(words[:cut])
            words = words[cut + 1 :]
        if words:
            found.append(words)
    return found
