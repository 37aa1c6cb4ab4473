"""Read JSON and YAML files: whatever is wrong with one becomes an error that names the file and how to fix it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from reid.core.errors import ConfigError, DataError, ReidError

LARGEST_JSON, LARGEST_YAML = 256 * 2**20, 4 * 2**20
"""Bytes above which a file is refused without reading it."""
DEEPEST = 50
"""Levels of nested lists and mappings above which a text is refused."""

_FAILED_DOWNLOADS = {
    b"<!doctype": "is a web page: its download was redirected, for example to a login. Download the file again.",
    b"<html": "is a web page: its download was redirected, for example to a login. Download the file again.",
    b"version https://git-lfs": "is a pointer of Git LFS. Run: git lfs pull",
}

_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def failed_download(start: bytes) -> str:
    """Return what a file with these first bytes is if its download failed, and how to fix it; "" for other files.

    Example:
        >>> failed_download(b"version https://git-lfs.github.com/spec/v1")
        'is a pointer of Git LFS. Run: git lfs pull'
    """
    start = start[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((problem for beginning, problem in _FAILED_DOWNLOADS.items() if start.startswith(beginning)), "")


def read_json(path: str | Path, fix: str = "Restore it.", error: type[ReidError] = DataError) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: the file.
        fix: what to do if the file is missing or invalid, as a sentence.
        error: the class of all errors raised.

    Raises:
        ReidError: as `parse_json`, or the file is missing, unreadable, too large, not UTF-8, or not one object.
    """
    text = _read_text(Path(path), LARGEST_JSON, fix, error)
    content = parse_json(text, str(path), fix, error)
    if not isinstance(content, dict):
        raise error(f"{path} must contain one JSON object, not a {type(content).__name__}. {fix}")
    return content


def parse_json(
    text: str | bytes,
    source: str,
    fix: str = "Restore it.",
    error: type[ReidError] = DataError,
    *,
    allow_nan: bool = False,
) -> Any:
    """Return the value of a JSON text; `source` names it in errors.

    Raises:
        ReidError: of class `error`: not JSON or not UTF-8, a key occurs twice, an integer needs more than 64 bits, a
            number is not finite (unless `allow_nan`), or lists and objects are nested too deeply.

    Example:
        >>> parse_json('{"a": 1, "a": 2}', "settings.json")
        Traceback (most recent call last):
        reid.core.errors.DataError: settings.json cannot be read as JSON: the key 'a' occurs twice. Restore it.
    """
    number: Callable[[str], float] = float if allow_nan else _finite
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            text, object_pairs_hook=_mapping, parse_int=_integer, parse_float=number, parse_constant=number
        )
        _check_depth(value)
    except (ValueError, RecursionError) as problem:
        reason = "it is nested too deeply" if isinstance(problem, RecursionError) else problem
        raise error(f"{source} cannot be read as JSON: {reason}. {fix}") from problem
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: as `parse_yaml`, or the file is missing, unreadable, too large, not UTF-8, or not a mapping.
    """
    text = _read_text(Path(path), LARGEST_YAML, "Check the path.", ConfigError)
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path} must contain `key: value` lines, not a {type(content).__name__}.")
    return {str(key): value for key, value in (content or {}).items()}


def parse_yaml(text: str, source: str) -> Any:
    """Return the plain Python values of a YAML text; `source` names it in errors.

    Unlike YAML 1.1, `1e-3` is a number.

    Raises:
        ConfigError: not YAML, a key occurs twice, an integer needs more than 64 bits, or an alias (`*name`): nested
            aliases describe values of any size in a few lines.

    Example:
        >>> parse_yaml("a: [1, 1e-3]", "settings.yaml")
        {'a': [1, 0.001]}
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_YAML):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"the alias *{event.anchor} is not allowed: write its value")
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error


class _Loader(_YAML):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            _refuse_repeated(keys)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_int(self, node: Any) -> int:
        return _in_64_bits(self.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def flatten(content: Mapping[str, Any], separator: str = ".", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names and values of nested groups, such as `("optim.lr", 0.1)`; an empty group is a value."""
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", value


def _read_text(path: Path, largest: int, fix: str, error: type[ReidError]) -> str:
    try:
        size = path.stat().st_size
        if size > largest:
            raise error(f"{path} has {size:,} bytes; at most {largest:,} are read. {fix}")
        data = path.read_bytes()
        if problem := failed_download(data):
            raise error(f"{path} {problem}")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise error(f"There is no file {path}. {fix}") from None
    except OSError as cause:
        raise error(f"Cannot read {path}: {cause.strerror}. {fix}") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not UTF-8 text (byte {cause.start}). Save it as UTF-8.") from cause


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        _refuse_repeated([key for key, _ in pairs])
    return mapping


def _refuse_repeated(keys: list[str]) -> NoReturn:
    raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")


def _integer(text: str) -> int:
    return _in_64_bits(int(text))


def _in_64_bits(value: int) -> int:
    if not -(2**63) <= value < 2**64:
        raise ValueError("an integer needs more than 64 bits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [item for items in map(_items, level) for item in items]
        if not level:
            return
    raise RecursionError


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
