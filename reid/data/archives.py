"""Verify and unpack archives of data sets that the user downloaded. Nothing is downloaded or written elsewhere."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import re
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from reid.core.atomic import atomic_folder, check_free_space
from reid.core.console import progress_bar
from reid.core.errors import DataError, ReidError, check_choice
from reid.data.crops import IMAGE_SUFFIXES, Benchmark
from reid.data.layouts import LAYOUTS, cuhk03, dukemtmc, load_benchmark, market1501, msmt17

CONTENTS = {
    "market1501": tuple(market1501.LAYOUT.folders.values()),
    "dukemtmc": tuple(dukemtmc.LAYOUT.folders.values()),
    "msmt17": tuple(msmt17.LISTS.values()),
    "cuhk03": tuple(f"images_{variant}" for variant in cuhk03.TRAIN_IMAGES),
}
"""Folders or files that an archive of each layout must contain, at any depth."""

MD5 = {"market1501": "65005ab7d12ec1c44de4eeafe813e68a"}
"""Checksum of `Market-1501-v15.09.15.zip`, as many public loaders state it. No other checksum is known for certain."""

MOST_TIMES_LARGER = 200
"""An archive that unpacks to more than this many times its size (and 64 MiB) is refused as a decompression bomb."""

BLOCK = 2**20
_LONGEST_READ = 16 * BLOCK
"""Bytes that `tarfile` may read in one piece: a header of a longer name is a bomb."""
_DECOMPRESS: dict[bytes, Callable[[Path], IO[bytes]]] = {
    b"\x1f\x8b": gzip.open,  # type: ignore[dict-item]
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_PLAIN = (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
"""File types of zip members that are not special: unknown, file, folder; links are checked separately."""


@dataclass(frozen=True)
class ArchiveReport:
    """Content of an archive. `images` counts the images in each folder (msmt17: the files of each list)."""

    file: str
    n_bytes: int
    sha256: str
    md5: str
    md5_agrees: bool | None
    n_files: int
    unpacked_bytes: int
    images: dict[str, int]


@dataclass(frozen=True)
class _Member:
    """A file in an archive: its safe relative path, its size when unpacked, and how to open it."""

    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]


def verify_archive(archive: str | Path, layout: str) -> ArchiveReport:
    """Read an archive to its end without unpacking it: it must be undamaged, safe, and of this data set.

    Raises:
        ConfigError: a layout that is not distributed as an archive.
        DataError: no such file, not an archive, damaged, unsafe names, or without what the layout needs.
    """
    archive = _existing(archive)
    check_choice("layout of archives", layout, CONTENTS)
    with _members(archive) as members, progress_bar() as bar:
        for member in bar.track(members, description="Reading"):
            for _ in _blocks(archive, member):
                pass
    folders = Counter(
        folder
        for member in members
        if member.path.name.lower().endswith(IMAGE_SUFFIXES)
        for folder in set(member.path.parts[:-1])
    )
    names = Counter(member.path.name for member in members)
    images = {name: folders[name] or names[name] for name in CONTENTS[layout]}
    missing = [name for name, number in images.items() if not number]
    if missing if layout != "cuhk03" else len(missing) == len(images):
        top = sorted({member.path.parts[0] for member in members})
        raise DataError(
            f"{archive} is undamaged, but is not a {layout} archive: it does not contain {', '.join(missing)}. "
            f"Its top level contains {', '.join(top[:8])}{', …' if len(top) > 8 else ''}."
        )
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(archive, "rb") as opened:
        while block := opened.read(BLOCK):
            sha256.update(block)
            md5.update(block)
    return ArchiveReport(
        str(archive),
        archive.stat().st_size,
        sha256.hexdigest(),
        md5.hexdigest(),
        md5.hexdigest() == MD5[layout] if layout in MD5 else None,
        len(members),
        sum(member.size for member in members),
        images,
    )


def unpack_archive(archive: str | Path, destination: str | Path) -> Path:
    """Unpack a zip or tar (.gz, .bz2, .xz) into a new folder, completely or not at all.

    All names are checked before anything is written. An absolute path, a drive, a `..`, a link, a device or a duplicate
    name makes the function refuse the whole archive, and so does a decompression bomb. It unpacks next to `destination`
    under a temporary name, which it renames at the end and removes after an error or interruption.

    Returns:
        `destination`, absolute.

    Raises:
        DataError: not an archive, damaged, unsafe, too large for the disk, or `destination` exists and is not empty.
    """
    archive = _existing(archive)
    destination = Path(destination).expanduser().absolute()
    with atomic_folder(destination) as temporary, _members(archive) as members, progress_bar() as bar:
        check_free_space(temporary, sum(member.size for member in members), f"Unpacking {archive}")
        for member in bar.track(members, description="Unpacking"):
            path = temporary.joinpath(*member.path.parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                file.writelines(_blocks(archive, member))
    return destination


def read_unpacked(folder: str | Path, layout: str | None = None) -> tuple[str, Benchmark]:
    """Read an unpacked data set from `folder` or the only folder in it; return the layout's name and the benchmark.

    Without `layout`, each layout of `CONTENTS` is tried.

    Raises:
        DataError: it cannot be read as `layout`, or as any layout.
    """
    roots = [Path(folder)]
    while len(inside := [path for path in roots[-1].iterdir() if path.is_dir()]) == 1:
        roots.append(inside[0])
    tried = [layout] if layout else list(CONTENTS)
    for root in roots:
        for name in tried:
            with contextlib.suppress(ReidError):
                return name, load_benchmark(name, root)
    if layout:
        load_benchmark(layout, roots[-1])
    raise DataError(
        f"{folder} was unpacked, but has none of the layouts {', '.join(tried)}. Look at its content, then use "
        f"`reid data check LAYOUT:ROOT` with one of {', '.join(LAYOUTS)}."
    )


def _existing(archive: str | Path) -> Path:
    path = Path(archive).expanduser().absolute()
    if not path.is_file():
        raise DataError(f"There is no file {path}. Download the archive first (see datasets/README.md).")
    return path


@contextlib.contextmanager
def _damage_as_error(file: Path) -> Iterator[None]:
    try:
        yield
    except ReidError:
        raise
    except Exception as error:  # zipfile, tarfile and the decompressors raise many types on damaged files
        raise DataError(f"{file} is damaged: {error or type(error).__name__}. Download it again.") from error


@contextlib.contextmanager
def _members(file: Path) -> Iterator[list[_Member]]:
    """Open an archive and yield its files, with checked names."""
    with contextlib.ExitStack() as stack:
        with _damage_as_error(file):
            if zipfile.is_zipfile(file):
                found = list(_zip_members(file, stack.enter_context(zipfile.ZipFile(file))))
            else:
                stream = stack.enter_context(_TarStream(file))
                try:
                    archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
                except tarfile.ReadError as error:
                    raise DataError(
                        f"{file} is neither a complete zip nor a tar ({error}). Download it again if its name ends in "
                        ".zip or .tar; unpack other formats (rar, 7z) by hand, then use `reid data check LAYOUT:ROOT`."
                    ) from error
                found = list(_tar_members(file, archive, stream))
        duplicates = [path for path, n in Counter(str(member.path).casefold() for member in found).items() if n > 1]
        if duplicates:
            raise DataError(f"{file} contains {duplicates[0]!r} twice. Unpack it by hand if you trust it.")
        if not found or not all(member.path.parts for member in found):
            raise DataError(f"{file} contains {'a file without a name' if found else 'no file'}. Download it again.")
        yield found


class _Total:
    """Bytes that an archive unpacks to, counted while its members are listed; too many are an error."""

    def __init__(self, file: Path) -> None:
        self.file, self.n_bytes = file, 0
        self.most = MOST_TIMES_LARGER * file.stat().st_size + 64 * BLOCK

    def add(self, n_bytes: int) -> None:
        if n_bytes < 0:
            raise ValueError(f"a size of {n_bytes} bytes")
        self.n_bytes += n_bytes
        if self.n_bytes > self.most:
            raise DataError(
                f"{self.file} unpacks to more than {MOST_TIMES_LARGER} times its size, as decompression bombs do. "
                "Unpack it by hand if you trust it."
            )


class _TarStream(io.RawIOBase):
    """The decompressed bytes of a tar, in reads of limited length."""

    def __init__(self, file: Path) -> None:
        with open(file, "rb") as opened:
            start = opened.read(6)
        opener = next((opener for magic, opener in _DECOMPRESS.items() if start.startswith(magic)), None)
        self._stream: IO[bytes] = opener(file) if opener else open(file, "rb")  # noqa: SIM115

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            raise ValueError(f"a header of {size:,} bytes")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        super().close()


def _zip_members(file: Path, archive: zipfile.ZipFile) -> Iterator[_Member]:
    total = _Total(file)
    for info in archive.infolist():
        total.add(info.file_size)
        kind = stat.S_IFMT(info.external_attr >> 16)
        path = _safe_path(file, info.filename, link=kind == stat.S_IFLNK, special=kind not in _PLAIN)
        if info.flag_bits & 1:
            raise DataError(f"{file} needs a password. Unpack it by hand, then use `reid data check LAYOUT:ROOT`.")
        if not info.is_dir() and not info.filename.endswith("\\"):
            yield _Member(path, info.file_size, partial(archive.open, info))


def _tar_members(file: Path, archive: tarfile.TarFile, stream: _TarStream) -> Iterator[_Member]:
    total = _Total(file)
    for info in archive:
        total.add(4 * tarfile.BLOCKSIZE + info.size)  # a file takes a block of the disk
        special = not (info.isfile() or info.isdir())
        path = _safe_path(file, info.name, link=info.issym() or info.islnk(), special=special)
        if info.isfile():
            yield _Member(path, info.size, partial(cast("Callable[..., IO[bytes]]", archive.extractfile), info))
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("its end is missing")  # tarfile takes a header that is cut for the end
    while block := stream.read(BLOCK):
        total.add(len(block))  # read up to the checksum at the end


def _blocks(file: Path, member: _Member) -> Iterator[bytes]:
    """Yield the content of a member in blocks, at most as many bytes as its header states."""
    with _damage_as_error(file), member.open() as stream:
        left = member.size
        while left >= 0 and (block := stream.read(BLOCK)):
            left -= len(block)
            if left >= 0:
                yield block
        if left:
            raise DataError(f"{file} is damaged: {member.path} does not have the {member.size:,} bytes of its header.")


def _safe_path(file: Path, name: str, *, link: bool, special: bool) -> PurePosixPath:
    """Return the path of a member below the destination; an unsafe one is an error."""
    path = PurePosixPath(name.replace("\\", "/"))
    problems = {
        "is an absolute path": path.is_absolute() or re.match(r"[A-Za-z]:", name) is not None,
        "leads out of the folder": ".." in path.parts,
        "is a link": link,
        "is neither a file nor a folder": special,
    }
    if any(problems.values()):
        problem = next(problem for problem, found in problems.items() if found)
        raise DataError(
            f"{file} is unsafe and was not unpacked: its member {name!r} {problem}. Get the archive from its authors."
        )
    return path
