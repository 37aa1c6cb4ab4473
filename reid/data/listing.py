"""Contents of folders of images and videos, listed in one place so that nothing is passed over silently.

Links are followed. A folder that was already read is not read again, so that a link to a folder above it ends.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from reid.core.errors import DataError, first_few
from reid.data.crops import SkippedFile

IGNORED = frozenset({"thumbs.db", "desktop.ini"})
"""Files that operating systems create. They and hidden files and folders are never listed as skipped."""


class Entry(NamedTuple):
    """A file or folder in a folder; `problem` is the reason if it is neither and cannot be read."""

    path: str
    name: str
    is_folder: bool = False
    problem: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it is a file that can be opened."""
        return not self.is_folder and not self.problem


def list_entries(folder: str | Path) -> list[Entry]:
    """Return the entries of a folder, sorted by name, without hidden ones and `IGNORED`.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"Cannot read the folder {folder}: {error.strerror}. Check its name and permissions."
        ) from error
    return [_describe(entry) for entry in entries if entry.name[0] != "." and entry.name.lower() not in IGNORED]


def _describe(entry: os.DirEntry[str]) -> Entry:
    try:
        if entry.is_dir():
            return Entry(entry.path, entry.name, is_folder=True)
        if entry.is_file():
            return Entry(entry.path, entry.name)
        entry.stat()
        problem = "neither a file nor a folder"
    except OSError as error:
        link = "a link that leads nowhere: " if entry.is_symlink() else ""
        problem = f"{link}{error.strerror}"
    return Entry(entry.path, entry.name, problem=problem)


def find_files(folder: str | Path, suffixes: Sequence[str]) -> tuple[list[str], list[SkippedFile]]:
    """Return the files with one of the `suffixes` in a folder and its subfolders, and everything that was passed over.

    Hidden files and folders and `IGNORED` are in neither list. The files are absolute paths in sorted order.

    Raises:
        DataError: the folder cannot be read. (A subfolder that cannot be read is listed as passed over.)
    """
    top = os.path.abspath(folder)
    found: list[str] = []
    skipped: list[SkippedFile] = []
    read: dict[tuple[int, int], str] = {}
    folders = deque([top])
    while folders:
        place = folders.popleft()
        try:
            entries, status = list_entries(place), os.stat(place)
        except (OSError, DataError):
            if place == top:
                raise
            skipped.append(SkippedFile(place, "a folder that cannot be read"))
            continue
        first = read.setdefault((status.st_dev, status.st_ino), place)
        if first != place:
            skipped.append(SkippedFile(place, f"a link to the folder {first}, which is read once"))
            continue
        for entry in entries:
            if entry.is_folder:  # links last, so that a folder is listed under its own path
                (folders.append if os.path.islink(entry.path) else folders.appendleft)(entry.path)
            elif entry.is_file and entry.name.lower().endswith(tuple(suffixes)):
                found.append(entry.path)
            else:
                skipped.append(SkippedFile(entry.path, entry.problem or "another type of file"))
    return sorted(found, key=lambda path: path.split(os.sep)), skipped


def summarise(skipped: Sequence[SkippedFile], limit: int = 3) -> str:
    """Return the number of entries and the first names for each reason, as one line.

    Example:
        >>> summarise([SkippedFile("/data/a.txt", "not an image"), SkippedFile("/data/b.txt", "not an image")])
        '2 × not an image (a.txt, b.txt)'
    """
    names: dict[str, list[str]] = {}
    for item in skipped:
        names.setdefault(item.reason, []).append(os.path.basename(item.path))
    return "; ".join(f"{len(group)} × {reason} ({first_few(group, limit)})" for reason, group in names.items())
