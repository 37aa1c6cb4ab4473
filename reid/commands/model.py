"""`reid model list|fetch|path|verify|convert|export|card`: networks, published models, checkpoints, bundles, cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from reid.commands.options import Command, model_option, option, out_option, settings_options
from reid.core.console import console, make_table, warn
from reid.core.errors import ConfigError, ModelError
from reid.pipelines.settings import ExportSettings

SIZE: Any = {"nargs": 2, "type": click.IntRange(1), "default": (256, 128), "show_default": True, "metavar": "H W"}


@click.group("model")
def cli() -> None:
    """List, download, convert, export or describe models."""


@cli.command("list", cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@option("Published", "--pretrained", is_flag=True, help="List published models and their terms instead of networks.")
@option("Network", "--size", **SIZE, help="Height and width of a crop.")
@option("Speed", "--measure", is_flag=True, help="Also measure the embedding speed on this machine, in crops/s.")
@option("Speed", "--device", default="auto", show_default=True, help="Device: auto, cpu, cuda, cuda:N or mps.")
@option("Speed", "--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's]")
def list_command(
    names: tuple[str, ...], pretrained: bool, size: tuple[int, int], measure: bool, device: str, threads: int
) -> None:
    """List networks with dimension, parameters, multiply-adds and size of the weights, or published models.

    \b
    reid model list
    reid model list --pretrained

    NAME is a backbone or timm:NAME; by default all backbones are listed. Counts are for one crop, up to the pooled
    feature. --measure embeds batches of 16 uint8 crops in float32 and prints the median of at least three batches.
    """
    if pretrained:
        _list_published(names)
        return
    from reid.pipelines.networks import build_networks, use_device

    rows: list[tuple[str, ...]] = []
    with use_device(device, threads) as (place, note):
        for name, model, speed in build_networks(names, size, place if measure else None):
            counts, dimension = model.count(), str(model.embedding_size)
            megabytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e6
            row = (name, dimension, f"{counts.parameters / 1e6:.2f}", f"{counts.flops / 1e9:.3f}", f"{megabytes:.1f}")
            rows.append(row if speed is None else (*row, f"{speed:.0f}"))
    headings = ("network", "D", "parameters, M", "multiply-adds, G", "MB")
    console.print(make_table((*headings, *([f"crops/s, {place}"] if measure else [])), rows))
    console.print(f"for one crop of {size[0]}×{size[1]}; weights in float32")
    if measure:
        console.print(note)


def _list_published(names: tuple[str, ...]) -> None:
    from reid.models.zoo import DEFAULT_MODEL, find_model, read_table

    rows = []
    for model in [find_model(name) for name in names or read_table()]:
        size = "" if model.n_bytes is None else f"{model.n_bytes / 1e6:.1f}"
        scores = ["" if not one else f"{one['mAP']:.1f}" for one in (model.published, model.measured)]
        rows.append((model.name, model.kind, size, *scores, model.licence, f"{model.trained_on}: {model.terms}"))
    headings = ("model", "kind", "MB", "mAP", "mAP here", "weights", "trained on: terms of that data")
    console.print(make_table(headings, rows, text=(headings[0], headings[1], *headings[-2:])))
    console.print(
        f"mAP on Market-1501 in percent, published and measured here. Default: {DEFAULT_MODEL}. Files are downloaded "
        "at the first use, or by: reid model fetch NAME"
    )


@cli.command("fetch", cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def fetch(names: tuple[str, ...]) -> None:
    """Download published models into the cache, and verify them.

    \b
    reid model fetch intel-0287
    REID_MODELS_URL=https://mirror.example reid model fetch intel-0287

    REID_MODELS_URL replaces the host of all addresses. Interrupted downloads are resumed.
    """
    from reid.models.zoo import fetch_model, find_model

    for name in names:
        find_model(name)
    for name in names:
        console.print(f"{name}: {fetch_model(name)}")


@cli.command("path", cls=Command)
@click.argument("name")
def path_command(name: str) -> None:
    """Print the file of a published model in the cache.

    \b
    reid model export --model "$(reid model path intel-0287)" --to onnx --out intel.bundle
    """
    from reid.models.zoo import find_model

    model = find_model(name)
    path = model.folder / model.files[0].name
    if not path.is_file():
        raise ModelError(f"{name} is not in the cache: there is no {path}. Run: reid model fetch {name}")
    console.print(str(path))


@cli.command("verify", cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]...")
def verify(names: tuple[str, ...]) -> None:
    """Compare the files of published models in the cache with their checksums; by default all in the cache.

    Exits with status 1 if a file is missing or was changed.
    """
    from reid.models.zoo import find_model, read_table, verify_model

    models = [find_model(name) for name in names] or [row for row in read_table().values() if row.folder.is_dir()]
    states = [(model.name, file, state) for model in models for file, state in verify_model(model).items()]
    if states:
        console.print(make_table(("model", "file", "state"), states, text=("model", "file")))
    bad = sum(state != "verified" for _, _, state in states)
    console.print(f"{len(states) - bad} of {len(states)} files verified")
    if bad:
        raise click.exceptions.Exit(1)


@cli.command("convert", cls=Command)
@model_option(help="Checkpoint of torchreid, fast-reid or BoT's code.")
@option("Model", "--size", **SIZE, help="Height and width the model was trained with.")
@option("Model", "--last-stride", type=click.IntRange(1, 2), help="Last stride of a ResNet.  [default: that project's]")
@option(
    "Model", "--pooling", type=click.Choice(["avg", "max", "gem"]), help="Pooling.  [default: the file's, else avg]"
)
@option(
    "Model", "--family", type=click.Choice(["bot", "fast-reid", "torchreid"]),
    help="Project of a ResNet without a recognisable head; plain torchvision: torchreid.  [default: recognised]",
)  # fmt: skip
@option("Model", "--before-neck", is_flag=True, help="Embed with the feature before the BNNeck instead of after it.")
@out_option("Checkpoint to write, e.g. converted.pt.", required=True)
def convert(model: Path, out: Path, **options: Any) -> None:
    """Convert a checkpoint of torchreid, fast-reid or BoT's code into a checkpoint of this package.

    \b
    reid model convert --model osnet_x1_0_market.pth --out osnet.pt
    reid test --model osnet.pt --data market1501:DATA/Market-1501-v15.09.15

    Properties that the file does not record, such as the image size, are printed as assumed: compare them with the
    original training.
    """
    from reid.models import import_model
    from reid.models.checkpoints import save_checkpoint

    if out.exists():
        raise ConfigError(f"--out {out} exists already. Pass a new file.")
    converted, found = import_model(model, **options)
    source = {"file": model.name, "family": found.family, "assumed": list(found.assumed)}
    save_checkpoint(out, converted, source=source)
    console.print(
        f"{model.name}: {converted.spec['backbone']} of {found.family}, {converted.embedding_size} dimensions"
    )
    console.print(str(converted.weights_report))
    console.print(f"assumed, not recorded in the file: {'; '.join(found.assumed)}")
    console.print(f"written: {out}")


@cli.command("export", cls=Command)
@model_option(help="Checkpoint, run folder, .onnx or OpenVINO .xml file.")
@settings_options(
    ExportSettings,
    {"Format": ["to"], "Crops": ["data", "images"], "Quantisation": ["int8", "calibration_crops", "split", "max_loss"]},
)
@out_option("Folder of the bundle.  [default: MODEL-FORMAT.bundle next to the model]")
def export_command(model: Path, out: Path | None, **options: Any) -> None:
    """Export a model as a bundle that runs without torch (network, preprocessing, card, parity proof), or as a folder
    with model.safetensors, config.json and card that a model hub accepts and that loads like a checkpoint.

    \b
    reid model export --model runs/x/best.pt --to onnx
    reid model export --model runs/x --to openvino --int8 --data market1501:/data/market
    reid model export --model other.onnx --to openvino         (with other.reid.json next to it)
    reid model export --model runs/x --to safetensors --out person-model/

    Nothing is written unless the export agrees with the model: cosine similarity at least 0.9999, and for int8 a loss
    of mAP of at most --max-loss.
    """
    settings = ExportSettings(**options)
    from reid.pipelines.export import export, export_folder

    if settings.to == "safetensors":
        if settings.int8 or settings.data or settings.images:
            raise ConfigError("--to safetensors copies the weights. Remove --int8, --data and --images.")
        written = export_folder(model, out)
        console.print(f"model folder: {written} (model.safetensors, config.json, README.md)")
        return
    folder, manifest = export(model, settings, out)
    proof = manifest["parity"]
    for runtime, found in proof["lowest_cosine"].items():
        console.print(f"{runtime}: lowest cosine to the model {min(found.values()):.7f}")
    for runtime, reason in manifest["refused"].items():
        warn(f"Do not use {runtime}: {reason}")
    if settings.int8:
        int8 = proof["int8"]
        console.print(
            f"int8 on {int8['split']}: mAP {100 * int8['mAP_float']:.2f} → {100 * int8['mAP_int8']:.2f}, "
            f"rank-1 {100 * int8['rank1_float']:.2f} → {100 * int8['rank1_int8']:.2f}"
        )
    if not manifest["check"]["detects_wrong_input"]:
        warn("The check crops cannot detect a wrong channel order or value range: this model hardly reacts to either.")
    speeds = ", ".join(f"{runtime} {found['crops_per_second']:g}" for runtime, found in manifest["runtimes"].items())
    console.print(f"crops/s here, batches of 16: {speeds}")
    console.print(f"model {manifest['model']}: {folder}")


@cli.command("card", cls=Command)
@model_option(help="Run folder or checkpoint, or the name of a published model.")
@out_option("Markdown file.  [default: card.md in the run folder; for a published model the card is printed]")
def card(model: Path, out: Path | None) -> None:
    """Write the model card of a run: network, data, recipe, scores, intended use and limits.

    Scores are read from the files that `reid test` wrote next to the checkpoint for this model. Review the card before
    publishing it: the purpose of the model and the terms of its data are yours to state.
    """
    from reid.core.atomic import write_text
    from reid.embedding.model_card import model_card
    from reid.models.zoo import find_model, is_published

    if is_published(model):
        text = find_model(str(model)).card()
    else:
        text, out = model_card(model), out or (model if model.is_dir() else model.parent) / "card.md"
    if out is None:
        console.print(text)
        return
    write_text(out, text)
    console.print(f"model card: {out}")
