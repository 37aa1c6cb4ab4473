"""What the layouts share: finding the root, reading names in a folder, comparing with the official counts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reid.core.errors import ReidError
from reid.data.crops import IMAGE_SUFFIXES, Benchmark, Crops, SkippedFile

SUFFIX = r"(?:\.(?:bmp|gif|jpe?g|png|ppm|tiff?|webp))+"
"""Ends the pattern of an image's name; repeated because 38 names of Market-1501 end in `.jpg.jpg`."""

IGNORED = frozenset({"thumbs.db", "desktop.ini"})
"""Files that operating systems leave behind, besides hidden ones; never listed."""


def find_root(root: str | Path, wanted: Sequence[str], inside: Sequence[str] = ()) -> Path:
    """The folder that holds all of `wanted`: `root` itself, or one of the folders `inside` it.

    Raises:
        ReidError: no such folder; the message says what was looked for and what is there.
    """
    root = Path(root).expanduser()
    if not root.exists():
        near = next((parent for parent in root.parents if parent.exists()), Path("/"))
        raise ReidError(f"There is no folder {root}. The nearest that exists is {near}, with {what_is_in(near)}.")
    if not root.is_dir():
        raise ReidError(
            f"{root} is a file, not a folder. Give the folder that holds {', '.join(wanted)}; "
            "an archive is unpacked by `reid prepare unpack ARCHIVE FOLDER`."
        )
    for folder in (root, *(root / name for name in inside)):
        if all((folder / name).exists() for name in wanted):
            return folder.absolute()
    missing = [name for name in wanted if not (root / name).exists()]
    raise ReidError(
        f"{root} lacks {', '.join(missing)}. In it: {what_is_in(root)}. Give the folder that holds {', '.join(wanted)}."
    )


def read_lines(file: Path) -> list[str]:
    """The lines of a small text file; bytes that are not UTF-8 are kept as marks, for the error that names the line."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ReidError(f"Cannot read {file}: {error.strerror}. Check that it is a file that you may read.") from error


def what_is_in(folder: Path, limit: int = 8) -> str:
    """The names in a folder in words, at most `limit` of them."""
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(folder))
    except OSError as error:
        return f"nothing that may be read ({error.strerror})"
    if not names:
        return "nothing (the folder is empty)"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def scan(folder: Path, pattern: re.Pattern[str], form: str, odd: list[SkippedFile]) -> list[tuple[str, re.Match[str]]]:
    """The images of a folder whose base name matches `pattern` in full, sorted by name: `(path, match)`.

    The folder's own name is never matched. Whatever else is there is added to `odd` with the reason, save hidden
    files and those in `IGNORED`. `form` is the shape of a good name, for the reason. Nothing is opened or stat'ed.
    """
    found = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ReidError(
            f"Cannot read the folder {folder}: {error.strerror}. Check its name and permissions."
        ) from error
    for entry in entries:
        name = entry.name
        match = pattern.fullmatch(name)
        if match is not None and entry.is_file():
            found.append((entry.path, match))
        elif name.startswith(".") or name.lower() in IGNORED:
            continue
        elif entry.is_dir():
            odd.append(SkippedFile(entry.path, "a folder; images inside it are not read"))
        elif match is not None:
            odd.append(SkippedFile(entry.path, "a link to a file that is not there"))
        elif name.lower().endswith(IMAGE_SUFFIXES):
            odd.append(SkippedFile(entry.path, f"the name is not of the form {form}"))
        else:
            odd.append(SkippedFile(entry.path, "not an image file"))
    return found


def refuse_empty(crops: Crops, part: str, folder: Path, form: str, odd: Iterable[SkippedFile], junk: int = 0) -> None:
    """Raise a `ReidError` where a part has no crop at all, naming the folder and an example of what is there."""
    if len(crops):
        return
    here = [item for item in odd if Path(item.path).parent == folder]
    seen = [f"{junk} are junk"] if junk else []
    if here:
        seen.append(f"{len(here)} were not taken, such as {Path(here[0].path).name} ({here[0].reason})")
    raise ReidError(
        f"No {part} image in {folder}. Of what is there, {' and '.join(seen)}."
        if seen
        else f"No {part} image in {folder}: it is empty. Names must be of the form {form}."
    )


def distinct_ids(crops: Crops, *, distractors: bool) -> int:
    """The number of identities; pid 0 is none where the set has `distractors`."""
    pids = np.unique(crops.pids)
    return int((pids != 0).sum()) if distractors else len(pids)


def difference(benchmark: Benchmark) -> str:
    """Where the counts differ from `benchmark.official`, in one sentence with both numbers; empty where all agree."""
    found = counted(benchmark)
    unlike = [
        f"{name} {found[name]:,} (official {number:,})"
        for name, number in benchmark.official.items()
        if found[name] != number
    ]
    return f"the counts are not those of the official {benchmark.name}: {', '.join(unlike)}" if unlike else ""


def counted(benchmark: Benchmark) -> dict[str, int]:
    """The counts that official ones are given for, by name."""
    numbers: dict[str, int] = {}
    for part in ("train", "query", "gallery"):
        crops: Crops = getattr(benchmark, part)
        numbers[f"{part} images"] = len(crops)
        numbers[f"{part} ids"] = distinct_ids(crops, distractors=benchmark.n_distractors > 0)
    return {**numbers, "junk": benchmark.n_junk, "distractors": benchmark.n_distractors}


def with_official(benchmark: Benchmark, official: Mapping[str, int]) -> Benchmark:
    """The benchmark with the official counts, and a warning where its own differ from them."""
    benchmark = replace(benchmark, official=dict(official))
    unlike = difference(benchmark)
    return replace(benchmark, warnings=(*benchmark.warnings, unlike)) if unlike else benchmark
