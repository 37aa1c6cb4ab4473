"""Read files by path or by address, such as `s3://bucket/key`. pyarrow reads object storage."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reid.core.errors import DataError, last_line

_REFUSED = "ACCESS_DENIED|(?i:expired)|INVALID_ACCESS_KEY|InvalidAccessKey|(?i:signature)|TOKEN|HTTP 40[13]"


class MissingObject(DataError):
    """An object that does not exist in object storage."""


def is_remote(path: str | Path) -> bool:
    """Return whether a text is an address such as `s3://bucket/key`, not a path.

    Example:
        >>> is_remote("s3://bucket/a.jpg"), is_remote("/data/a.jpg"), is_remote("C:/a.jpg")
        (True, False, False)
    """
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", str(path)) is not None


def read_object(address: str) -> bytes:
    """Return the content of an object.

    Raises:
        MissingObject: it does not exist.
        DataError: access is refused, or the storage does not answer.
    """
    try:
        filesystem, path = _open(address)
        with filesystem.open_input_file(path) as file:
            return bytes(file.read())
    except (OSError, ValueError) as error:  # pyarrow's errors are subclasses
        raise _explain(address, error) from error


@contextmanager
def local_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of a file on this machine: `path` itself, or a temporary copy of an object.

    Raises:
        DataError: as `read_object`, or the copy does not fit on the disk for temporary files.
    """
    if not is_remote(path):
        yield Path(path)
        return
    address = str(path)
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        copy = Path(folder) / address.rsplit("/", 1)[-1]
        try:
            filesystem, key = _open(address)
            source = filesystem.open_input_stream(key)
        except (OSError, ValueError) as error:
            raise _explain(address, error) from error
        try:
            with source, open(copy, "wb") as target:
                while piece := source.read(2**24):
                    target.write(piece)
        except OSError as error:
            raise DataError(f"{address} cannot be copied to {folder}: {last_line(error)}. Free some space.") from error
        yield copy


@functools.lru_cache(maxsize=8)
def _filesystem(place: str) -> Any:
    from pyarrow import fs

    return fs.FileSystem.from_uri(place)[0]


def _open(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    scheme, rest = address.split("://", 1)
    return _filesystem(f"{scheme}://{rest.split('/', 1)[0]}"), rest


def _explain(address: str, error: Exception) -> DataError:
    text, cause = str(error), last_line(error).rstrip(". ")
    if isinstance(error, FileNotFoundError) or "NOT_FOUND" in text or "NoSuchBucket" in text:
        return MissingObject(f"{address} does not exist. Correct the list, or upload the object.")
    if "TIME_TOO_SKEWED" in text or "RequestTimeTooSkewed" in text:
        return DataError(f"Access to {address} was refused, because this machine's clock is wrong. Set its clock.")
    if re.search(_REFUSED, text):
        return DataError(
            f"Access to {address} was refused: {cause}. Credentials may have expired, or lack the permission: renew "
            "them on every machine."
        )
    return DataError(f"{address} cannot be read: {cause}. Check the address, the network and AWS_ENDPOINT_URL.")
