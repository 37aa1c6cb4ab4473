"""Settings of a gallery and the description of its model, stored in gallery.json."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict

from reid.config import Settings
from reid.core.atomic import write_json
from reid.core.errors import DataError, ModelError
from reid.core.reading import read_json
from reid.gallery.milvus_store import parse_address
from reid.gallery.rows import FORMAT
from reid.gallery.times import time_zone

FILE = "gallery.json"
KIND = "reid gallery"

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}

MODEL_KEYS = {
    "model": "model",
    "preprocessing_hash": "preprocessing",
    "learned_metric": "learned metric",
    "dimension": "dimension",
    "metric": "metric",
}
"""Keys of `Embeddings.meta` that a gallery stores, and their names in messages."""


def parse_duration(text: str) -> timedelta:
    """Return the duration of a text such as 36h, 30d or 4w.

    Raises:
        ValueError: another text.

    Example:
        >>> parse_duration("36h").total_seconds()
        129600.0
    """
    match = re.fullmatch(r"([1-9]\d{0,4})([hdw])", text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 36h, 30d or 4w")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _check_duration(text: str) -> str:
    parse_duration(text)
    return text


def _check_address(address: str) -> str:
    parse_address(address)
    return address


def _check_zone(name: str) -> str:
    time_zone(name)
    return name


class GallerySettings(Settings):
    """Rules of a gallery for additions and searches."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    zone: Annotated[str, AfterValidator(_check_zone)] = "UTC"
    """Time zone of times without an offset, and of printed times, e.g. Europe/Berlin."""
    retention: Annotated[str, AfterValidator(_check_duration)] | None = None
    """Keep a tracklet this long after its end (after its addition, if its time is unknown): e.g. 36h, 30d or 4w."""
    pictures: Literal["keep", "pixelate", "none"] = "keep"
    """Pictures of crops: keep, pixelate (heads; paths are not stored), or none."""
    require_purpose: bool = False
    """Refuse searches without a purpose."""
    audit: bool = True
    """Record searches and erasures in audit.jsonl."""
    store: Annotated[str, AfterValidator(_check_address)] | None = None
    """Milvus server and collection of the rows: milvus://host:19530/name. By default they are in the folder."""

    @property
    def retention_ms(self) -> int | None:
        """Retention in milliseconds; None: for ever."""
        return None if self.retention is None else round(parse_duration(self.retention) / timedelta(milliseconds=1))


class GalleryFile:
    """Content of gallery.json.

    Attributes:
        settings: of the gallery.
        salt: of the hashes of erased tracklets.
        model: what the features are of, by `MODEL_KEYS`; None until something is added.
        format: of the stored rows, at most `rows.FORMAT`.
    """

    def __init__(
        self, settings: GallerySettings, salt: bytes, model: dict[str, Any] | None = None, format: int = FORMAT
    ) -> None:
        self.settings, self.salt, self.model, self.format = settings, salt, model, format

    @classmethod
    def new(cls, settings: GallerySettings) -> GalleryFile:
        """Return the content for a new gallery."""
        return cls(settings, secrets.token_bytes(16))

    @classmethod
    def read(cls, folder: Path) -> GalleryFile:
        """Read the file of a folder.

        Raises:
            DataError: missing, damaged, or of another format.
        """
        path = folder / FILE
        content = read_json(path, "Create a gallery with `reid gallery create`.")
        if content.get("kind") != KIND:
            raise DataError(f"{path} is not of a gallery: its kind is {content.get('kind')!r}. Check the path.")
        number = content.get("format")
        if type(number) is not int or not 1 <= number <= FORMAT:
            text = f"{folder} has format {number!r}; this version reads 1 to {FORMAT}. Install a newer version."
            raise DataError(text)
        try:
            salt, model = bytes.fromhex(content["salt"]), content["model"]
            if not isinstance(model, dict | None):
                raise ValueError("model")
            return cls(GallerySettings.from_dict(content["settings"], str(path)), salt, model, number)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged: {error}. Restore it from a copy.") from error

    @property
    def owner(self) -> str:
        """Text that identifies the gallery, without its salt."""
        return f"reid gallery {hashlib.blake2b(b'owner', key=self.salt, digest_size=8).hexdigest()}"

    def write(self, folder: Path) -> None:
        """Write the file, completely or not at all."""
        content = {"settings": self.settings.as_dict(), "salt": self.salt.hex(), "model": self.model}
        write_json(folder / FILE, {"kind": KIND, "format": self.format, **content})

    def check_fits(self, meta: Mapping[str, Any], dimension: int, subject: str, gallery: str) -> None:
        """Raise an error if features cannot be compared with those of the gallery.

        Raises:
            ModelError: naming the first property that differs, and both values.
        """
        given = describe_model(meta, dimension)
        if given["metric"] != "cosine":
            raise ModelError(
                f"{subject}: the features are for the metric {given['metric']!r}, but a gallery compares by cosine. "
                "Use a model whose features are compared by cosine."
            )
        for key, name in MODEL_KEYS.items() if self.model is not None else ():
            stored, other = (self.model or {}).get(key), given.get(key)
            is_optional = key in ("model", "preprocessing_hash")  # unknown in embeddings of other programs
            if stored != other and not (is_optional and None in (stored, other)):
                raise ModelError(
                    f"{subject} does not fit {gallery}: {name} {other!r} instead of {stored!r}. Embed with the model "
                    f"of the gallery, or create another gallery."
                )


def describe_model(meta: Mapping[str, Any], dimension: int) -> dict[str, Any]:
    """Return what a gallery stores about the model of features."""
    known = {key: meta.get(key) for key in MODEL_KEYS}
    return {**known, "dimension": dimension, "metric": meta.get("metric") or "cosine"}
