"""Track files and `cameras.yaml`: the only part of this room that touches the disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reid.core.atomic import atomic_file
from reid.core.errors import ReidError, did_you_mean
from reid.data.tracks import Floats, Integers, Tracks, camera_number, natural_sort_key, sorting_order, valid_boxes

FORMATS = {
    "mot": "MOTChallenge text, a file a camera: frame,id,x,y,w,h,conf,…",
    "aicity": "AI City text: camera id frame x y w h -1 -1",
    "duke": "DukeMTMC text: camera,id,frame,left,top,w,h,wx,wy",
    "parquet": "Parquet: columns camera, track, frame, x, y, w, h and perhaps confidence",
}
DUPLICATES = ("error", "first", "confident")
_GROUND_TRUTH = "mot with consider, class, visibility"
_COLUMNS = ("camera", "track", "frame", "x", "y", "w", "h")
_METADATA_KEY = b"reid"
_LARGEST = 2**53
"""Above it float64 does not tell whole numbers apart."""
_NAMED = 5
"""Rows that a warning names."""


@dataclass(frozen=True, eq=False)
class _Part:
    """What one file holds. `lines` is None where row i (from 0) is line i + 1 of the file."""

    file: Path
    layout: str  # a key of FORMATS, _GROUND_TRUTH, or "" for an empty text file
    why: str
    names: list[str]
    camera: Integers
    track: Integers
    frame: Integers
    boxes: Floats
    confidence: Floats
    lines: Integers
    ignored: int = 0  # rows of ground truth that say: do not consider

    def at(self, row: int) -> str:
        """Where a row is, for people."""
        if self.layout == "parquet":
            return f"{self.file.name} row {self.lines[row]} (from 0)"
        return f"{self.file.name} line {self.lines[row]}"


def read_tracks(path: str | Path, *, format: str = "auto", duplicates: str = "error") -> Tracks:
    """Read track files of any format in `FORMATS`, told apart by their content.

    Args:
        path: a folder, of which all `.txt` and `.parquet` files are read (hidden ones not), or one file. Text files
            without a camera column are named like their camera. An empty one is a camera without tracks.
        format: a key of `FORMATS` where the content would mislead.
        duplicates: what to do with several boxes of one id in one frame of one camera. Equal boxes are one; of
            different ones `"error"` refuses, `"first"` keeps the first in the file, `"confident"` the one of the
            highest confidence (the first of equals).

    Returns:
        The tracks; `.format`, `.format_reason` and `.warnings` say what was found. Left out and counted in `.warnings`:
        boxes without area or with NaN, repeated rows, ground-truth rows that say not to consider them (7th column 0).

    Raises:
        ReidError: nothing to read; files of different formats; a bad line, named with its number and text; ids of −1
            (detections that nobody tracked); different boxes of one id in one frame (see `duplicates`).
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        raise ReidError(f"There is no track format {format!r}.{did_you_mean(format, ['auto', *FORMATS])}")
    if duplicates not in DUPLICATES:
        raise ReidError(f"duplicates={duplicates!r} is not known.{did_you_mean(duplicates, DUPLICATES)}")
    parts = [_read_file(file, format) for file in _files(path)]
    layouts: dict[str, _Part] = {}
    for part in parts:
        if part.layout:
            layouts.setdefault(part.layout, part)
    if len(layouts) > 1:
        found = "; ".join(f"{part.file.name} is {layout} ({part.why})" for layout, part in layouts.items())
        raise ReidError(
            f"{path} holds files of different formats: {found}. Keep one format in a folder, or say which it is with "
            f"format= ({', '.join(FORMATS)})."
        )
    layout, why = next(((name, part.why) for name, part in layouts.items()), ("", ""))
    if not layout:
        layout, why = (format, "as told") if format != "auto" else ("mot", "the files are empty")
    if format != "auto":
        why = f"as told; {why}" if why and why != "as told" else "as told"
    return replace(
        _joined(path, parts, duplicates),
        format="mot" if layout == _GROUND_TRUTH else layout,
        format_reason=f"{layout}: {why}",
    )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ReidError(f"There are no tracks at {path}: give a folder of track files, or one file.")
    files = [p for p in path.iterdir() if p.suffix.lower() in (".txt", ".parquet") and p.name[0] != "." and p.is_file()]
    if not files:
        folders = sorted((p.name for p in path.iterdir() if p.is_dir()), key=natural_sort_key)
        hint = f" It has the folders {', '.join(folders[:5])}: give one of them." if folders else ""
        raise ReidError(f"{path} holds no .txt and no .parquet file, so there are no tracks to read.{hint}")
    return sorted(files, key=lambda file: natural_sort_key(file.name))


