"""Audit log: one JSON line for each search and erasure, each with the hash of the line before it."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from reid.core.errors import DataError
from reid.core.locks import exclusive

NAME = "audit.jsonl"
_START = "0" * 64


def append_entry(folder: Path, entry: Mapping[str, Any]) -> None:
    """Add a line to the log of a gallery: the entry with time, user and the hash chain.

    A line that a killed process left incomplete is removed, and the new line records that.

    Raises:
        DataError: the log cannot be written. The caller must then not show any result.
    """
    path = folder / NAME
    with exclusive(path, in_parent=True, wait=True):
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            with open(path, "r+b") as file:
                _write(file, entry)
        except OSError as error:
            raise DataError(
                f"Cannot write {path}: {error.strerror}. Use a writable folder, or create the gallery with --no-audit."
            ) from error


def _write(file: BinaryIO, entry: Mapping[str, Any]) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 2**20, 0))
    tail = file.read()
    complete = tail.rfind(b"\n") + 1
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "user": _user(), **entry}
    if complete < len(tail):
        line["removed_incomplete_line"] = True
    previous = tail[:complete].splitlines()
    line["previous"] = _hash_of(previous[-1]) if previous else _START
    file.seek(size - len(tail) + complete)
    file.truncate()
    file.write(_encode(line))
    file.flush()
    os.fsync(file.fileno())


def read_log(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the entries of the log, and the hash of the last line.

    Lines that were removed from the end cannot be detected from the log alone: keep the last hash elsewhere.

    Raises:
        DataError: a line is not as it was written; the number of the line is given.
    """
    path = folder / NAME
    if not path.is_file():
        return [], _START
    expected, entries = _START, []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            intact = entry["previous"] == expected and _encode(entry) == line + b"\n"
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise DataError(
                f"{path}, line {number}: the log was changed at or before this line. Restore it from a copy."
            )
        expected = _hash_of(line)
        entries.append(entry)
    return entries, expected


def _encode(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _hash_of(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"
