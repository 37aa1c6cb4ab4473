"""Write files and folders completely or not at all: under a temporary name, flushed, then renamed.

A killed process leaves its temporary file or folder behind. The next process that writes into the same folder removes
it: the temporary name contains the machine and the process, so that those of running processes are kept.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reid.core.errors import DataError
from reid.core.locks import exclusive
from reid.core.reading import read_json

_RESERVE = 64 * 2**20
_MACHINE = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
_START = secrets.token_hex(4)
"""Of this process, because another process may have had its number before."""
_NUMBERS = itertools.count()
_cleaned: set[tuple[int, Path]] = set()
"""Process, and folder from which it has removed what killed processes left."""


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On success it replaces `path`; on any failure it is removed.

    The temporary name has the suffix of `path`, because some writers choose their format by it. Parent folders are
    created. Readers see the old file or the new one, never a part.

    Raises:
        DataError: the folder is not writable or the disk is full; the old file is unchanged.
    """
    path = Path(path)
    temporary = _temporary_path(path, path.suffix)
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
    """Yield a new temporary folder next to `path`. On success it replaces `path`; on any failure it is removed.

    `path` must not exist, or be an empty folder. Parent folders are created.

    Raises:
        DataError: `path` is a file or not empty; the folder is not writable or the disk is full. Nothing of it remains.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path} exists and is not an empty folder. Pass a new folder.")
    temporary = _temporary_path(path, "")
    try:
        with exclusive(path, in_parent=True), _write_errors(path, "Nothing was written."):
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                path.rmdir()
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def result_folder(folder: str | Path, command: str, summary: str) -> Iterator[Path]:
    """Yield a hidden folder for the results of a command. On success they replace those of its last run in `folder`.

    The results of the last run are listed in `.COMMAND.json`; those that this run does not write are removed, and other
    files stay. `summary` is removed first and written last: where it exists, all results are of one run. Meanwhile no
    other process can use `folder` in this way.

    Args:
        folder: for the results.
        command: whose results these are.
        summary: name of a file that every run writes.

    Raises:
        DataError: another process writes `folder`, it is not writable, or the disk is full; old results are unchanged.
    """
    folder = Path(folder)
    with exclusive(folder):
        staging = _temporary_path(folder / command, "")
        try:
            with _write_errors(folder, "Results of an earlier run are unchanged."):
                staging.mkdir()
            yield staging
            with _write_errors(folder, "Run the command again: old and new results may be mixed."):
                _publish(staging, folder, folder / f".{command}.json", summary)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, folder: Path, record: Path, summary: str) -> None:
    names = sorted((entry.name for entry in staging.iterdir()), key=lambda name: (name == summary, name))
    earlier = read_json(record).get("results", []) if record.is_file() else []
    write_json(record, {"results": sorted({*names, *earlier})})  # a run that is killed now is cleaned up by the next
    (folder / summary).unlink(missing_ok=True)
    old = staging / ".old"
    old.mkdir()
    for name in {*names, *(Path(name).name for name in earlier)}:
        if os.path.lexists(folder / name):
            os.replace(folder / name, old / name)
    for name in names:
        os.replace(staging / name, folder / name)
    write_json(record, {"results": sorted(names)})


def _temporary_path(path: Path, suffix: str) -> Path:
    """Return a new hidden path next to `path`, after removing those of killed processes from its folder."""
    if (place := (os.getpid(), path.parent.absolute())) not in _cleaned:
        _cleaned.add(place)
        _remove_left_behind(path.parent)
    stem = path.name.removesuffix(suffix)
    return path.with_name(f".{stem}.{_MACHINE}-{os.getpid()}-{_START}-{next(_NUMBERS)}.part{suffix}")


def _remove_left_behind(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = re.fullmatch(rf"\..+\.{_MACHINE}-(\d+)-(\w+)-\d+\.part(\.[^.]*)?", entry.name)
            if match is None or _is_running(int(match[1]), match[2]):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _is_running(process: int, start: str) -> bool:
    if process == os.getpid():
        return start == _START
    if os.name == "nt":
        return True  # os.kill would end the process
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


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
    """Write `text` as UTF-8, completely or not at all. Bytes of a file name that are not text become `\\udcNN`."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_csv(path: str | Path, columns: Mapping[str, Iterable[Any]]) -> None:
    """Write columns as CSV for people, completely or not at all.

    A text that a spreadsheet would run as a formula (it begins with `=`, `+`, `-`, `@`, a tab or a carriage return, and
    is not a number) gets an apostrophe in front.
    """
    text = io.StringIO()
    rows = zip(*(map(_without_formula, column) for column in columns.values()), strict=True)
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def _without_formula(value: Any) -> Any:
    is_formula = isinstance(value, str) and re.match(r"[=@\t\r]|[+-](?!\d+(\.\d*)?$)", value)
    return f"'{value}" if is_formula else value


def with_formula(text: str) -> str:
    """Return a text of a file of `write_csv` as it was before a formula was disarmed.

    Example:
        >>> with_formula("'=A1"), with_formula("'s"), with_formula("-5")
        ('=A1', "'s", '-5')
    """
    return text[1:] if text[:1] == "'" and _without_formula(text[1:]) == text else text


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, completely or not at all. NaN is an error (it is not JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