def _read_file(file: Path, format: str) -> _Part:
    try:
        with open(file, "rb") as opened:
            is_parquet = opened.read(4) == b"PAR1"
    except OSError as error:
        raise ReidError(f"Cannot read {file}: {error.strerror}.") from error
    if format == "parquet" and not is_parquet:
        raise ReidError(f"{file} is not a Parquet file. Leave the format to be found, or give the right one.")
    if is_parquet:
        if format not in ("auto", "parquet"):
            raise ReidError(f"{file} is a Parquet file, not {format}. Leave the format to be found.")
        return _read_parquet(file)
    return _read_text(file, format)


# Text ----------------------------------------------------------------------------------------------------------------


def _read_text(file: Path, format: str) -> _Part:
    values, lines, separator = _numbers(file)
    nothing, no_ids = np.zeros(0), np.zeros(0, dtype=np.int64)
    if not len(values):
        names = [] if format in ("aicity", "duke") else [file.stem]
        return _Part(file, "", "empty", names, no_ids, no_ids, no_ids, nothing.reshape(0, 4), nothing, no_ids)
    layout, why = _layout(file, values, separator, format)
    camera_first = layout in ("aicity", "duke")
    place = {"camera": 0, "id": 1, "frame": 2} if camera_first else {"frame": 0, "id": 1}
    whole = {name: _whole_numbers(file, name, values[:, at], lines) for name, at in place.items()}
    ignored = 0
    confidence = np.ones(len(values))
    if camera_first:
        boxes = values[:, 3:7]
        numbers, camera = np.unique(whole["camera"], return_inverse=True)
        names = [str(number) for number in numbers.tolist()]
    else:
        boxes = values[:, 2:6]
        camera, names = np.zeros(len(values), dtype=np.int64), [file.stem]
        if values.shape[1] > 6 and layout != _GROUND_TRUTH:
            confidence = np.where(values[:, 6] == -1, 1.0, values[:, 6])
    keep = np.ones(len(values), dtype=bool)
    if layout == _GROUND_TRUTH:
        keep = values[:, 6] != 0
        ignored = int((~keep).sum())
    return _Part(
        file,
        layout,
        why,
        names,
        camera[keep],
        whole["id"][keep],
        whole["frame"][keep],
        boxes[keep],
        confidence[keep],
        lines[keep],
        ignored,
    )


def _numbers(file: Path) -> tuple[Floats, Integers, str]:
    """The numbers of a text file `[n, columns]`, the line of each row (from 1), and what separates them."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ReidError(f"Cannot read {file}: {error.strerror}.") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4096]:
        raise ReidError(f"{file} is not plain text (UTF-16, or not text at all). Save it as UTF-8 text.")
    data = data.removeprefix(b"\xef\xbb\xbf")
    first = next((line for line in _data_lines(data)), None)
    if first is None:
        return np.zeros((0, 0)), np.zeros(0, dtype=np.int64), ""
    separator = next((mark for mark in ",;\t" if mark in first[1]), " ")
    width = len(_fields(first[1], separator))
    values = _fast_numbers(data, separator, width)
    if values is not None:
        lines = np.arange(1, len(values) + 1)
        if data.count(b"\n") + (data[-1:] != b"\n") != len(values) or b"\r" in data.replace(b"\r\n", b""):
            lines = np.array([number for number, _ in _data_lines(data)], dtype=np.int64)
        return values, lines, separator
    return (*_slow_numbers(file, data, separator, width), separator)


def _data_lines(data: bytes) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of the lines that are neither blank nor a comment."""
    for number, line in enumerate(data.splitlines(), start=1):
        text = line.strip()
        if text and text[:1] not in b"#%":
            yield number, text.decode("utf-8", "replace")


