"""One lock for everything that writes a folder, a file or a cache: one process works, others wait or are refused."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from reid.core.console import console, warn
from reid.core.errors import DataError

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 2**30, os.SEEK_SET)  # a locked byte cannot be read, and others read the first ones
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def exclusive(path: str | Path, *, in_parent: bool = False, wait: bool = False) -> Iterator[None]:
    """Let no other process write `path` at the same time.

    The operating system releases the lock of a process that ends, however it ends. The lock is the hidden file `.lock`
    in the folder, or `.NAME.lock` next to it; its text describes the process that has it.

    Args:
        path: what is written. It is a folder, unless `in_parent`. Folders that are created for it and stay empty are
            removed again.
        in_parent: whether the lock is in the parent folder, because `path` is a file, or a folder that must not exist.
        wait: whether to wait for the other process instead of raising an error.

    Raises:
        DataError: another process writes `path`; the message describes it. Or the folder is not writable.
    """
    path = Path(path)
    file = path.with_name(f".{path.name}.lock") if in_parent else path / ".lock"
    created = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, file, wait)
        os.ftruncate(descriptor, 0)
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        os.write(descriptor, f"process {os.getpid()} on {platform.node()} since {started}".encode())
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror or error}. Use a writable folder.") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):
            for folder in created:
                folder.rmdir()


def _acquire(path: Path, file: Path, wait: bool) -> int:
    reported = False
    while (descriptor := _try(file)) is None:
        time.sleep(0.1)  # also because the other process may be about to describe itself
        with contextlib.suppress(FileNotFoundError):
            other = file.read_text("utf-8", "replace") or "another process"
            if not wait:
                raise DataError(f"{path} is in use by {other}. Wait until it ends, or use another path.")
            if not reported:
                console.print(f"{path} is in use by {other}; waiting for it.")
            reported = True
    return descriptor


def _try(file: Path) -> int | None:
    """Return the descriptor of the locked file; None if another process has the lock."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError as error:
            warn(f"{file.parent} does not support locks ({error.strerror}): let only one process write it.")
            return descriptor
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        os.close(descriptor)  # the process that had the lock has removed the file
