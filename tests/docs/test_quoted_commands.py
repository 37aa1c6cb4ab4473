"""Commands that messages and docstrings of the package quote exist, with their options and arguments."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from reid.commands import main

ROOT = Path(__file__).parents[2]
QUOTED = re.compile(r"`reid ([^`]+)`")


def texts(tree: ast.AST) -> Iterator[str]:
    """Strings as they are at run time: joined lines, and X for each inserted value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def quoted() -> list[str]:
    files = sorted((ROOT / "reid").rglob("*.py"))
    found = {
        " ".join(text.split())
        for path in files
        for string in texts(ast.parse(path.read_text("utf-8")))
        for text in QUOTED.findall(string)
    }
    return sorted(text for text in found if "|" not in text)


@pytest.mark.parametrize("text", quoted())
def test_quoted_command_exists(text: str) -> None:
    check(text)


def check(text: str) -> None:
    words = shlex.split(text)
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        child = command.get_command(click.Context(command), words[0])
        assert child is not None, f"there is no command {words[0]}"
        command, words = child, words[1:]
    context = click.Context(command)
    options = {name: option for option in command.get_params(context) for name in option.opts + option.secondary_opts}
    arguments = [p for p in command.params if isinstance(p, click.Argument) and p.metavar != "[key=value]..."]
    places = sum(p.nargs if p.nargs > 0 else 99 for p in arguments)
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            assert word in options, f"there is no option {word}"
            option = options[word]
            if words and not (isinstance(option, click.Option) and option.is_flag):
                words.pop(0)
        elif "=" not in word:
            places -= 1
            assert places >= 0, f"{word} is an argument too many"


def test_the_check_finds_faults() -> None:
    for text in ("match --nope", "nope", "data synthesize datasets/synthetic"):
        with pytest.raises(AssertionError, match=r"there is no|too many"):
            check(text)
    check("data synthesize --out datasets/synthetic seed=1")