def _fields(text: str, separator: str) -> list[str]:
    if separator == " ":
        return text.split()
    fields = [field.strip() for field in text.split(separator)]
    return fields[:-1] if fields[-1] == "" else fields


def _fast_numbers(data: bytes, separator: str, width: int) -> Floats | None:
    """The numbers by Arrow's reader, or None where the text is not as plain as that needs."""
    if b"#" in data or b"%" in data:
        return None
    names = [str(i) for i in range(width)]
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(column_names=names),
            parse_options=pa_csv.ParseOptions(delimiter=separator, quote_char=False, ignore_empty_lines=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.float64()), null_values=[], strings_can_be_null=False
            ),
        )
    except pa.ArrowException:
        return None
    return np.stack([table.column(name).to_numpy() for name in names], axis=1)


def _slow_numbers(file: Path, data: bytes, separator: str, width: int) -> tuple[Floats, Integers]:
    """The same line by line: takes comments and any spaces, and names the first line that is bad."""
    rows: list[list[float]] = []
    lines: list[int] = []
    for number, text in _data_lines(data):
        fields = _fields(text, separator)
        if len(fields) != width:
            raise _bad_line(file, number, text, f"has {len(fields)} values where the first line has {width}")
        try:
            rows.append([float(field) for field in fields])
        except ValueError:
            wrong = next(field for field in fields if not _is_number(field))
            mend = " Put # before a line of headings" if not rows else ""
            raise _bad_line(file, number, text, f"holds {wrong!r}, which is not a number.{mend}") from None
        lines.append(number)
    return np.array(rows), np.array(lines, dtype=np.int64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _bad_line(file: Path, number: int, text: str, reason: str) -> ReidError:
    shown = text if len(text) <= 100 else text[:100] + "…"
    return ReidError(f"{file}, line {number}: {shown!r} {reason}. Mend or remove the line.")


def _layout(file: Path, values: Floats, separator: str, format: str) -> tuple[str, str]:
    """The layout of a text file, and why."""
    width = values.shape[1]
    need = 7 if format in ("aicity", "duke") else 6
    if width < need:
        what = FORMATS.get(format, f"{FORMATS['mot']} Or {FORMATS['aicity']}")
        raise ReidError(f"{file} has {width} columns, which are too few for tracks. {what}.")
    if format in ("aicity", "duke"):
        return format, f"{width} columns"
    by = {",": "commas", ";": "semicolons", "\t": "tabs", " ": "spaces"}[separator]
    if format == "auto" and 7 <= width <= 9:
        whole = bool((values[:, :3] == np.round(values[:, :3])).all())
        if whole and not (np.abs(values[:, 6]) <= 1).all():
            why = f"columns 1 to 3 are whole numbers and column 7 is no confidence but a height; {by}"
            return ("aicity" if separator == " " else "duke"), why
    if width == 9:
        consider, kind, visible = values[:, 6], values[:, 7], values[:, 8]
        if (
            np.isin(consider, (0, 1)).all()
            and ((kind >= 1) & (kind == np.round(kind))).all()
            and ((visible >= 0) & (visible <= 1)).all()
        ):
            return _GROUND_TRUTH, "9 columns, the 7th 0 or 1, the 8th a class from 1, the 9th in 0 to 1"
    return "mot", f"{width} columns" + ("" if width in (6, 10) else ", the 7th a confidence") + f", {by}"


def _whole_numbers(file: Path, name: str, values: Floats, lines: Integers) -> Integers:
    """A column of whole numbers of 0 or more."""
    bad = ~((values >= 0) & (values < _LARGEST) & (values == np.floor(values)))
    if bad.any():
        row = int(np.argmax(bad))
        where = f"{file}, line {lines[row]}"
        if name == "id" and values[row] == -1:
            raise ReidError(
                f"{where}: the id is -1 ({int((values == -1).sum())} such lines), which means a detection that nobody "
                "tracked. Run a tracker on each camera first, and give its output."
            )
        raise ReidError(f"{where}: the {name} is {values[row]:g}; it must be a whole number, 0 or more. Mend the line.")
    return values.astype(np.int64)


# Parquet -------------------------------------------------------------------------------------------------------------


def _read_parquet(file: Path) -> _Part:
    try:
        schema = pq.read_schema(file)
        missing = [name for name in _COLUMNS if name not in schema.names]
        if missing:
            raise ReidError(
                f"{file} has no column {', '.join(map(repr, missing))}; tracks need {', '.join(_COLUMNS)}. "
                f"It has: {', '.join(schema.names) or 'none'}."
            )
        optional = [name for name in ("confidence",) if name in schema.names]
        table = pq.read_table(file, columns=[*_COLUMNS, *optional])
    except (pa.ArrowException, OSError) as error:
        raise ReidError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}. Write it anew.") from error
    for name in table.column_names:
        if table.column(name).null_count:
            row = table.column(name).is_null().to_pylist().index(True)
            raise ReidError(f"{file}: column {name!r} has no value in row {row} (from 0). Fill it in.")
    rows = np.arange(len(table))
    names, camera = _parquet_cameras(file, table, (schema.metadata or {}).get(_METADATA_KEY))
    for name in table.column_names[1:]:
        kind = table.column(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise ReidError(f"{file}: column {name!r} must hold numbers; it holds {kind}.")
    numbers = {name: table.column(name).to_numpy().astype(np.float64) for name in table.column_names[1:]}
    whole = {}
    for name in ("track", "frame"):
        values = numbers[name]
        bad = ~((values >= 0) & (values < _LARGEST) & (values == np.floor(values)))
        if bad.any():
            row = int(np.argmax(bad))
            raise ReidError(
                f"{file}: column {name!r} is {values[row]:g} in row {row} (from 0); it must be a whole number, 0 or "
                "more. A track of -1 is a detection that nobody tracked: leave such rows out."
            )
        whole[name] = values.astype(np.int64)
    boxes = np.stack([numbers[name] for name in ("x", "y", "w", "h")], axis=1)
    confidence = numbers.get("confidence", np.ones(len(table)))
    return _Part(
        file, "parquet", "the file begins with PAR1", names, camera, whole["track"], whole["frame"], boxes, confidence,
        rows,
    )  # fmt: skip


def _parquet_cameras(file: Path, table: pa.Table, note: bytes | None) -> tuple[list[str], Integers]:
    """Camera names, those without rows too where `write_tracks` wrote the file, and each row's index into them."""
    column = table.column("camera")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise ReidError(f"{file}: column 'camera' must hold names or whole numbers; it holds {column.type}.")
    coded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    coded = pa.chunked_array([coded]) if isinstance(coded, pa.Array) else coded
    coded = coded.unify_dictionaries()
    seen = coded.chunk(0).dictionary.to_pylist() if coded.num_chunks else []
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in coded.chunks]) if len(column) else np.zeros(0)
    listed: list[str] = []
    if note is not None:
        try:
            listed = [str(name) for name in json.loads(note)["cameras"]]
        except (ValueError, KeyError, TypeError):
            listed = []
    names = listed + sorted(set(seen) - set(listed), key=natural_sort_key)
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([place[name] for name in seen], dtype=np.int64)[codes.astype(np.int64)]


