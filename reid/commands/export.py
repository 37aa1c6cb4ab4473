"""`reid export`: a trained model in, a bundle that runs without torch out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reid.core.errors import ReidError

if TYPE_CHECKING:
    from reid.data.crops import Benchmark, Crops
    from reid.data.pixels import Split
    from reid.embedding.export import Images
    from reid.embedding.runtimes import ForeignModel
    from reid.models import ReIDModel

REAL_CROPS = 32
"""Of which parity is proven."""


@click.command("export")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(["onnx", "openvino", "torchscript"]), help="The model's form.")
@click.option("--int8", is_flag=True, help="8-bit numbers, calibrated after training (openvino): faster on a CPU.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder.  [default: SOURCE-TO.bundle beside it]")
@click.option(
    "--data", metavar="LAYOUT:ROOT",
    help="Labelled crops, for the proof and for int8.  [default: the checkpoint's data.train, if it is there]",
)  # fmt: skip
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="A folder of crops to prove and calibrate on, in place of --data's.",
)
@click.option(
    "--calibrate", default=300, show_default=True, type=click.IntRange(1), help="int8: crops to calibrate on."
)
@click.option(
    "--split", default="validation", show_default=True, type=click.Choice(["validation", "test"]),
    help="int8: take mAP before and after on held-out people of --data's train part, or on its test part.",
)  # fmt: skip
@click.option(
    "--max-loss", default=0.5, show_default=True, type=click.FloatRange(0), help="int8: points of mAP that may go."
)
def command(
    source: Path,
    to: str,
    int8: bool,
    out: Path | None,
    data: str | None,
    images: Path | None,
    calibrate: int,
    split: str,
    max_loss: float,
) -> None:
    """Write a bundle: the model with its preprocessing inside, a card, and the proof that it is the same model.

    \b
    reid export runs/x/best.pt --to onnx
    reid export runs/x --to openvino --int8 --data market1501:/data/market
    reid export their.onnx --to openvino                  (with their.reid.json beside it)

    SOURCE is a checkpoint, the folder of a run, or another's ONNX or OpenVINO file. Nothing is written unless the proof
    holds: cosine to the original at least 0.9999, and for int8 a loss of mAP of at most --max-loss.
    """
    from reid.core.console import console, warn
    from reid.data.layouts import load_benchmark
    from reid.embedding.export import Quantisation, export_bundle
    from reid.embedding.model_card import model_card
    from reid.models import ReIDModel

    model, model_id, file, config = _open(source)
    if out is None:
        out = file.with_name(f"{file.stem}-{to}{'-int8' if int8 else ''}.bundle")
    text = data or _first_there(config)
    if int8 and text is None:
        raise ReidError("int8 needs labelled crops to prove that little is lost: name a data set, --data LAYOUT:ROOT.")
    benchmark = None if text is None else load_benchmark(text)
    size = model.preprocessing.size
    quantisation = None
    if int8 and benchmark is not None:
        scoring = config.get("eval", {}) if data is None else {}
        scored, rest = _split(benchmark, split, size, scoring)
        calibration = _pixels(_folder(images) if images else rest, size, calibrate)
        quantisation = Quantisation(calibration, scored, max_loss)
    real = _folder(images) if images else None if benchmark is None else benchmark.train
    crops = _pixels(real, size, REAL_CROPS) if real else None
    if crops is None:
        warn("No real crops (--data or --images): parity is proven on random bytes and made patterns.")
    manifest = export_bundle(
        model,
        out,
        to=to,
        model_id=model_id,
        crops=crops,
        quantisation=quantisation,
        about=model_card(file) if isinstance(model, ReIDModel) else "",
    )
    proof = manifest["parity"]
    for runtime, found in proof["lowest_cosine"].items():
        console.print(f"{runtime}: lowest cosine to the model {min(found.values()):.7f}")
    for runtime, reason in manifest["refused"].items():
        warn(f"{runtime} is not to be used: {reason}")
    if int8:
        told = proof["int8"]
        console.print(
            f"int8 on {told['split']}: mAP {100 * told['mAP_float']:.2f} → {100 * told['mAP_int8']:.2f}, "
            f"rank-1 {100 * told['rank1_float']:.2f} → {100 * told['rank1_int8']:.2f}"
        )
    if not manifest["check"]["detects_wrong_input"]:
        warn(
            "This model hardly sees the order of channels or the range of values, so the check crops do not tell them."
        )
    speeds = ", ".join(f"{runtime} {found['crops_per_second']:g}" for runtime, found in manifest["runtimes"].items())
    console.print(f"crops/s here, batches of 16: {speeds}")
    console.print(f"model {manifest['model']}: {out}")


def _open(source: Path) -> tuple[ReIDModel | ForeignModel, str, Path, dict[str, Any]]:
    """The model, its id, the file it came from, and the settings of its training."""
    from reid.embedding.embedder import Embedder
    from reid.embedding.runtimes import FORMATS, ForeignModel
    from reid.models.checkpoints import checkpoint_in, load_checkpoint

    if source.suffix.lower() in FORMATS:
        foreign = ForeignModel(source)
        return foreign, foreign.name, source, {}
    if (source / "bundle.json").is_file():
        raise ReidError(f"{source} is a bundle already: export the checkpoint that it was made of.")
    source = checkpoint_in(source)
    config: dict[str, Any] = load_checkpoint(source).get("config") or {}
    embedder = Embedder(source, device="cpu")
    return embedder.model, embedder.describe()["model"], source, config


def _first_there(config: dict[str, Any]) -> str | None:
    """The first data set that the checkpoint was trained on, where its folder is there."""
    for text in config.get("data", {}).get("train", []):
        root = text.partition(":")[2].partition("?")[0]
        if root and Path(root).is_dir():
            return str(text)
    return None


def _folder(images: Path) -> Crops:
    from reid.core.arrays import UNKNOWN
    from reid.data.crops import Crops
    from reid.embedding.batches import find_images

    paths = find_images(images)
    return Crops.from_columns(paths, [UNKNOWN] * len(paths))


def _pixels(crops: Crops, size: tuple[int, int], n: int) -> Images:
    """uint8 `[n, h, w, 3]` of crops drawn from seed 0, or of all where there are fewer."""
    import numpy as np

    from reid.data.images import decode

    if len(crops) == 0:
        raise ReidError("There are no crops to calibrate on: name a folder with --images.")
    rows = np.random.default_rng(0).permutation(len(crops))[:n]
    return np.stack([decode(path, size) for path in crops.paths[np.sort(rows)]])


def _split(benchmark: Benchmark, name: str, size: tuple[int, int], scoring: dict[str, Any]) -> tuple[Split, Crops]:
    """What int8 is scored on, and the train crops of other people; `scoring` are a training's settings `eval`."""
    from reid.config import DataConfig
    from reid.core.console import warn
    from reid.data.pixels import Split, open_pixels, open_test_split
    from reid.data.splits import hold_out

    for text in benchmark.warnings:
        warn(text)
    settings, left_out = DataConfig(store="files"), list[str]()
    if name == "test":
        return open_test_split(settings, benchmark, size, left_out), benchmark.train
    fraction = scoring.get("fraction", 0.1)
    train, query, gallery = hold_out(benchmark.train, fraction=fraction, cross_camera=benchmark.cross_camera)
    queries, others = open_pixels(settings, [query, gallery], size, left_out, of=benchmark.train)
    known = "" if scoring.get("split") == "validation" else " (people it may have been trained on)"
    return Split(f"{benchmark.name} validation{known}", queries, others, benchmark.cross_camera), train
