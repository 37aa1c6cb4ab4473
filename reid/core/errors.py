"""Errors that users meet, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable
from itertools import islice
from numbers import Real


class ReidError(ValueError):
    """Error caused by user input. The message says what is wrong and how to fix it.

    Catch it to handle every user error of this package; catch a subclass to handle one cause.

    Example:
        >>> import reid
        >>> try:
        ...     reid.load_benchmark("market1501:/nowhere")
        ... except reid.ReidError as error:
        ...     print(type(error).__name__)
        DataError
    """


class DataError(ReidError):
    """A file, folder, image, table or array that cannot be used as it is."""


class ConfigError(ReidError):
    """A setting, option or argument that is unknown, out of range or contradicts another."""


class ModelError(ReidError):
    """A model, checkpoint, export or runtime that cannot be loaded, built or run."""


def check_choice(setting: str, value: str, choices: Iterable[str]) -> None:
    """Raise an error if `value` is not one of `choices`.

    Raises:
        ConfigError: naming the setting, the value and the most similar choices.
    """
    known = list(choices)
    if value not in known:
        raise ConfigError(f"Unknown {setting} {value!r}.{did_you_mean(value, known)}")


def check_type(name: str, value: object, kinds: type | tuple[type, ...], how: str) -> None:
    """Raise an error if an argument is of another type, such as a path where the tracks of the file are needed.

    Args:
        name: of the argument.
        value: the given one.
        kinds: type or types that it may have.
        how: sentence that says how to get an object of that type.

    Raises:
        ConfigError: naming the argument and both types.

    Example:
        >>> check_type("truth", 7, str, "Write it as text.")
        Traceback (most recent call last):
        reid.core.errors.ConfigError: truth must be of the type str; got int. Write it as text.
    """
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise ConfigError(f"{name} must be of the type {names}; got {type(value).__name__}. {how}")


def first_few(items: Collection[object], most: int = 10) -> str:
    """Return the first items as text, separated by commas; `, …` follows if there are more.

    Example:
        >>> first_few([3, 5, 8], 2)
        '3, 5, …'
    """
    return ", ".join(map(str, islice(items, most))) + (", …" if len(items) > most else "")


def check_number(
    setting: str,
    value: float | None,
    low: float = 0.0,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Raise an error unless `value` is None, or finite and in low..high.

    Args:
        setting: its name, for the message.
        value: the given number.
        low, high: the range.
        above: `low` itself is not allowed.
        below: `high` itself is not allowed.

    Raises:
        ConfigError: naming the setting, the range and the value.
    """
    refused = (math.inf, -math.inf, *(low,) * above, *(high,) * below)
    if value is None or (isinstance(value, Real) and low <= value <= high and value not in refused):
        return
    least = f"above {low:g}" if above else f"{low:g} or more"
    most = "" if high == math.inf else f" and below {high:g}" if below else f" and at most {high:g}"
    raise ConfigError(f"{setting} must be {least}{most}; got {value}.")


def first_line(error: Exception) -> str:
    """Return the first line of a library's message, without the full stop at its end."""
    return _lines(error)[0].rstrip(". ")


def last_line(error: Exception) -> str:
    """Return the last line of a library's message; runtimes put the cause there."""
    return _lines(error)[-1]


def _lines(error: Exception) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'? Known: x, y."`; the question only if a known name is similar."""
    known = sorted(known)
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    question = f" Did you mean {similar[0]!r}?" if similar else ""
    return f"{question} Known: {', '.join(known) or 'none'}."
