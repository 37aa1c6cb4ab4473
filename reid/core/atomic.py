"""Whole files only: everything is written under a temporary name in the same folder, flushed, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reid.core.errors import ReidError


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it replaces `path`, on any failure it is removed.

    The temporary name keeps the suffix of `path` (some writers choose their format by it). Folders above `path`
    are made. A reader sees the old file or the new one, never a part.

    Raises:
        ReidError: the folder cannot be written or the disk is full; the old file is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ReidError(
            f"Cannot write {path}: {error.strerror or error}. The file there, if any, is unchanged. "
            "Free some space, or give a folder you may write to."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; on success it takes its place, on any failure it is removed.

    `path` must not be there, or be an empty folder. Folders above it are made.

    Raises:
        ReidError: it cannot be written, or the disk is full; nothing of it is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    except OSError as error:
        raise ReidError(
            f"Cannot write {path}: {error.strerror or error}. Nothing was left there. "
            "Free some space, or give a folder you may write to."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is refused (it is not JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
