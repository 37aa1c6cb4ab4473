"""The `reid` command: one file a command; each parses, calls one function, prints."""

from __future__ import annotations

import importlib

import click

from reid.core.errors import ReidError
from reid.core.version import __version__

COMMANDS = {
    "train": "Train a model on one or several data sets.",
    "test": "Score a checkpoint across camera views: CMC, mAP, re-ranking.",
    "score": "Score tracks with global ids against the truth: IDF1, HOTA, CLEAR.",
    "match": "Say which tracks of several cameras are the same person.",
    "calibrate": "Learn what distance means the same person.",
    "fit-metric": "Learn a distance on labelled features, in closed form.",
    "check": "Explain a data set before anyone trains on it.",
    "embed": "Turn crops into a Parquet file of features.",
    "models": "List the networks: parameters, multiply-adds, crops/s here.",
    "card": "Write the model card of a run.",
    "convert": "Turn a checkpoint of torchreid, fast-reid or BoT's code into one of ours.",
    "export": "Write a model as a bundle that runs without torch, with the proof that it is the same.",
    "prepare": "Verify or unpack an archive you downloaded, or make the embedded data set.",
    "compare": "Put runs side by side: scores, settings, curves.",
    "demo": "Make data, train, score, match and draw, in a few minutes.",
}


class _Commands(click.Group):
    """Imports a command's file when it is called, so that `--help` costs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"reid.commands.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ReidError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Person re-identification: train, score, and match people across cameras."""
