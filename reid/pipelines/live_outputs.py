"""Where the events of `reid live` go: files and standard output, one JSON object a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Any, Protocol

from reid.core.errors import DataError


class Output(Protocol):
    """Takes events."""

    def send(self, event: dict[str, Any]) -> None:
        """Send an event."""
        ...

    def close(self) -> None:
        """Finish; nothing can be sent afterwards."""
        ...


class LinesOutput:
    """Append each event to a file as a line, which is complete at once; "-" is standard output.

    Raises:
        DataError: the file cannot be opened or written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[str] = sys.stdout
        if path == "-":
            return
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"Cannot write {path}: {error.strerror}. Pass a file in a writable folder.") from error

    def send(self, event: dict[str, Any]) -> None:
        """Write a line."""
        try:
            self._file.write(json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise DataError(f"Cannot write events to {self._path}: {error.strerror}. Free some space.") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not sys.stdout:
            self._file.close()


def open_output(target: str) -> Output:
    """Open an output: a file, or "-".

    Raises:
        DataError: the file cannot be opened.
    """
    return LinesOutput(target)
