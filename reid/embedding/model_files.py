"""Rules for every ONNX and OpenVINO file that is opened, of embedders and detectors; needs no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from reid.core.errors import ConfigError, ModelError, last_line
from reid.embedding.bundle import RuntimeFailure, external_data


@contextlib.contextmanager
def opening(path: Path, by_whom: str = "") -> Iterator[None]:
    """Turn any exception of a runtime that opens a model file into a `ConfigError` or `ModelError` about the file."""
    try:
        yield
    except RuntimeFailure as error:
        raise ConfigError(f"{path} cannot be opened: {error}") from error
    except ModelError:
        raise
    except Exception as error:  # each runtime has its own exceptions
        raise ModelError(f"{path} cannot be read{by_whom}: it is damaged or too new ({last_line(error)}).") from error


def weight_files(path: Path) -> list[Path]:
    """Return the other files in which a network stores its tensors, all in its folder.

    Raises:
        ModelError: one is outside of the folder.
    """
    if path.suffix.lower() == ".xml":
        return [path.with_suffix(".bin")]
    files = [path.parent / name for name in external_data(path)]
    for file in files:
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise ModelError(f"{path} stores tensors in {file}, outside its folder. Export it with all tensors inside.")
    return files
