"""`reid convert`: another project's checkpoint in, one of ours out."""

from __future__ import annotations

from pathlib import Path

import click

from reid.core.console import console
from reid.core.errors import ReidError


@click.command("convert")
@click.argument("theirs", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The checkpoint to write, e.g. ours.pt.")
@click.option("--size", nargs=2, type=click.IntRange(1), default=(256, 128), show_default=True, metavar="H W")
@click.option("--last-stride", type=click.IntRange(1, 2), help="Of a ResNet's last stage.  [default: their code's]")
@click.option("--pooling", type=click.Choice(["avg", "max", "gem"]), help="[default: what the file says, else avg]")
@click.option("--before-neck", is_flag=True, help="Embed with the feature before the BNNeck instead of after it.")
def command(
    theirs: Path, out: Path, size: tuple[int, int], last_stride: int | None, pooling: str | None, before_neck: bool
) -> None:
    """Turn a checkpoint of torchreid, fast-reid or BoT's code into one of ours.

    \b
    reid convert osnet_x1_0_market.pth --out osnet.pt
    reid test --checkpoint osnet.pt --data market1501:DATA/Market-1501-v15.09.15

    What the file cannot say (its image size, for one) is printed as assumed: compare it with how it was trained.
    """
    from reid.models import import_model
    from reid.models.checkpoints import save_checkpoint

    if out.exists():
        raise ReidError(f"--out {out} exists already: name a new file.")
    model, found = import_model(theirs, size=size, last_stride=last_stride, pooling=pooling, before_neck=before_neck)
    save_checkpoint(out, model, source={"file": theirs.name, "family": found.family, "assumed": list(found.assumed)})
    console.print(f"{theirs.name}: {model.spec['backbone']} of {found.family}, {model.embedding_size} dimensions")
    console.print(str(model.weights_report))
    console.print(f"assumed, as the file does not say: {'; '.join(found.assumed)}")
    console.print(f"written: {out}")
