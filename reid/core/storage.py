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

MOST_BYTES = 2**40


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
        DataError: it does not exist, access is refused, or the storage does not answer.
    """
    try:
        filesystem, path = _open(address)
        with filesystem.open_input_file(path) as file:
            return bytes(file.read())
    except (OSError, ValueError) as error:  # pyarrow's errors are subclasses
        raise DataError(_explain(address, error)) from error


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
            raise DataError(_explain(address, error)) from error
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


def _explain(address: str, error: Exception) -> str:
    text = str(error)
    if isinstance(error, FileNotFoundError) or "NOT_FOUND" in text or "NoSuchBucket" in text:
        return f"{address} does not exist. Correct the list, or upload the object."
    if re.search(
        "ACCESS_DENIED|EXPIRED|Expired|INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE|Signature|TOKEN|HTTP 40[13]", text
    ):
        return (
            f"Access to {address} was refused: {last_line(error)}. Credentials may have expired, or lack the "
            "permission: renew them on every machine."
        )
    if "TIME_TOO_SKEWED" in text or "RequestTimeTooSkewed" in text:
        return f"Access to {address} was refused, because this machine's clock is wrong. Set its clock."
    return f"{address} cannot be read: {last_line(error)}. Check the address, the network and AWS_ENDPOINT_URL."
