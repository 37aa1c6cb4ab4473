"""`reid card`: a run in, its model card out."""

from __future__ import annotations

from pathlib import Path

import click

from reid.core.console import console


@click.command("card")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The Markdown file.  [default: card.md in the run folder]")
def command(run: Path, out: Path | None) -> None:
    """Write the model card of RUN, a run folder or a checkpoint: network, data, recipe, scores, use and limits.

    Scores are those that `reid test` left in a folder beside the checkpoint, of this very model. Read it before you
    pass it on: what it was made for, and on whose pictures, only you know.
    """
    from reid.core.atomic import write_text
    from reid.embedding.model_card import model_card

    text = model_card(run)
    out = out or (run if run.is_dir() else run.parent) / "card.md"
    write_text(out, text)
    console.print(f"model card: {out}")
