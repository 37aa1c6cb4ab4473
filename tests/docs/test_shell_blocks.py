"""Every command in README and docs exists, with the options, settings and configs that it names.

Those of README, quick start and guides also run: see test_shell_runs.py.
"""

from __future__ import annotations

import importlib
import re

import click
import pytest

from reid.commands import main
from reid.config import load_config
from tests.docs.blocks import PAGES, ROOT, Block, blocks, command_lines

BLOCKS = [block for page in PAGES for block in blocks(page, "bash", "console", "sh")]
OTHER_PROGRAMS = {"pip", "unzip", "apt-get", "git", "cd", "pytest", "ray"}
PLACEHOLDER = re.compile(r"…|\.\.\.|^[A-Z_]+$|^\[.*\]$")
SCRIPTS = {"train": ["train"], "test": ["test"], "embed": ["embed"], "match_tracks": ["match"]}


@pytest.fixture(autouse=True)
def any_path_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in the docs are examples; only the form of a command is checked here."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)


def parse(command: click.Command, name: str, arguments: list[str]) -> click.Context:
    """Parse the arguments as click does, down to the last subcommand, without running it."""
    context = command.make_context(name, list(arguments))
    while isinstance(context.command, click.Group):
        group = context.command
        assert isinstance(group, click.Group)
        rest = [*getattr(context, "_protected_args", []), *context.args]
        child_name, child, rest = group.resolve_command(context, rest)
        assert child is not None
        assert child_name is not None
        context = child.make_context(child_name, rest, parent=context)
    return context


def check(words: list[str]) -> None:
    while "=" in words[0] and words[0].split("=")[0].isupper():  # VARIABLE=value command
        words = words[1:]
    program, arguments = words[0].rpartition("/")[2], words[1:]
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    if "|" in arguments:
        arguments = arguments[: arguments.index("|")]
    if program == "torchrun":
        while arguments and not arguments[0].endswith(".py"):
            arguments = arguments[1:]
        program = "python"
    if program in ("python", "python3") and arguments[:1] == ["-m"]:
        module = arguments[1]
        if module.startswith("benchmarks."):
            parse(importlib.import_module(module).main, module, arguments[2:])
        else:
            assert module in ("pip", "pytest", "doctest", "http.server"), words
        return
    if program in ("python", "python3"):
        script = ROOT / arguments[0]
        if arguments[0] == "run.py":  # of an exported bundle
            return
        assert script.exists(), f"{arguments[0]} does not exist"
        if script.parent.name == "tools":
            parse(main, "reid", [*SCRIPTS[script.stem], *arguments[1:]])
        elif script.name == "prepare.py":
            parse(main, "reid", ["data", *arguments[1:]])
        return
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
        assert set(arguments) <= set(targets), words
        return
    if program == "reid":
        context = parse(main, "reid", arguments)
        if context.command.name == "train":
            check_settings(context)
        return
    assert program in OTHER_PROGRAMS | {"pre-commit"}, f"unknown program {program!r} in {words}"


def check_settings(context: click.Context) -> None:
    """Every key=value of a `reid train` line is a setting, and its value has the right type."""
    config = context.params.get("config")
    if config is not None:
        assert (ROOT / str(config)).exists(), f"{config} does not exist"
    overrides = next((value for value in context.params.values() if isinstance(value, tuple)), ())
    load_config(None if config is None else ROOT / str(config), [text for text in overrides if "=" in str(text)])


@pytest.mark.parametrize("block", BLOCKS, ids=[block.place for block in BLOCKS])
def test_every_command_of_the_block_exists(block: Block) -> None:
    for words in command_lines(block.code):
        if any(PLACEHOLDER.search(word) and word in ("…", "...") for word in words):
            words = [word for word in words if word not in ("…", "...")]
        try:
            check(words)
        except click.ClickException as error:
            pytest.fail(f"{block.place}: {' '.join(words)}\n{error.format_message()}")


def test_no_block_is_left_without_a_language() -> None:
    bare = [block.place for page in PAGES for block in blocks(page, "")]
    assert bare == []
