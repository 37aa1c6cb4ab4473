"""Checkpoints: tensors and plain Python only, written completely or not at all, read with `weights_only=True`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from reid.config import load_config
from reid.core.atomic import atomic_file
from reid.core.errors import ModelError
from reid.models import ReIDModel, build_model
from reid.models.pretrained import differences

FORMAT = "reid-checkpoint"
VERSION = 2


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
        "format": FORMAT,
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


def _check_plain(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _check_plain(name, f"a key of {key}")
            _check_plain(item, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{key}[{number}]")
    elif not (value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor)):
        raise ModelError(
            f"{key} is a {type(value).__name__}, but checkpoints contain only tensors and plain Python. Convert it."
        )


def checkpoint_in(path: str | Path) -> Path:
    """Return best.pt, else last.pt, of a run folder; any other path is returned unchanged."""
    path = Path(path)
    return next((file for name in ("best.pt", "last.pt") if (file := path / name).is_file()), path)


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
        ModelError: missing, damaged, of another version, or not a checkpoint of this project.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder. Pass the checkpoint in it, e.g. {path / 'best.pt'}.")
    if not path.is_file():
        raise ModelError(f"There is no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises errors of many types for damaged files
        raise ModelError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}). It is damaged, or contains Python "
            "objects, which are never executed here. Copy it again, or save only its weights."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelError(
            f"{path} is not a checkpoint of this project. Convert one of torchreid, fast-reid or BoT's code with: "
            f"reid model convert --model {path} --out NEW.pt. To train from its weights, set model.weights={path}."
        )
    if content["version"] != VERSION:
        fix = "Update reid-toolkit" if content["version"] > VERSION else "Train again, or use the older reid-toolkit"
        raise ModelError(f"{path} has format version {content['version']}; this is {VERSION}. {fix}.")
    return content


def restore(model: ReIDModel, content: dict[str, Any], path: str | Path) -> None:
    """Load the weights of a checkpoint into a model of the same structure.

    Raises:
        ModelError: the checkpoint belongs to another model; the message lists the first differences.
    """
    wrong = differences(model.state_dict(), content["model"])
    if wrong:
        stored = content["spec"]
        differing = [f"{k}: {stored.get(k)!r} → {v!r}" for k, v in model.spec.items() if stored.get(k) != v]
        raise ModelError(
            f"{path} is the checkpoint of another model. Settings (file → model): {'; '.join(differing) or 'equal'}. "
            f"{len(wrong)} tensors differ, the first: {'; '.join(wrong[:3])}."
        )
    model.load_state_dict(content["model"])


def load_model(path: str | Path, device: str | torch.device = "cpu") -> ReIDModel:
    """Return the model of a checkpoint, in evaluation mode on `device`."""
    content = load_checkpoint(path)
    model = build_model(**content["spec"])
    restore(model, content, path)
    return model.to(device).eval()
