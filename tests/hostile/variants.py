"""Generates damaged and hostile files for every reader of `tests/hostile/readers.py`."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save as save_tensors
from scipy.io import savemat

from reid.embedding.calibration_file import save_calibration
from reid.embedding.learned_metric import LearnedMetric
from reid.embedding.table import Embeddings
from reid.evaluation import calibrate
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint
from tests.data.trees import CUHK, MARKET, write_images
from tests.hostile.model_variants import hostile_models, model_samples, surround_model

DEEP = 100_000
TRUNCATIONS, FLIPS = 5, 8


class Variant(NamedTuple):
    """A file, what reads it, and whether it must be refused; others may be read."""

    reader: str
    name: str
    path: Path
    must_be_refused: bool = True


class Sample(NamedTuple):
    """A valid file: `file` is its name; a beginning of a `strict` file is never valid."""

    reader: str
    file: str
    content: bytes
    strict: bool = True


def variants(folder: Path) -> Iterator[Variant]:
    """Write all variants below a folder."""
    rng = np.random.default_rng(0)
    number = itertools.count()

    def write(reader: str, name: str, file: str, content: bytes, must_be_refused: bool = True) -> Variant:
        path = folder / f"{next(number):04d}" / file
        path.parent.mkdir(parents=True)
        _surround(reader, path.parent)
        path.write_bytes(content)
        return Variant(reader, f"{file}: {name}", path, must_be_refused)

    for reader, file, content, strict in samples(folder / "samples"):
        yield write(reader, "valid", file, content, must_be_refused=False)
        for _ in range(TRUNCATIONS):
            size = int(rng.integers(1, len(content)))
            yield write(reader, f"the first {size} of {len(content)} bytes", file, content[:size], strict)
        for _ in range(FLIPS):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 1 + int(rng.integers(0, 4))):
                damaged[place] ^= 1 << int(rng.integers(0, 8))
            yield write(reader, "flipped bits", file, bytes(damaged), must_be_refused=False)
        for name, other in (
            ("random bytes", rng.bytes(2000)),
            ("zeros", bytes(5000)),
            ("a web page", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
        ):
            yield write(reader, name, file, other, must_be_refused=reader not in ("video",))
        yield write(reader, "empty", file, b"", must_be_refused=reader not in ("video", "tracks", *EMPTY_IS_VALID))
    for reader, name, file, content in (
        *hostile_images(),
        *hostile_archives(),
        *hostile_tables(),
        *hostile_texts(),
        *hostile_weights(),
        *hostile_models(),
    ):
        yield write(reader, name, file, content, must_be_refused=not name.startswith(HARMLESS))


EMPTY_IS_VALID = ("cameras", "training settings")
HARMLESS = (
    "a base-256 time",
    "a member of kind 7",
    "a member of kind S",
    "a width of",
    "features of lists",
    "pid of negative integers",
    "width of",
)
"""Beginnings of the names of variants that may be read: boxes without area are left out and counted, for example."""


def _surround(reader: str, folder: Path) -> None:
    """Write the files that the reader needs beside the one that is tested."""
    surround_model(reader, folder)
    if reader == "cuhk03 split":
        write_images(folder, {"images_labeled": [name for part in CUHK.values() for name in part]})
    if reader == "msmt17 list":
        for part in ("train", "val", "query", "gallery"):
            (folder / f"list_{part}.txt").write_text(f"0000/0000_000_01_0303morning_{part}_0.jpg 0\n")
        for name in ("train", "test"):
            (folder / name).mkdir()
    if reader == "table":
        write_images(folder, {".": ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]})


def samples(folder: Path) -> Iterator[Sample]:
    """Yield a valid file for every reader and format."""
    folder.mkdir()
    pixels = cv2.resize(np.random.default_rng(1).integers(0, 256, (8, 4, 3), dtype=np.uint8), (32, 64))
    for kind in ("jpeg", "png", "webp", "tiff", "gif", "bmp", "ppm"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        yield Sample("image", f"a.{kind}", buffer.getvalue())
    tree = write_images(folder / "tree", MARKET)
    for reader, kind in (
        ("unpacked archive", "zip"), ("unpacked archive", "tar"), ("verified archive", "zip"),
        ("verified archive", "tar"), ("verified archive", "tar.gz"), ("unpacked archive", "tar.xz"),
    ):  # fmt: skip
        yield Sample(reader, f"set.{kind}", pack(tree, kind))
    rows = "path,pid,camid,split\n" + "".join(
        f"{n}.jpg,{pid},{cam},train\n" for n, pid, cam in zip("abcd", "1122", "1212", strict=True)
    )
    yield Sample("table", "crops.csv", rows.encode(), strict=False)
    columns = {"path": [f"{n}.jpg" for n in "abcd"], "pid": [1, 1, 2, 2], "camid": [1, 2, 1, 2], "split": ["train"] * 4}
    yield Sample("table", "crops.parquet", parquet(columns))
    names = sorted(name for part in CUHK.values() for name in part)
    labels = [1 + sorted({name[:5] for name in names}).index(name[:5]) for name in names]
    split = {part: [[name, labels[names.index(name)], int(name[6])] for name in CUHK[part]] for part in CUHK}
    yield Sample("cuhk03 split", "splits_new_labeled.json", json.dumps(split).encode())
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    indices = {f"{part}_idx": np.array([[1 + names.index(name)] for name in CUHK[part]]) for part in CUHK}
    savemat(folder / "a.mat", {**indices, "filelist": cells, "labels": np.array(labels)[:, None]})
    yield Sample("cuhk03 split", "cuhk03_new_protocol_config_labeled.mat", (folder / "a.mat").read_bytes())
    yield Sample("msmt17 list", "list_query.txt", b"0000/0000_000_01_0303morning_0008_0.jpg 0\n" * 5, strict=False)
    mot = "".join(f"{frame},{track},{10 * track},20,30,60,1,-1,-1,-1\n" for frame in range(1, 20) for track in (1, 2))
    yield Sample("tracks", "cam01.txt", mot.encode(), strict=False)
    yield Sample("tracks", "tracks.parquet", parquet(track_columns(20)))
    yield Sample(
        "cameras", "cameras.yaml", b"cameras:\n  cam01: {size: [640, 480]}\n  cam02: {size: [640, 480]}\n", strict=False
    )
    constraints = {"format": 1, "merge": [[["cam01", 1], ["cam02", 2]]], "split": [[["cam01", 3], ["cam02", 4]]]}
    yield Sample("constraints", "constraints.json", json.dumps(constraints).encode())
    yield Sample(
        "training settings", "config.yaml", b"seed: 1\nmodel:\n  backbone: light14\n  height: 64\n", strict=False
    )
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 8)).astype(np.float32)
    save_calibration(
        calibrate(features, np.repeat(np.arange(15), 4), np.tile([0, 1], 30), fmr=0.1), folder / "calibration.json"
    )
    yield Sample("calibration", "calibration.json", (folder / "calibration.json").read_bytes())
    LearnedMetric(np.eye(2, 3, dtype=np.float32), {"method": "xqda", "model": "m"}).save(folder / "metric.npz")
    yield Sample("learned metric", "metric.npz", (folder / "metric.npz").read_bytes())
    Embeddings(features, pids=np.arange(60), camids=np.arange(60) % 2).save(folder / "a.parquet")
    yield Sample("embeddings", "a.parquet", (folder / "a.parquet").read_bytes())
    model = build_model("light14", height=64, width=32, num_classes=3)
    tensors = {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(3)}
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    yield Sample("weights", "a.pth", buffer.getvalue())
    yield Sample("weights", "a.safetensors", save_tensors(tensors))
    save_checkpoint(folder / "a.pt", model)
    yield Sample("checkpoint", "a.pt", (folder / "a.pt").read_bytes())
    writer = cv2.VideoWriter(str(folder / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(10):
        writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    for reader, file, content in model_samples():
        yield Sample(reader, file, content)
    yield Sample("video", "a.avi", (folder / "a.avi").read_bytes(), strict=False)


def pack(tree: Path, kind: str) -> bytes:
    buffer = io.BytesIO()
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, path.relative_to(tree))
    else:
        with tarfile.open(fileobj=buffer, mode={"tar": "w:", "tar.gz": "w:gz", "tar.xz": "w:xz"}[kind]) as archive:
            for path in files:
                archive.add(path, str(path.relative_to(tree)))
    return buffer.getvalue().rstrip(b"\0") + bytes(1024) if kind == "tar" else buffer.getvalue()


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def track_columns(n: int, **changed: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {"camera": ["cam01"] * n, "frame": list(range(1, n + 1)), "track": [1] * n}
    return {**columns, **{name: [10.0] * n for name in ("x", "y", "w", "h")}, **changed}


def png_header(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data or zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, width, height, 1, 24) + bytes(24)


def hostile_images() -> Iterator[tuple[str, str, str, bytes]]:
    """Headers that lie about the size, decompression bombs, and headers that take long to parse."""
    big = 2**31 - 1
    jpeg, gif, tiff = io.BytesIO(), io.BytesIO(), io.BytesIO()
    small = Image.new("RGB", (8, 8), (9, 99, 199))
    small.save(jpeg, "jpeg")
    small.save(gif, "gif")
    small.save(tiff, "tiff")
    sof = jpeg.getvalue().index(b"\xff\xc0")
    lying_jpeg = jpeg.getvalue()[: sof + 5] + b"\xff\xff\xff\xff" + jpeg.getvalue()[sof + 9 :]
    ihdr, columns = png_header(8, 8), struct.pack("<HHI", 256, 4, 1)
    cases = {
        "a.png": [
            ("a header of 2³¹ × 2³¹ pixels", png_header(big, big)),
            ("a header of 60,000 × 60,000 pixels", png_header(60_000, 60_000)),
            ("a bomb of 6,000 × 6,000 pixels", png_header(9_000, 9_000, zlib.compress(bytes(9_000 * 27_001), 9))),
            ("a header of no pixels", png_header(0, 0)),
            ("too few rows", png_header(2_000, 2_000)),
            ("16 MiB of empty chunks", ihdr[:33] + bytes(2**24)),
            ("a chunk of 4 GiB", ihdr[:33] + b"\xff\xff\xff\xffIDAT" + b"IEND"),
        ],
        "a.jpg": [
            ("a header of 65,535 × 65,535 pixels", lying_jpeg),
            ("16 MiB of fill bytes", b"\xff\xd8" + b"\xff" * 2**24 + b"\xff\xd9"),
            ("16 MiB of padding", b"\xff\xd8\xff" + bytes(2**24) + b"\xff\xd9"),
            ("only its marks", b"\xff\xd8\xff\xd9"),
        ],
        "a.gif": [("a screen of 65,535 × 65,535 pixels", gif.getvalue()[:6] + b"\xff" * 4 + gif.getvalue()[10:])],
        "a.bmp": [
            ("a header of 2³¹ × 2³¹ pixels", bmp_header(big, big)),
            ("negative sizes", bmp_header(-5, -5)),
        ],
        "a.ppm": [
            ("a header of 10⁹ × 10⁹ pixels", b"P6 1000000000 1000000000 255\n"),
            ("16 MiB of comment", b"P6 #" + b"c" * 2**24 + b"\n8 8 255\n"),
            ("16 MiB of blanks", b"P6 " + b" " * 2**24 + b"8 8 255\n"),
            ("numbers as text", b"P3 2000 2000 255\n" + b"1 2 3 " * 4_000_000),
            ("a negative size", b"P6 -8 -8 255\n"),
            ("a size of 5,000 digits", b"P6 " + b"9" * 5000 + b" 8 255\n"),
            ("a maximum of 0", b"P6 8 8 0\n" + bytes(192)),
        ],
        "a.tif": [
            ("a directory beyond the end", b"II*\0" + struct.pack("<I", 2**31)),
            ("a directory of 65,535 tags", b"II*\0" + struct.pack("<IH", 8, 65_535)),
            ("a directory that points to itself", b"II*\0" + struct.pack("<IHI", 8, 0, 8)),
            ("2³² columns", tiff.getvalue().replace(columns + struct.pack("<I", 8), columns + b"\xff" * 4)),
        ],
        "a.webp": [
            ("a canvas of 2²⁴ × 2²⁴ pixels", b"RIFF\x1e\0\0\0WEBPVP8X\x0a" + bytes(7) + b"\xff" * 6),
            ("a lying length", b"RIFF" + b"\xff" * 4 + b"WEBPVP8 " + b"\xff" * 4),
        ],
    }  # fmt: skip
    for file, contents in cases.items():
        for name, content in contents:
            yield "image", name, file, content


def tar_header(
    name: str = "a.jpg", size: bytes = b"00000000005\0", kind: bytes = b"0", mtime: bytes = b"0" * 11 + b"\0"
) -> bytes:
    """One header of a tar with a correct checksum."""
    head = bytearray(512)
    for start, value in (
        (0, name.encode()),
        (100, b"0000644\0"),
        (124, size),
        (136, mtime),
        (156, kind),
        (257, b"ustar\000"),
    ):
        head[start : start + len(value)] = value
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def hostile_archives() -> Iterator[tuple[str, str, str, bytes]]:
    """Slips, links, devices, bombs, sizes that are no sizes, and names that occur twice."""
    end, bomb_zip = bytes(1024), io.BytesIO()
    with zipfile.ZipFile(bomb_zip, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(300_000_000))
    for reader in ("unpacked archive", "verified archive"):
        for name in ("../a.jpg", "/etc/a.jpg", "C:\\a.jpg", "a/../../b.jpg", "..\\a.jpg", "x/\\..\\..\\b.jpg"):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(name, b"12345")
            yield reader, f"the name {name}", "a.zip", buffer.getvalue()
            yield reader, f"the name {name}", "a.tar", tar_header(name) + b"12345".ljust(512, b"\0") + end
        for kind in "123467SxgLKV":
            yield (
                reader,
                f"a member of kind {kind}",
                "a.tar",
                tar_header(kind=kind.encode()) + b"12345".ljust(512, b"\0") + end,
            )
        for name, size in (
            ("a base-256 size of 2⁸⁰", b"\x80" + (2**80).to_bytes(11, "big")),
            ("a negative base-256 size", b"\xff" * 12),
            ("a size of letters", b"abcdefghijk\0"),
            ("a size of 8 GiB", b"77777777777\0"),
        ):
            yield reader, name, "a.tar", tar_header(size=size) + b"12345".ljust(512, b"\0") + end
        yield reader, "a base-256 time", "a.tar", tar_header(mtime=b"\x80" + b"\xff" * 11) + end
        for mode, name in ((0o120777, "a link"), (0o060666, "a device"), (0o010666, "a pipe")):
            buffer, info = io.BytesIO(), zipfile.ZipInfo("a.jpg")
            info.external_attr = mode << 16
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(info, "/etc/passwd")
            yield reader, name, "a.zip", buffer.getvalue()
        yield reader, "a bomb of 300 MB", "a.zip", bomb_zip.getvalue()
        lying = bomb_zip.getvalue().replace((300_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
        yield reader, "a bomb that claims 100 bytes", "a.zip", lying
    bomb = tar_header(size=b"%011o\0" % (8**11 - 512))
    many = tar_header(size=b"00000000000\0") * 150_000
    long_name = tar_header(name="x", kind=b"x", size=b"%011o\0" % 2**30) + bytes(2**24)
    for kind, compress in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        yield "verified archive", "a member of 8 GiB", f"a.tar.{kind}", compress(bomb + bytes(2**24))
        yield (
            "verified archive",
            "zeros after the end",
            f"b.tar.{kind}",
            compress(tar_header(size=b"0" * 11 + b"\0") + bytes(2**27)),
        )
    yield "verified archive", "150,000 members", "many.tar.bz2", bz2.compress(many)
    yield "verified archive", "a header of 1 GiB", "long.tar.bz2", bz2.compress(long_name)


def hostile_tables() -> Iterator[tuple[str, str, str, bytes]]:
    """Parquet of wrong types and sizes, and CSV that no program wrote."""
    paths = ["a.jpg", "b.jpg", "c.jpg"]
    wrong: dict[str, Any] = {
        "lists": [[1], [2], [3]],
        "dictionaries": [{"a": 1}] * 3,
        "bytes": [b"\xff\xfe"] * 3,
        "times": pa.array([0, 1, 2], pa.timestamp("ns")),
        "infinite numbers": [1.0, float("inf"), 1.0],
        "nulls": pa.array([None] * 3, pa.null()),
        "integers beyond 64 bits": pa.array([2**63, 2**64 - 1, 5], pa.uint64()),
        "negative integers": [-5, 1, 2],
    }
    for name, values in wrong.items():
        yield "table", f"pid of {name}", "crops.parquet", parquet({"path": paths, "pid": values})
        features = [[1.0, 2.0]] * 3
        yield "embeddings", f"pid of {name}", "a.parquet", parquet({"features": features, "pid": values})
        yield "embeddings", f"features of {name}", "a.parquet", parquet({"features": values, "pid": [1, 2, 3]})
        if name != "infinite numbers":
            yield "tracks", f"track of {name}", "a.parquet", parquet(track_columns(3, track=values))
        yield "tracks", f"frame of {name}", "a.parquet", parquet(track_columns(3, frame=values))
        yield (
            "tracks",
            f"width of {name}",
            "a.parquet",
            parquet(track_columns(3, w=values if name != "nulls" else [float("nan"), 1e308, -1.0])),
        )
    many = pa.array(np.zeros(50_000_000, np.int8))
    yield (
        "table",
        "50,000,000 equal rows",
        "crops.parquet",
        parquet({"path": pa.DictionaryArray.from_arrays(many, ["a.jpg"]), "pid": many}),
    )
    for name, text in {
        "no columns": b"\n\n\n",
        "NUL bytes": b"path,pid\n\0\0\0,1\n",
        "a quote without an end": b'path,pid\n"a.jpg,1\n',
        "a line of 4 MiB": b"path,pid\n" + b"a" * 2**22 + b",1\n",
        "100,000 columns": b",".join(b"c%d" % n for n in range(100_000)) + b"\n",
        "formulas": b"path,pid\n=cmd|'/c calc'!A1,1\n=1+1,2\n",
        "UTF-16": "path,pid\na.jpg,1\n".encode("utf-16"),
        "identities of 5,000 digits and no image": b"path,pid\nnowhere.jpg," + b"9" * 5000 + b"\n",
    }.items():
        yield "table", name, "crops.csv", text
    digits = b"9" * 5000
    yield "msmt17 list", "identities of 5,000 digits", "list_query.txt", b"0000/0000_000_01_x.jpg " + digits
    yield "msmt17 list", "cameras of 200 digits", "list_query.txt", b"0000/0000_000_" + digits[:200] + b"_x.jpg 0"
    for name, value in {
        "frames of 10¹²": b"1000000000000,1,1,2,3,4,1,-1,-1,-1\n",
        "identities of 2⁶³": b"1,9223372036854775808,1,2,3,4,1,-1,-1,-1\n",
        "5,000 digits": b"1," + digits + b",1,2,3,4,1,-1,-1,-1\n",
        "a width of 1e308": b"1,1,1,2,1e308,4,1,-1,-1,-1\n",
        "NUL bytes": b"1,1,1,2,3,4,1,-1,-1,-1\n\0\0\0\n",
        "words": b"frame,track,box\n" * 5,
    }.items():
        yield "tracks", name, "cam01.txt", value


def hostile_texts() -> Iterator[tuple[str, str, str, bytes]]:
    """JSON and YAML that is deep, huge, repeated or of the wrong types."""
    bomb = b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 60))
    for reader, file in (("cameras", "cameras.yaml"), ("training settings", "config.yaml")):
        yield reader, "nested aliases", file, bomb
        yield reader, "a Python object", file, b"!!python/object/apply:os.system ['touch /tmp/owned']\n"
        yield reader, "a Python name", file, b"seed: !!python/name:os.system\n"
        yield reader, "100,000 levels", file, b"[" * DEEP
        yield reader, "2,000 levels by indentation", file, b"".join(b" " * n + b"a:\n" for n in range(2000))
        yield reader, "an integer of 5,000 digits", file, b"fps: " + b"9" * 5000
        yield reader, "a key twice", file, b"seed: 1\nseed: 2\n"
        yield reader, "a list", file, b"- 1\n- 2\n"
        yield reader, "NUL bytes", file, b"seed: \0\0\n"
        yield reader, "UTF-16", file, "seed: 1\n".encode("utf-16")
        yield reader, "an unknown key", file, b"nothing_like_this: 1\n"
    for reader, file in (
        ("constraints", "constraints.json"),
        ("calibration", "calibration.json"),
        ("cuhk03 split", "splits_new_labeled.json"),
        ("bundle", "bundle.json"),
    ):
        for name, text in {
            "100,000 levels": b"[" * DEEP,
            "100,000 objects": b'{"a":' * DEEP,
            "an integer of 5,000 digits": b'{"format": ' + b"9" * 5000 + b"}",
            "an infinite number": b'{"format": 1e999, "version": Infinity}',
            "NaN": b'{"format": NaN}',
            "a key twice": b'{"format": 1, "format": 2}',
            "a list": b"[1, 2]",
            "null": b"null",
            "text": b'"text"',
            "not UTF-8": b'{"\xff\xfe": 1}',
            "half a surrogate": b'{"\\ud800": 1}',
            "other types": json.dumps(
                {name: {"a": []} for name in ("format", "version", "train", "query", "merge", "sha256", "file")}
            ).encode(),
        }.items():
            yield reader, name, file, text


class Touch:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (OWNED,)


OWNED = Path("/tmp/reid-hostile-test-was-executed")


def hostile_weights() -> Iterator[tuple[str, str, str, bytes]]:
    """Pickles with code, headers that lie, and content of the wrong types."""
    for reader in ("weights", "checkpoint"):
        for name, content in {
            "a pickle with code": {"a": Touch()},
            "a list": [1, 2, 3],
            "no tensors": {"a": 1},
            "fields of the wrong types": {"format": "reid-checkpoint", "version": 2, "spec": [], "model": 5},
            "a weights path": {
                "format": "reid-checkpoint",
                "version": 2,
                "spec": {"weights": "/etc/passwd"},
                "model": {},
            },
        }.items():
            buffer = io.BytesIO()
            torch.save(content, buffer)
            yield reader, name, "a.pt", buffer.getvalue()
    for name, header in {
        "a header of 2⁶³ bytes": struct.pack("<Q", 2**63) + b"{}",
        "a header of 5,000 levels": struct.pack("<Q", 5000) + b"[" * 5000,
        "a tensor of 2⁶⁰ bytes": b'{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4]}}',
        "offsets beyond the end": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}',
        "offsets that overlap": b'{"a":%b,"b":%b}' % ((b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',) * 2),
        "an unknown type": b'{"a":{"dtype":"Q99","shape":[1],"data_offsets":[0,4]}}',
    }.items():
        content = header if header[:1] != b"{" else struct.pack("<Q", len(header)) + header + bytes(4)
        yield "weights", name, "a.safetensors", content
    for name, array in {
        "objects": np.array([Touch()], dtype=object),
        "text": np.array(["a"]),
        "no finite number": np.full((2, 2), np.nan, np.float32),
    }.items():
        buffer = io.BytesIO()
        np.savez(buffer, factor=array, about=np.array('{"format": 1, "method": "xqda"}'))
        yield "learned metric", f"a factor of {name}", "metric.npz", buffer.getvalue()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("factor.npy", npy)
        archive.writestr("about.npy", npy)
    yield "learned metric", "an array of 4 TiB", "metric.npz", buffer.getvalue()
