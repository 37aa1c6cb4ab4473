"""Archives of data sets that the user downloaded: verified and unpacked, never fetched. Nothing leaves the folder."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from reid.core.atomic import atomic_folder
from reid.core.console import progress_bar
from reid.core.errors import ReidError, did_you_mean
from reid.data.crops import IMAGE_SUFFIXES, Benchmark
from reid.data.layouts import LAYOUTS, cuhk03, dukemtmc, load_benchmark, market1501, msmt17

HOLDS = {
    "market1501": tuple(market1501.FOLDERS.values()),
    "dukemtmc": tuple(dukemtmc.FOLDERS.values()),
    "msmt17": tuple(msmt17.LISTS.values()),
    "cuhk03": tuple(f"images_{variant}" for variant in cuhk03.TRAIN_IMAGES),
}
"""What an archive of each layout must hold, at any depth."""

MD5 = {"market1501": "65005ab7d12ec1c44de4eeafe813e68a"}
"""Of `Market-1501-v15.09.15.zip`, as many public loaders state it. Others are not known for certain."""

SPARE = 64 * 2**20
"""Bytes of disk that unpacking leaves free."""

BLOCK = 2**20
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError)


@dataclass(frozen=True)
class Verified:
    """What an archive holds. `images` counts those in each folder (or, for msmt17, notes each list) of the layout."""

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
    """A file of an archive: its safe relative path and its size when unpacked."""

    path: PurePosixPath
    size: int
    source: zipfile.ZipInfo | tarfile.TarInfo


def verify(archive: str | Path, layout: str) -> Verified:
    """Read an archive to its end without unpacking it: is it whole, safe, and of this data set?

    Raises:
        ReidError: no such file, not an archive, damaged, unsafe names, or it lacks what the layout needs.
    """
    archive = _existing(archive)
    if layout not in HOLDS:
        raise ReidError(f"There is no archive form of a layout {layout!r}.{did_you_mean(layout, HOLDS)}")
    with _Archive(archive) as opened:
        members = opened.members()
        opened.read_to_end(members)
    folders = Counter(
        folder for member in members for folder in set(member.path.parts[:-1]) if _is_image(member.path.name)
    )
    names = Counter(member.path.name for member in members)
    images = {name: folders[name] or names[name] for name in HOLDS[layout]}
    lacking = [name for name, number in images.items() if not number]
    if lacking if layout != "cuhk03" else len(lacking) == len(images):
        tops = sorted({member.path.parts[0] for member in members})
        raise ReidError(
            f"{archive} is whole, but is not a {layout} archive: it lacks {', '.join(lacking)}. "
            f"At its top: {', '.join(tops[:8])}{', …' if len(tops) > 8 else ''}."
        )
    sha256, md5 = _digests(archive)
    published = MD5.get(layout)
    return Verified(
        str(archive),
        archive.stat().st_size,
        sha256,
        md5,
        None if published is None else md5 == published,
        len(members),
        sum(member.size for member in members),
        images,
    )


def unpack(archive: str | Path, destination: str | Path) -> Path:
    """Unpack a zip or tar (.gz, .bz2, .xz) into a new folder, all of it or nothing.

    Names are checked before anything is written: an absolute path, a drive, a `..`, a link, a device or a name that
    comes twice makes the whole archive refused. It is unpacked beside `destination` under a temporary name, renamed
    when complete, and removed on any failure or interruption.

    Returns:
        `destination`, absolute.

    Raises:
        ReidError: not an archive, damaged, unsafe, too large for the disk, or `destination` is there and not empty.
    """
    archive = _existing(archive)
    destination = Path(destination).expanduser().absolute()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ReidError(f"{destination} is there already and is not an empty folder. Give a folder that is new.")
    with _Archive(archive) as opened, atomic_folder(destination) as temporary:
        members = opened.members()
        _check_room(members, destination.parent, archive)
        _write(opened, members, temporary)
    return destination


def read_unpacked(folder: str | Path, layout: str | None = None) -> tuple[str, Benchmark]:
    """Read what was unpacked, from `folder` or the only folder in it: the layout's name and the benchmark.

    Without `layout`, each that needs no option is tried.

    Raises:
        ReidError: it cannot be read as `layout`, or as any.
    """
    roots = [Path(folder)]
    while len(inside := [path for path in roots[-1].iterdir() if path.is_dir()]) == 1:
        roots.append(inside[0])
    tried = [layout] if layout else [name for name in LAYOUTS if name != "table"]
    for root in roots:
        for name in tried:
            with contextlib.suppress(ReidError):
                return name, load_benchmark(name, root)
    if layout:
        load_benchmark(layout, roots[-1])
    raise ReidError(
        f"{folder} was unpacked, but is none of {', '.join(tried)}. Look into it, then `reid check LAYOUT ROOT`."
    )


def _existing(archive: str | Path) -> Path:
    path = Path(archive).expanduser().absolute()
    if not path.is_file():
        raise ReidError(f"There is no file {path}. Download the archive first: datasets/README.md says where from.")
    return path


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _digests(file: Path) -> tuple[str, str]:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(file, "rb") as opened:
        while block := opened.read(BLOCK):
            sha256.update(block)
            md5.update(block)
    return sha256.hexdigest(), md5.hexdigest()


class _Archive(contextlib.AbstractContextManager["_Archive"]):
    """A zip or tar, opened for reading; whatever is wrong with it is a `ReidError` that names it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.zip: zipfile.ZipFile | None = None
        self.tar: tarfile.TarFile | None = None
        with self._told():
            if zipfile.is_zipfile(file):
                self.zip = zipfile.ZipFile(file)
            elif tarfile.is_tarfile(file):
                self.tar = tarfile.open(file, "r:*")  # noqa: SIM115
            else:
                raise ReidError(
                    f"{file} is neither a whole zip nor a tar. If its name says so, download it anew; other kinds "
                    "(rar, 7z) unpack by hand, then `reid check LAYOUT ROOT`."
                )

    def __exit__(self, *exc: object) -> None:
        for opened in (self.zip, self.tar):
            if opened is not None:
                opened.close()

    def members(self) -> list[_Member]:
        """The files, their names checked."""
        with self._told():
            found = list(self._zip_members() if self.zip else self._tar_members())
        twice = [path for path, n in Counter(str(member.path).casefold() for member in found).items() if n > 1]
        if twice:
            raise ReidError(
                f"{self.file} holds {twice[0]!r} twice. It is refused whole; unpack it by hand if you trust it."
            )
        if not all(member.path.parts for member in found):
            raise ReidError(f"{self.file} is refused whole: it holds a file without a name.")
        if not found:
            raise ReidError(f"{self.file} holds no file. Download it anew.")
        return found

    def open(self, member: _Member) -> IO[bytes]:
        """A stream of the member's bytes."""
        if isinstance(member.source, zipfile.ZipInfo):
            assert self.zip is not None
            return self.zip.open(member.source)
        assert self.tar is not None
        stream = self.tar.extractfile(member.source)
        assert stream is not None
        return stream

    def read_to_end(self, members: list[_Member]) -> None:
        """Read every member once, so that sizes and checksums are compared."""
        with progress_bar() as bar, self._told():
            for member in bar.track(members, description="Reading"):
                for _ in self.blocks(member):
                    pass

    def blocks(self, member: _Member) -> Iterator[bytes]:
        """The member's bytes in blocks, never more than it said it has."""
        with self._told(), self.open(member) as stream:
            left = member.size
            while block := stream.read(BLOCK):
                left -= len(block)
                if left < 0:
                    break
                yield block
            if left:
                raise ReidError(f"{self.file} is damaged: {member.path} is not of the {member.size:,} bytes it claims.")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BROKEN as error:
            raise ReidError(f"{self.file} is damaged: {error}. Download it anew.") from error

    def _zip_members(self) -> Iterator[_Member]:
        assert self.zip is not None
        for info in self.zip.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            path = self._checked(info.filename, link=kind == stat.S_IFLNK, special=kind not in _PLAIN)
            if info.flag_bits & 1:
                raise ReidError(f"{self.file} asks for a password: unpack it by hand, then `reid check LAYOUT ROOT`.")
            if not info.is_dir() and not info.filename.endswith("\\"):
                yield _Member(path, info.file_size, info)

    def _tar_members(self) -> Iterator[_Member]:
        assert self.tar is not None
        for info in self.tar:
            path = self._checked(
                info.name, link=info.issym() or info.islnk(), special=not (info.isfile() or info.isdir())
            )
            if info.isfile():
                yield _Member(path, info.size, info)
        while self.tar.fileobj is not None and self.tar.fileobj.read(BLOCK):
            pass  # to the checksum behind the last member

    def _checked(self, name: str, *, link: bool, special: bool) -> PurePosixPath:
        """The member's path below the destination; unsafe ones make the archive refused."""
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or re.match(r"[A-Za-z]:", name):
            why = "is an absolute path"
        elif ".." in path.parts:
            why = "leads out of the folder"
        elif link:
            why = "is a link"
        elif special:
            why = "is neither a file nor a folder"
        else:
            return path
        raise ReidError(
            f"{self.file} is refused whole: its member {name!r} {why}, which no data set needs. "
            "Get the archive from its authors."
        )


_PLAIN = (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
"""File types of zip members that are not special: unknown, file, folder; a link is told by itself."""


def _check_room(members: list[_Member], folder: Path, archive: Path) -> None:
    need, free = sum(member.size for member in members) + SPARE, shutil.disk_usage(folder).free
    if need > free:
        raise ReidError(
            f"{archive} unpacks to {need / 2**30:.1f} GiB, and {folder} has {free / 2**30:.1f} GiB free. "
            "Free some space, or give a folder on another disk."
        )


def _write(opened: _Archive, members: list[_Member], folder: Path) -> None:
    with progress_bar() as bar:
        for member in bar.track(members, description="Unpacking"):
            path = folder.joinpath(*member.path.parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                for block in opened.blocks(member):
                    file.write(block)
