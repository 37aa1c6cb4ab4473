"""Export a model as a bundle, with the proof on real crops that it is still the same model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reid.config import Config, DataConfig, ModelConfig
from reid.core.console import warn
from reid.core.errors import ConfigError, DataError, ModelError
from reid.data.crops import Crops
from reid.data.images import decode
from reid.data.layouts import load_benchmark
from reid.data.pixels import Split, load_training_data
from reid.embedding.batches import list_files
from reid.embedding.embedder import Embedder
from reid.embedding.export import Images, Quantisation, export_bundle
from reid.embedding.model_card import model_card
from reid.embedding.runtimes import FORMATS, ForeignModel
from reid.models import ReIDModel
from reid.models.checkpoints import checkpoint_in, save_folder, training_settings
from reid.models.zoo import is_published
from reid.pipelines.settings import ExportSettings

REAL_CROPS = 32
"""Number of real crops in the parity proof."""


def export(model: Path, settings: ExportSettings, out: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Export a model as a bundle. Nothing is written unless the export agrees with the model.

    Args:
        model: checkpoint, run folder, .onnx or OpenVINO .xml file.
        settings: format and quantisation.
        out: folder of the bundle. Default: next to the model's file.

    Returns:
        The folder, and its manifest (bundle.json).

    Raises:
        ReidError: the model or the data cannot be used, or the export does not agree with the model.
    """
    network, model_id, file, config = _open(model)
    if out is None:
        out = file.with_name(f"{file.stem}-{settings.to}{'-int8' if settings.int8 else ''}.bundle")
    text = settings.data or _train_data(config)
    if settings.int8 and text is None:
        raise ConfigError("int8 needs labelled crops to measure the loss of mAP. Name a data set: --data LAYOUT:ROOT.")
    benchmark = None if text is None else load_benchmark(text)
    images = None if settings.images is None else list_files(settings.images)
    size = network.preprocessing.size
    quantisation = None
    if settings.int8 and text is not None:
        split, others = _split(text, settings, size, config.get("eval", {}) if settings.data is None else {})
        crops = _pixels(others if images is None else images, size, settings.calibration_crops)
        quantisation = Quantisation(crops, split, settings.max_loss)
    real = benchmark.train if images is None and benchmark is not None else images
    if not real:
        warn("No real crops (--data or --images): parity is proven on random and synthetic patterns only.")
    manifest = export_bundle(
        network,
        out,
        to=settings.to,
        model_id=model_id,
        crops=_pixels(real, size, REAL_CROPS) if real else None,
        quantisation=quantisation,
        about=model_card(file) if isinstance(network, ReIDModel) else "",
    )
    return out, manifest


def export_folder(model: Path, out: Path | None = None) -> Path:
    """Write the model of a checkpoint or run as a folder with safetensors, config.json and card; see `save_folder`.

    Args:
        model: checkpoint or run folder.
        out: folder to write. Default: next to the checkpoint.

    Raises:
        ReidError: the checkpoint cannot be read, or the folder cannot be written.
    """
    file = checkpoint_in(model)
    out = out or file.with_name(f"{file.stem}-safetensors")
    header = (
        "---\nlibrary_name: reid-toolkit\npipeline_tag: image-feature-extraction\ntags: [person-re-identification]\n---"
    )
    save_folder(out, file, f"{header}\n\n{model_card(file)}")
    return out


def _open(path: Path) -> tuple[ReIDModel | ForeignModel, str, Path, dict[str, Any]]:
    """Return the model, its id, its file and the settings of its training."""
    if path.suffix.lower() in FORMATS:
        foreign = ForeignModel(path)
        return foreign, foreign.name, path, {}
    if (path / "bundle.json").is_file():
        raise ModelError(f"{path} is a bundle already. Export the checkpoint that it was made from.")
    if is_published(path):
        raise ModelError(f'{path} is a published model. Pass its file: --model "$(reid model path {path})"')
    path = checkpoint_in(path)
    config = training_settings(path)
    embedder = Embedder(path, device="cpu")
    return embedder.model, embedder.describe()["model"], path, config


def _train_data(config: dict[str, Any]) -> str | None:
    """Return the first data set of the training whose folder exists."""
    for text in config.get("data", {}).get("train", []):
        root = text.partition(":")[2].partition("?")[0]
        if root and Path(root).is_dir():
            return str(text)
    return None


def _pixels(crops: Crops, size: tuple[int, int], n: int) -> Images:
    """Return uint8 `[n, h, w, 3]` of crops drawn with seed 0, or of all if there are fewer."""
    if len(crops) == 0:
        raise DataError("There are no crops to calibrate on. Pass a folder with --images.")
    rows = np.random.default_rng(0).permutation(len(crops))[:n]
    return np.stack([decode(path, size) for path in crops.paths[np.sort(rows)]])


def _split(text: str, settings: ExportSettings, size: tuple[int, int], run: dict[str, Any]) -> tuple[Split, Crops]:
    """Return the split on which int8 is scored, and train crops of other people; `run` is the `eval` of the run."""
    config = Config(data=DataConfig(train=[text], store="files"), model=ModelConfig(height=size[0], width=size[1]))
    config.eval.split, config.eval.fraction = settings.split, run.get("fraction", 0.1)
    data = load_training_data(config)
    split = data.splits[0]
    if settings.split == "validation" and run.get("split") != "validation":
        split = replace(split, name=f"{split.name} (may include train identities)")
    return split, data.train.crops
