"""Write files and folders completely or not at all: under a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reid.core.errors import DataError

_RESERVE = 64 * 2**20


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On success it replaces `path`; on any failure it is removed.

    The temporary name has the suffix of `path`, because some writers choose their format by it. Parent folders are
    created. Readers see the old file or the new one, never a part.

    Raises:
        DataError: the folder is not writable or the disk is full; the old file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with _write_errors(path, "An existing file is unchanged."):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`. On success it replaces `path`; on any failure it is removed.

    `path` must not exist, or be an empty folder. Parent folders are created.

    Raises:
        DataError: `path` is a file or not empty; the folder is not writable or the disk is full. Nothing of it remains.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path} exists and is not an empty folder. Pass a new folder.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _write_errors(path, "Nothing was written."):
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                path.rmdir()
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free_space(folder: Path, n_bytes: int, task: str, other_fix: str = "") -> None:
    """Raise an error if the disk of `folder` lacks the space for `n_bytes` and a reserve of 64 MiB.

    Raises:
        DataError: naming the task, both sizes and how to fix it (`other_fix` is one more way).
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes + _RESERVE:
        raise DataError(
            f"{task} needs {n_bytes / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB free. Free some space, use a "
            f"folder on another disk{f', {other_fix}' if other_fix else ''}."
        )


@contextlib.contextmanager
def _write_errors(path: Path, state: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Cannot write {path}: {error.strerror or error}. {state} Free some space, or use a writable folder."
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, completely or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, completely or not at all. NaN is an error (it is not JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
