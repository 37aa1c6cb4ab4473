"""Functions that the layouts share: find the root, read file names, compare with the official counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reid.core.errors import DataError
from reid.data.crops import IMAGE_SUFFIXES, SPLITS, Benchmark, Crops, SkippedFile
from reid.data.listing import list_entries

NUMBER = r"[0-9]{1,18}"
"""Pattern of a number in an image name; more digits do not fit into 64 bits."""

SUFFIX = r"(?:\.(?:bmp|gif|jpe?g|png|ppm|tiff?|webp))+"
"""End of the pattern of an image name. It repeats because 38 names of Market-1501 end in `.jpg.jpg`."""

JUNK = -1
DISTRACTOR = 0


@dataclass(frozen=True)
class NamedImages:
    """A layout with one folder of images per split, in which the file names contain identity and camera.

    Attributes:
        name: of the layout.
        folders: folder of each split.
        inside: folders below the root that may contain the data set.
        pattern: of file names; its named groups (pid, camid, and optionally track, frame) are columns.
        form: an example name with its meaning, for messages.
        official: published counts.
    """

    name: str
    folders: Mapping[str, str]
    inside: Sequence[str]
    pattern: re.Pattern[str]
    form: str
    official: Mapping[str, int] = field(default_factory=dict)

    def read(self, root: str | Path, name: str = "") -> Benchmark:
        """Read the images below `root` as a benchmark called `name`; junk (pid -1) is dropped and counted.

        Raises:
            DataError: a folder is missing, or a split has no image.
        """
        folder = find_root(root, list(self.folders.values()), self.inside)
        name = name or self.name
        skipped: list[SkippedFile] = []
        warnings: list[str] = []
        splits: dict[str, Crops] = {}
        n_junk = 0
        for split, folder_name in self.folders.items():
            found = scan(folder / folder_name, self.pattern, self.form, skipped)
            kept = [(path, match) for path, match in found if int(match["pid"]) != JUNK]
            columns: dict[str, Any] = {
                f"{group}s": [int(match[group]) for _, match in kept] for group in self.pattern.groupindex
            }
            splits[split] = Crops.from_columns([path for path, _ in kept], **columns, source=name)
            junk = len(found) - len(kept)
            if not kept:
                raise DataError(
                    f"No {split} image in {folder / folder_name} ({junk} are junk). It contains "
                    f"{list_folder(folder / folder_name)}. Names must be of the form {self.form}."
                )
            n_junk += junk
            if junk and split != "gallery":
                warnings.append(f"{junk} junk images (pid -1) in {folder / folder_name} were dropped")
        train, query, gallery = (splits[split] for split in SPLITS)
        return Benchmark(
            name, str(folder), train, query, gallery, n_junk=n_junk, skipped=tuple(skipped), warnings=tuple(warnings)
        )


def find_root(root: str | Path, required: Sequence[str], inside: Sequence[str] = ()) -> Path:
    """Return the absolute folder that contains all of `required`: `root`, or one of the folders `inside` it.

    Raises:
        DataError: no such folder; the message lists what is missing and what the folder contains.
    """
    root = existing_folder(root, ", ".join(required))
    for folder in (root, *(root / name for name in inside)):
        if all((folder / name).exists() for name in required):
            return folder
    missing = [name for name in required if not (root / name).exists()]
    raise DataError(
        f"{root} does not contain {', '.join(missing)}. It contains {list_folder(root)}. "
        f"Pass the folder that contains {', '.join(required)}."
    )


def existing_folder(root: str | Path, content: str) -> Path:
    """Return `root` as an absolute path. `content` is what it should contain, for the error messages.

    Raises:
        DataError: there is no such folder, or it is a file.
    """
    root = Path(root).expanduser()
    if not root.exists():
        parent = next((parent for parent in root.absolute().parents if parent.exists()), Path("/"))
        raise DataError(f"There is no folder {root}. Check the path: {parent} contains {list_folder(parent)}.")
    if not root.is_dir():
        raise DataError(
            f"{root} is a file, not a folder. Pass the folder that contains {content}; "
            "unpack an archive with `reid data unpack ARCHIVE --out FOLDER`."
        )
    return root.absolute()


def read_lines(file: Path) -> list[str]:
    """Return the lines of a small text file. Bytes that are not UTF-8 are replaced by marks.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror}. Check its type and permissions.") from error


def list_folder(folder: Path, limit: int = 8) -> str:
    """Return the names in a folder as text, at most `limit` of them."""
    try:
        names = [entry.name + ("/" if entry.is_folder else "") for entry in list_entries(folder)]
    except DataError:
        return "nothing readable"
    if not names:
        return "nothing (the folder is empty)"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def scan(
    folder: Path, pattern: re.Pattern[str], form: str, skipped: list[SkippedFile]
) -> list[tuple[str, re.Match[str]]]:
    """Return the images of a folder whose file name matches `pattern` in full, sorted by name: `(path, match)`.

    Every other entry, except hidden files and `IGNORED`, is added to `skipped` with the reason. `form` describes a
    valid name. No file is opened, and the folder's path is not matched.

    Raises:
        DataError: the folder cannot be read.
    """
    found = []
    for entry in list_entries(folder):
        match = pattern.fullmatch(entry.name)
        if match is not None and entry.is_file:
            found.append((entry.path, match))
            continue
        reason = entry.problem or "not an image file"
        if entry.is_folder:
            reason = "a folder; images inside it are not read"
        elif entry.is_file and entry.name.lower().endswith(IMAGE_SUFFIXES):
            reason = f"the name is not of the form {form}"
        skipped.append(SkippedFile(entry.path, reason))
    return found


def without_distractors(benchmark: Benchmark, crops: Crops) -> Crops:
    """Return the crops whose pid is an identity: pid 0 is none if the benchmark has distractors."""
    return crops.take(crops.pids != DISTRACTOR) if benchmark.n_distractors else crops


def count(benchmark: Benchmark) -> dict[str, int]:
    """Return the counts of images and identities under the names of `Benchmark.official`."""
    numbers: dict[str, int] = {}
    for split in SPLITS:
        crops: Crops = getattr(benchmark, split)
        numbers[f"{split} images"] = len(crops)
        numbers[f"{split} ids"] = len(np.unique(without_distractors(benchmark, crops).pids))
    return {**numbers, "junk": benchmark.n_junk, "distractors": benchmark.n_distractors}


def count_difference(benchmark: Benchmark) -> str:
    """Describe where the counts differ from `benchmark.official`, with both numbers; empty if all are equal."""
    found = count(benchmark)
    different = [
        f"{name} {found[name]:,} (official {number:,})"
        for name, number in benchmark.official.items()
        if found[name] != number
    ]
    return f"the counts differ from the official {benchmark.name}: {', '.join(different)}" if different else ""


def official_counts(**splits: tuple[int, int]) -> dict[str, int]:
    """Return the official counts of splits that are given as (images, identities)."""
    kinds = ("images", "ids")
    return {f"{split} {kind}": n for split, pair in splits.items() for kind, n in zip(kinds, pair, strict=True)}


def with_official(benchmark: Benchmark, official: Mapping[str, int]) -> Benchmark:
    """Return the benchmark with the official counts, and a warning if its own counts differ."""
    benchmark = replace(benchmark, official=dict(official))
    difference = count_difference(benchmark)
    return replace(benchmark, warnings=(*benchmark.warnings, difference)) if difference else benchmark
