"""The `reid` command: one file per verb or group. Each verb parses its options, calls one pipeline and prints."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from reid.core.conflicts import check_no_conflict
from reid.core.console import accept_all_characters
from reid.core.errors import ReidError
from reid.core.version import __version__

check_no_conflict(Path(__file__).parents[1])  # where the other project's reid/__init__.py replaced this one's

COMMANDS = {
    "train": "Train a model on one or several data sets.",
    "test": "Evaluate a model on data sets: CMC, mAP, re-ranking, verification.",
    "embed": "Embed crops or tracked boxes into a Parquet file.",
    "run": "Give people in videos one identity each: track, embed, match, report.",
    "live": "Follow people through live cameras: events with identities.",
    "track": "Detect and track people in videos, each camera on its own.",
    "match": "Match tracks across cameras: one identity per person.",
    "score": "Score matched tracks against the truth: IDF1, HOTA, CLEAR.",
    "calibrate": "Learn which distance means the same person.",
    "search": "Find a person in galleries by photo.",
    "serve": "Search galleries in a browser or through a REST API.",
    "adapt": "Adapt a model to your own cameras with unlabelled tracks.",
    "demo": "Run every step on synthetic data, in a few minutes.",
    "data": "Check, verify, unpack or synthesize data sets, or cut them from tracks.",
    "model": "List, download, convert, export or describe models.",
    "runs": "Compare training runs.",
    "metric": "Fit a distance on labelled embeddings.",
    "gallery": "Store tracklets of many cameras, to search them by photo.",
    "cache": "List or remove the packed crops that training keeps on disk.",
}


class _Commands(click.Group):
    """Group that imports a command's file only when it is used, so that `reid --help` is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"reid.commands.{cmd_name}").cli
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *arguments: Any, **options: Any) -> Any:
        accept_all_characters()
        return super().main(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ReidError as error:
            raise click.ClickException(str(error)) from error
        except UnicodeEncodeError as error:  # of a library that needs paths in UTF-8
            path = error.object.encode("utf-8", "backslashreplace").decode()
            raise click.ClickException(
                f"{path!r} is not UTF-8. Rename the file or folder, or set PYTHONUTF8=1."
            ) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="reid-toolkit", message="%(prog)s %(version)s")
def main() -> None:
    """Person re-identification: train, evaluate, and match people across cameras.

    A data set is LAYOUT:ROOT[?key=value&...], a model is --model FILE, a setting is key=value.

    Shell completion: eval "$(_REID_COMPLETE=bash_source reid)" (or zsh_source, fish_source).
    """
