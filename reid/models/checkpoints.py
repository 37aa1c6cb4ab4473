"""Checkpoints: tensors and plain Python only, written completely or not at all, read with `weights_only=True`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, model_validator
from torch import Tensor

from reid.config import ModelConfig, Natural, NonNegative, Settings, load_config
from reid.core.atomic import atomic_file, atomic_folder, write_json, write_text
from reid.core.errors import ConfigError, ModelError
from reid.core.reading import read_json
from reid.models import ReIDModel, build_model
from reid.models.pretrained import CHECKPOINT_FORMAT, check_finite_tensors, differences, read_content

VERSION = 2
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
"""Files of a model folder (`save_folder`)."""


class Spec(ModelConfig):
    """Arguments of `build_model` in a checkpoint. `weights` cannot name a file: the tensors are in the checkpoint."""

    weights: Literal["none"] = "none"
    num_classes: Natural = 0
    seed: int = 0


class TrainingProgress(Settings):
    """Fields of `progress` that are read outside of training."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]

    epoch: Natural
    step: Natural
    seconds: NonNegative
    history: list[dict[str, Any]]


class Source(Settings):
    """Origin of a converted checkpoint."""

    file: str
    family: str
    assumed: list[str]


class Content(Settings):
    """Content of a checkpoint. Further keys belong to the trainer."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    __pydantic_extra__: dict[str, Any]

    format: str
    version: Literal[2]
    spec: Spec
    model: dict[str, Tensor]
    config: dict[str, Any] | None = None
    scores: dict[str, Any] | None = None
    progress: TrainingProgress | None = None
    source: Source | None = None

    @model_validator(mode="after")
    def _check_sizes(self) -> Content:
        """Compare sizes with the tensors before memory for them is allocated."""
        for key, name in (("num_classes", "classifier.weight"), ("embedding_dim", "embedding.weight")):
            tensor, size = self.model.get(name), getattr(self.spec, key)
            if (0 if tensor is None else tensor.shape[-2] if tensor.ndim > 1 else -1) != size:
                raise ValueError(f"spec.{key} is {size}, but the tensor {name} has another size.")
        return self


def save_checkpoint(path: str | Path, model: ReIDModel, **state: Any) -> None:
    """Write structure, preprocessing and weights of a model, and further state, completely or not at all.

    Args:
        path: the file; an existing one is kept until the new one is complete.
        model: the model; weights are stored as CPU tensors.
        state: tensors, numbers, strings, and lists and dicts of them (progress, settings, …).

    Raises:
        ModelError: `state` contains another type, e.g. a NumPy number.
        OSError: the file cannot be written (an existing one is unchanged).
    """
    for key, value in state.items():
        _check_plain(value, key)
    content = {
        "format": CHECKPOINT_FORMAT,
        "version": VERSION,
        "spec": model.spec,
        "model": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        **state,
    }
    with atomic_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's zip writer raises it when the disk is full
            raise OSError(str(error)) from error


def save_folder(path: str | Path, checkpoint: str | Path, card: str) -> None:
    """Write the model of a checkpoint as a folder for a model hub, completely or not at all.

    The folder contains `model.safetensors` (weights), `config.json` (everything else that is needed to build and
    describe the model, without the state of the optimizer) and `README.md` (the card). It loads wherever a checkpoint
    does: `Embedder(folder)`.

    Args:
        path: the folder; it must not exist, or be empty.
        checkpoint: file of `save_checkpoint`, or such a folder.
        card: Markdown.

    Raises:
        ModelError: a damaged checkpoint, or safetensors is not installed.
        DataError: the folder is not empty or cannot be written.
    """
    content = load_checkpoint(checkpoint)
    try:
        save_file = importlib.import_module("safetensors.torch").save_file
    except ImportError as error:
        raise ModelError("Writing safetensors needs: pip install 'reid-toolkit[safetensors]'") from error
    tensors = content.pop("model")
    described = {key: value for key, value in content.items() if key in Content.model_fields}
    if described.get("progress"):
        described["progress"] = {key: described["progress"][key] for key in TrainingProgress.model_fields}
    with atomic_folder(path) as folder:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
        write_json(folder / CONFIG_FILE, described)
        write_text(folder / "README.md", card)


def _check_plain(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _check_plain(name, f"a key of {key}")
            _check_plain(item, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{key}[{number}]")
    elif not (value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)):
        raise ModelError(
            f"{key} is a {type(value).__name__}, but checkpoints contain only tensors and plain Python. Convert it."
        )


def checkpoint_in(path: str | Path) -> Path:
    """Return best.pt, else last.pt, else model.safetensors, of a folder; any other path is returned unchanged."""
    path = Path(path)
    return next((file for name in ("best.pt", "last.pt", WEIGHTS_FILE) if (file := path / name).is_file()), path)


def training_settings(checkpoint: str | Path) -> dict[str, Any]:
    """Return the settings of the run that wrote a checkpoint, as nested dicts; empty if they are unknown.

    They are read from `config.yaml` next to the checkpoint. The copy in the checkpoint itself has no local paths: it
    names the data sets, but not their folders.
    """
    file = Path(checkpoint).with_name("config.yaml")
    return load_config(file).as_dict() if file.is_file() else load_checkpoint(checkpoint).get("config") or {}


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Nothing in the file is executed.

    Raises:
        ModelError: missing, damaged, of another version, not a checkpoint of this project, or a field that is missing
            or invalid; names the file and the field.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder. Pass the checkpoint in it, e.g. {path / 'best.pt'}.")
    if not path.is_file():
        raise ModelError(f"There is no checkpoint {path}.")
    content = read_content(path)
    described = path.with_name(CONFIG_FILE)
    if path.name == WEIGHTS_FILE and described.is_file():
        content = {**read_json(described, "Restore it.", ModelError), "model": content}
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise ModelError(
            f"{path} is not a checkpoint of this project. Convert one of torchreid, fast-reid or BoT's code with: "
            f"reid model convert --model {path} --out NEW.pt. To train from its weights, set model.weights={path}."
        )
    version = content.get("version")
    if type(version) is int and version != VERSION:
        fix = "Update reid-toolkit" if version > VERSION else "Train again, or use the older reid-toolkit"
        raise ModelError(f"{path} has format version {version}; this is {VERSION}. {fix}.")
    try:
        Content.from_dict(content)
    except ConfigError as error:
        raise ModelError(f"{path}: {error} The checkpoint is damaged: copy it again.") from error
    return content


def restore(model: ReIDModel, content: dict[str, Any], path: str | Path) -> None:
    """Load the weights of a checkpoint into a model of the same structure.

    Raises:
        ModelError: the checkpoint belongs to another model, with the first differences, or is not finite.
    """
    wrong = differences(model.state_dict(), content["model"])
    if wrong:
        stored = content["spec"]
        differing = [f"{k}: {stored.get(k)!r} → {v!r}" for k, v in model.spec.items() if stored.get(k) != v]
        raise ModelError(
            f"{path} is the checkpoint of another model. Settings (file → model): {'; '.join(differing) or 'equal'}. "
            f"{len(wrong)} tensors differ, the first: {'; '.join(wrong[:3])}."
        )
    check_finite_tensors(content["model"], path)
    model.load_state_dict(content["model"])


def load_model(path: str | Path, device: str | torch.device = "cpu") -> ReIDModel:
    """Return the model of a checkpoint, in evaluation mode on `device`."""
    content = load_checkpoint(path)
    model = build_model(**content["spec"])
    restore(model, content, path)
    return model.to(device).eval()
