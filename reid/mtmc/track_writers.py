"""Write tracks as MOTChallenge or AI City text, or as Parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from reid.core.atomic import atomic_file
from reid.core.errors import DataError, check_choice
from reid.data.tracks import Tracks, last_number
from reid.mtmc.track_files import BOX_COLUMNS, FORMATS, METADATA_KEY, list_track_files


def write_tracks(tracks: Tracks, folder: str | Path, format: str = "mot") -> list[Path]:
    """Write tracks to a folder in a format of `FORMATS`, each file atomically; return the files' paths.

    `mot` writes `<camera>.txt` for each camera, also for those without boxes; the others write `tracks.txt` or
    `tracks.parquet`. Numbers are written so that reading gives the same float64. Text with a camera column has a number
    for each camera (`write_aicity`), no confidence, and no cameras without boxes.

    Raises:
        ConfigError: Unknown format.
        DataError: The folder contains other track files, which would be read as part of these; a camera name that is
            not a valid file name; or a file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> tracks = Tracks.from_columns(["door"], [0], [7], [1], [[10, 20, 30, 60]])
        >>> with TemporaryDirectory() as folder:
        ...     print(write_tracks(tracks, folder)[0].read_text().strip())
        1,7,10,20,30,60,1,-1,-1,-1
    """
    folder = Path(folder)
    check_choice("track format", format, FORMATS)
    if format == "mot":
        for name in tracks.camera_names:
            if not name or name[0] == "." or re.search(r'[/\\:*?"<>|\0\n\r]', name):
                raise DataError(f"The camera name {name!r} is not a valid file name. Rename it, or write Parquet.")
        files = [folder / f"{name}.txt" for name in tracks.camera_names]
    else:
        files = [folder / ("tracks.parquet" if format == "parquet" else "tracks.txt")]
    if folder.is_dir():
        others = [name for name in list_track_files(folder) if folder / name not in files]
        if others:
            raise DataError(
                f"{folder} contains other track files ({', '.join(others[:5])}), which would be read as part of these. "
                "Use an empty folder, or remove them."
            )
    if format == "parquet":
        note = json.dumps({"cameras": list(tracks.camera_names)})
        names = pa.array(tracks.camera_names, type=pa.string()).take(pa.array(tracks.camera))
        table = _table(tracks, names, ["camera", "track", "frame", *BOX_COLUMNS, "confidence"])
        with atomic_file(files[0]) as temporary:
            pq.write_table(table.replace_schema_metadata({METADATA_KEY: note.encode()}), temporary)
    elif format == "mot":
        table = _table(tracks, tracks.camera, ["frame", "track", *BOX_COLUMNS, "confidence"], unused=3)
        for camera, file in enumerate(files):
            begin, end = np.searchsorted(tracks.camera, [camera, camera + 1]).tolist()
            _write_text(table.slice(begin, end - begin), file, ",")
    else:
        write_aicity(tracks, files[0], " " if format == "aicity" else ",")
    return files


def write_aicity(tracks: Tracks, file: str | Path, separator: str = " ") -> dict[str, int]:
    """Write AI City text, `camera id frame x y w h -1 -1`, atomically; return {camera name: its number}.

    A camera's number is the last in its name (`cam01` → 1). If a name has none or two share one, cameras are numbered
    from 1 in their order.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> tracks = Tracks.from_columns(["cam07"], [0], [4], [1], [[10, 20, 30, 60]])
        >>> with TemporaryDirectory() as folder:
        ...     write_aicity(tracks, Path(folder) / "submission.txt")
        ...     print((Path(folder) / "submission.txt").read_text().strip())
        {'cam07': 7}
        7 4 1 10 20 30 60 -1 -1
    """
    numbers = [last_number(name) for name in tracks.camera_names]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(numbers) + 1))
    camera = np.array(numbers, dtype=np.int64)[tracks.camera]
    _write_text(_table(tracks, camera, ["camera", "track", "frame", *BOX_COLUMNS], unused=2), Path(file), separator)
    return {name: int(number or 0) for name, number in zip(tracks.camera_names, numbers, strict=True)}


def _table(tracks: Tracks, camera: Any, columns: Sequence[str], unused: int = 0) -> pa.Table:
    """The columns of a file, of which `unused` last ones contain -1; `camera` is the column of that name."""
    values = dict(zip(BOX_COLUMNS, tracks.boxes.T, strict=True))
    values |= {"camera": camera, "track": tracks.track, "frame": tracks.frame, "confidence": tracks.confidence}
    table = {name: values[name] for name in columns}
    return pa.table(table | {f"unused {i}": np.full(len(tracks), -1) for i in range(unused)})


def _write_text(table: pa.Table, file: Path, separator: str) -> None:
    options = pa_csv.WriteOptions(include_header=False, delimiter=separator, quoting_style="none")
    with atomic_file(file) as temporary:
        pa_csv.write_csv(table, temporary, options)