# Joining -------------------------------------------------------------------------------------------------------------


def _joined(path: Path, parts: Sequence[_Part], duplicates: str) -> Tracks:
    """All parts as one, without the rows that are of no use."""
    names = sorted({name for part in parts for name in part.names}, key=natural_sort_key)
    place = {name: number for number, name in enumerate(names)}
    cameras = [np.array([place[n] for n in part.names], dtype=np.int64)[part.camera] for part in parts]
    start = np.cumsum([0, *(len(part.track) for part in parts)])

    def at(row: int) -> str:
        number = int(np.searchsorted(start, row, side="right")) - 1
        return parts[number].at(row - int(start[number]))

    def named(rows: Integers) -> str:
        more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
        return ", ".join(at(row) for row in rows[:_NAMED].tolist()) + more

    camera = np.concatenate(cameras)
    track, frame, boxes, confidence = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("track", "frame", "boxes", "confidence")
    )
    warnings = []
    ignored = sum(part.ignored for part in parts)
    if ignored:
        warnings.append(f"{ignored:,} rows of ground truth left out: their 7th column says not to consider them.")
    good = valid_boxes(boxes, confidence)
    if not good.all():
        bad = np.flatnonzero(~good)
        warnings.append(f"{len(bad):,} boxes left out, without area or not finite: {named(bad)}.")
    if len(frame) and not frame.all():
        warnings.append("Frames count from 0. They stay so; clocks take frame 1 as the first.")

    order = sorting_order(camera, track, frame)
    order = np.flatnonzero(good) if order is None else order[good[order]]
    keys = (camera[order], frame[order], track[order])
    again = np.zeros(len(order), dtype=bool)
    if len(order):
        again[1:] = (keys[0][1:] == keys[0][:-1]) & (keys[1][1:] == keys[1][:-1]) & (keys[2][1:] == keys[2][:-1])
    if again.any():
        first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))  # of its group
        differs = (boxes[order] != boxes[order[first]]).any(axis=1)
        if differs.any() and duplicates == "error":
            row = int(np.argmax(differs))
            raise ReidError(
                f"{path}: {at(int(order[row]))} and {at(int(order[first[row]]))} both give id {track[order[row]]} in "
                f"frame {frame[order[row]]} of camera {names[camera[order[row]]]!r}, with different boxes "
                f"({int(differs.sum()):,} such rows). Mend them, or read with duplicates 'first' or 'confident'."
            )
        out = order[again]
        kept = order[~again]
        if duplicates == "confident":
            best = np.lexsort((np.arange(len(order)), -confidence[order], first))
            kept = order[best[~again]]
            out = np.setdiff1d(order, kept)
        equal, other = int((again & ~differs).sum()), int(differs.sum())
        what = [f"{equal:,} that repeat a box"] * bool(equal) + [f"{other:,} with another box"] * bool(other)
        rule = "" if not other else f" (kept: the {'first' if duplicates == 'first' else 'most confident'})"
        warnings.append(
            f"{len(out):,} rows left out whose id was in that frame already, {', '.join(what)}{rule}: "
            f"{named(np.sort(out))}."
        )
        order = kept
    tracks = Tracks.from_columns(names, camera[order], track[order], frame[order], boxes[order], confidence[order])
    return replace(tracks, warnings=tuple(warnings))


