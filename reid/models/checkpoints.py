"""Checkpoints: tensors and plain Python only, written whole, read with `weights_only=True`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from reid.config import load_config
from reid.core.atomic import atomic_file
from reid.core.errors import ReidError
from reid.models import ReIDModel, build_model

FORMAT = "reid-checkpoint"
VERSION = 1


def save_checkpoint(path: str | Path, model: ReIDModel, **state: Any) -> None:
    """Write the model (structure, preprocessing, weights) and any further plain state, whole or not at all.

    Args:
        path: the file; what was there stays until the new one is complete.
        model: its `spec` rebuilds it; its weights are stored as CPU tensors.
        state: tensors, numbers, strings, and lists and dicts of them (the trainer's progress, settings, …).

    Raises:
        ReidError: cannot be written (the old file is unchanged), or `state` holds something that
            `torch.load(weights_only=True)` would refuse, a NumPy scalar for instance; it is named.
    """
    for key, value in state.items():
        _refuse_odd(value, key)
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
        except RuntimeError as error:  # torch's zip writer reports a full disk so
            raise OSError(str(error)) from error


def _refuse_odd(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_odd(name, f"a key of {key}")
            _refuse_odd(item, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _refuse_odd(item, f"{key}[{number}]")
    elif not (value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor)):
        raise ReidError(f"A checkpoint holds tensors and plain Python only, but {key} is a {type(value).__name__}.")


def checkpoint_in(path: str | Path) -> Path:
    """Of a run's folder its best.pt, else its last.pt; any other path as it is."""
    path = Path(path)
    inside = [path / name for name in ("best.pt", "last.pt") if (path / name).is_file()]
    return inside[0] if inside else path


def training_settings(checkpoint: str | Path) -> dict[str, Any]:
    """Return the settings of the run that wrote a checkpoint, as nested dicts; empty if they are unknown.

    They are read from `config.yaml` next to the checkpoint. The copy in the checkpoint itself has no local paths: it
    names the data sets, but not their folders.
    """
    file = Path(checkpoint).with_name("config.yaml")
    return load_config(file).as_dict() if file.is_file() else load_checkpoint(checkpoint).get("config") or {}


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU. Nothing in the file is executed.

    Raises:
        ReidError: missing, damaged, of a newer version, or not a checkpoint of this package.
    """
    path = Path(path)
    if path.is_dir():
        raise ReidError(f"{path} is a folder: name the checkpoint in it, e.g. {path / 'best.pt'}.")
    if not path.is_file():
        raise ReidError(f"There is no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails on damaged bytes in any way there is
        words = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ReidError(
            f"{path} cannot be read as a checkpoint ({words}). It is damaged, or holds more "
            "than tensors and plain Python, which is never executed here. Copy it anew, or save its weights alone."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ReidError(
            f"{path} is not a checkpoint of this package. To embed with one of torchreid, fast-reid or BoT's code: "
            f"reid model convert --model {path} --out NEW.pt. To start training from its weights: model.weights={path}."
        )
    if content["version"] > VERSION:
        raise ReidError(f"{path} has format version {content['version']}; this is {VERSION}. Update the package.")
    return content


def restore(model: ReIDModel, content: dict[str, Any], path: str | Path) -> None:
    """Put a checkpoint's weights into a model of the same structure.

    Raises:
        ReidError: the checkpoint is of another model; the first differing tensors and both structures are named.
    """
    own, given = model.state_dict(), content["model"]
    wrong = [
        f"{name}: {list(given[name].shape) if name in given else 'absent'} in the file, "
        f"{list(own[name].shape) if name in own else 'absent'} in the model"
        for name in sorted(own.keys() | given.keys())
        if name not in own or name not in given or own[name].shape != given[name].shape
    ]
    if wrong:
        there, here = content["spec"], model.spec
        differing = [f"{key}: {there.get(key)!r} → {here.get(key)!r}" for key in here if there.get(key) != here[key]]
        raise ReidError(
            f"{path} is the checkpoint of another model. Settings (file → here): {'; '.join(differing) or 'equal'}. "
            f"{len(wrong)} tensors differ, the first: {'; '.join(wrong[:3])}."
        )
    model.load_state_dict(given)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> ReIDModel:
    """The trained model of a checkpoint, in evaluation mode on `device`."""
    content = load_checkpoint(path)
    model = build_model(**content["spec"])
    restore(model, content, path)
    return model.to(device).eval()