# Writing -------------------------------------------------------------------------------------------------------------


def write_tracks(tracks: Tracks, folder: str | Path, format: str = "mot") -> list[Path]:
    """Write tracks to a folder in a format of `FORMATS`, each file whole or not at all; the files' paths come back.

    `mot` writes `<camera>.txt` for each camera, empty ones too; the others `tracks.txt` or `tracks.parquet`. Numbers
    are written so that reading gives the same float64. Text with a camera column knows no cameras without boxes and
    no confidence, and has a number for each camera (`write_aicity`).

    Raises:
        ReidError: unknown format; the folder holds other track files, which a reader would take for a part of these;
            a camera whose name cannot be a file's; cannot be written.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ReidError(f"There is no track format {format!r}.{did_you_mean(format, FORMATS)}")
    if format == "mot":
        for name in tracks.camera_names:
            if not name or name[0] == "." or re.search(r'[/\\:*?"<>|\0\n\r]', name):
                raise ReidError(f"The camera name {name!r} cannot be a file name. Rename it, or write Parquet.")
        files = [folder / f"{name}.txt" for name in tracks.camera_names]
    else:
        files = [folder / ("tracks.parquet" if format == "parquet" else "tracks.txt")]
    if folder.is_dir():
        others = [p.name for p in folder.iterdir() if p.suffix.lower() in (".txt", ".parquet") and p.name[0] != "."]
        others = sorted(set(others) - {file.name for file in files}, key=natural_sort_key)
        if others:
            raise ReidError(
                f"{folder} holds other track files ({', '.join(others[:5])}), which a reader would take for a part of "
                "these. Give an empty folder, or remove them."
            )
    if format == "parquet":
        _write_parquet(tracks, files[0])
    elif format == "mot":
        for camera, file in enumerate(files):
            begin, end = np.searchsorted(tracks.camera, [camera, camera + 1])
            rows = slice(int(begin), int(end))
            box = [tracks.boxes[rows, i] for i in range(4)]
            _write_text(file, ",", [tracks.frame[rows], tracks.track[rows], *box, tracks.confidence[rows]], unused=3)
    else:
        _write_camera_first(tracks, files[0], " " if format == "aicity" else ",")
    return files


def write_aicity(tracks: Tracks, file: str | Path) -> dict[str, int]:
    """Write AI City text, `camera id frame x y w h -1 -1`, whole or not at all; {camera name: its number} comes back.

    A camera's number is the last in its name (`cam01` → 1); where a name has none or two share one, cameras are
    numbered from 1 in their order.
    """
    return _write_camera_first(tracks, Path(file), " ")


def _write_camera_first(tracks: Tracks, file: Path, separator: str) -> dict[str, int]:
    numbers = [camera_number(name) for name in tracks.camera_names]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(numbers) + 1))
    camera = np.array(numbers, dtype=np.int64)[tracks.camera]
    box = [tracks.boxes[:, i] for i in range(4)]
    _write_text(file, separator, [camera, tracks.track, tracks.frame, *box], unused=2)
    return {name: int(number or 0) for name, number in zip(tracks.camera_names, numbers, strict=True)}


def _write_text(file: Path, separator: str, columns: Sequence[NDArray[np.generic]], unused: int) -> None:
    minus = np.full(len(columns[0]), -1)
    table = pa.table({str(i): values for i, values in enumerate([*columns, *[minus] * unused])})
    with atomic_file(file) as temporary:
        options = pa_csv.WriteOptions(include_header=False, delimiter=separator, quoting_style="none")
        pa_csv.write_csv(table, temporary, options)


def _write_parquet(tracks: Tracks, file: Path) -> None:
    names = pa.array(tracks.camera_names, type=pa.string())
    columns = {"camera": pa.DictionaryArray.from_arrays(pa.array(tracks.camera, type=pa.int32()), names)}
    columns["camera"] = columns["camera"].cast(pa.string())
    columns |= {"track": pa.array(tracks.track), "frame": pa.array(tracks.frame)}
    columns |= {name: pa.array(tracks.boxes[:, i]) for i, name in enumerate(("x", "y", "w", "h"))}
    columns["confidence"] = pa.array(tracks.confidence)
    note = json.dumps({"cameras": list(tracks.camera_names)})
    table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: note.encode()})
    with atomic_file(file) as temporary:
        pq.write_table(table, temporary)
