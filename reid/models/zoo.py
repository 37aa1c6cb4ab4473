"""Published models by name: a table with the terms of each model, and the download of its files into the cache.

`zoo.yaml` next to this module has one row a model. `fetch_model(name)` returns the path of its files; everything is
verified by checksum. `REID_MODELS_URL` replaces the host of all addresses.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import ConfigDict, Field

from reid.config import NonNegative, Positive, Settings
from reid.core.atomic import write_json, write_text
from reid.core.console import console, progress_bar, warn
from reid.core.errors import DataError, ModelError, check_choice, first_line
from reid.core.locks import exclusive
from reid.core.reading import read_json, read_yaml
from reid.data.store import cache_folder

DEFAULT_MODEL = "intel-0287"
"""Embedding model that is used where one is needed and none is given."""
TABLE = Path(__file__).with_name("zoo.yaml")
_TIMEOUT = (10, 60)
_CHUNK = 1 << 13
_CARD, _RECORDED = "card.md", "recorded.json"


class ModelFile(Settings):
    """One file of a model.

    Attributes:
        url: address, pinned to a revision.
        size: in bytes; None if it is not published.
        hash: `sha256:…` or `sha384:…`; None if it is not published: the first download records its SHA-256.
    """

    url: str
    size: Positive | None = None
    hash: str | None = None

    @property
    def name(self) -> str:
        """Name of the file in the cache: the last part of the address."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


class PublishedModel(Settings):
    """Row of `zoo.yaml`.

    Attributes:
        name: of the model; the key of the row.
        kind: "embedder" (crop → embedding) or "detector" (frame → boxes).
        format: "openvino" (.xml with .bin), "torchreid" (checkpoint read by `import_model`), or another one that the
            code of that kind reads.
        files: the first one is that to open.
        architecture: network and size.
        input: size (height, width), mean, std, scale, channel_order, resize.
        output: what the network returns.
        licence: of the weights.
        trained_on: data that the weights were trained on.
        terms: of that data.
        published: scores on Market-1501 that the authors published, by metric, in percent.
        measured: scores on Market-1501 measured in this project, in percent.
        source: where the row was read.
        options: of a detector, the form of its output: `form`, `person` and `outputs` of `DetectorFormat`.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["embedder", "detector"]
    format: str
    files: tuple[ModelFile, ...]
    architecture: str
    input: dict[str, Any]
    output: str
    licence: str
    trained_on: str
    terms: str
    published: dict[str, NonNegative] = Field(default_factory=dict)
    measured: dict[str, NonNegative] = Field(default_factory=dict)
    source: str
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Folder of the files in the cache, whether they were downloaded or not."""
        return cache_folder() / "models" / self.name

    def describe_terms(self) -> str:
        """Return licence, training data and terms as one paragraph."""
        return f"Weights: {self.licence}. Trained on: {self.trained_on}. Terms of that data: {self.terms}."

    @property
    def n_bytes(self) -> int | None:
        """Size of all files; None if one is not published."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """`input` without the way of resizing: the content of the `.reid.json` file of an embedder."""
        return {key: value for key, value in self.input.items() if key != "resize"}

    def card(self) -> str:
        """Return the row as a Markdown card."""
        inputs = ", ".join(f"{key} {value}" for key, value in self.input.items())
        lines = [
            f"**Network**: {self.architecture}",
            f"**Input**: {inputs}",
            f"**Output**: {self.output}",
            f"**Licence of the weights**: {self.licence}",
            f"**Trained on**: {self.trained_on}. **Terms of that data**: {self.terms}",
            *(
                f"**Market-1501, {source}**: {', '.join(f'{metric} {value:g} %' for metric, value in scores.items())}"
                for source, scores in (("published", self.published), ("measured here", self.measured))
                if scores
            ),
            *(f"**File**: {file.url}, {file.hash or 'no published checksum'}" for file in self.files),
            f"**Source of this card**: {self.source}",
        ]
        return f"# {self.name}\n\n" + "".join(f"- {line}\n" for line in lines)


@functools.cache
def read_table(path: Path = TABLE) -> dict[str, PublishedModel]:
    """Return the rows of the table by name.

    Raises:
        ConfigError: an invalid table.
    """
    rows = read_yaml(path)
    return {name: PublishedModel.from_dict({"name": name, **row}, f"{path}: {name}") for name, row in rows.items()}


def find_model(name: str, kind: str | None = None) -> PublishedModel:
    """Return the row of a model.

    Raises:
        ConfigError: there is no such model (of that kind); the message lists the known ones.
    """
    rows = {key: row for key, row in read_table().items() if kind in (None, row.kind)}
    check_choice(f"{kind or 'published'} model", name, rows)
    return rows[name]


def default_model() -> str:
    """Return the name of the default embedding model, and print that it is used."""
    console.print(f"model: {DEFAULT_MODEL} (the default; pass --model for another)")
    return DEFAULT_MODEL


def is_published(name: str | Path) -> bool:
    """Return whether this is the name of a published model, and not that of an existing file or folder."""
    return str(name) in read_table() and not Path(name).exists()


def fetch_model(name: str, kind: str | None = None) -> Path:
    """Return the main file of a published model, after downloading what the cache does not contain.

    Files are in `<cache>/models/<name>/`, next to a card and, for OpenVINO embedders, their `.reid.json`. Each is
    verified by checksum and size on every call. An interrupted download is resumed; a file that was changed is
    downloaded again. Licence, training data and its terms are printed at the first use. One process downloads, others
    wait.

    Args:
        name: a key of `read_table()`.
        kind: "embedder" or "detector" to accept only models of that kind.

    Returns:
        Path of the first of its files; the others are next to it.

    Raises:
        ConfigError: an unknown name.
        ModelError: a file cannot be downloaded or is not the published one. The message names file, address and where
            to put it by hand.
    """
    model = find_model(name, kind)
    if any(state != "verified" for state in verify_model(model).values()):
        with exclusive(model.folder, wait=True):
            states = verify_model(model)
            for file in model.files:
                if states[file.name] == "changed":
                    warn(f"{model.folder / file.name} is not the published file. It is downloaded again.")
            _download(model, [file for file in model.files if states[file.name] != "verified"])
            verify_model(model)  # records checksums that are not published
    path = model.folder / model.files[0].name
    if not (model.folder / _CARD).exists():
        console.print(f"{name}: {model.describe_terms()}")
        with contextlib.suppress(DataError):  # a cache that is not writable
            if model.kind == "embedder" and model.format == "openvino":
                write_json(path.with_suffix(".reid.json"), model.preprocessing)
            write_text(model.folder / _CARD, model.card())
    return path


def verify_model(model: PublishedModel) -> dict[str, str]:
    """Return the state of each file in the cache by its name: "verified", "changed" or "missing".

    A file without a published checksum is compared with the checksum that was recorded when it was first seen.
    """
    states = {}
    for file in model.files:
        path = model.folder / file.name
        if not path.is_file():
            states[file.name] = "missing"
            continue
        expected = _checksum(model, file) or _record(model, path)
        is_right = file.size in (None, path.stat().st_size) and _digest(path, expected.partition(":")[0]) == expected
        states[file.name] = "verified" if is_right else "changed"
    return states


def _digest(path: Path, algorithm: str) -> str:
    import pooch

    return f"{algorithm}:{pooch.file_hash(str(path), algorithm)}"


def _recorded(model: PublishedModel) -> dict[str, str]:
    path = model.folder / _RECORDED
    return read_json(path, "Remove it.", ModelError) if path.is_file() else {}


def _checksum(model: PublishedModel, file: ModelFile) -> str | None:
    return file.hash or _recorded(model).get(file.name)


def _record(model: PublishedModel, path: Path) -> str:
    """Record and report the checksum of a file that has no published one."""
    found = _digest(path, "sha256")
    warn(f"{model.name}: no checksum of {path.name} is published. Recorded for later use: {found}")
    with contextlib.suppress(DataError):  # a cache that is not writable
        write_json(model.folder / _RECORDED, {**_recorded(model), path.name: found})
    return found


def _address(file: ModelFile) -> str:
    mirror, parts = os.environ.get("REID_MODELS_URL", ""), urlsplit(file.url)
    return f"{mirror.rstrip('/')}{parts.path}" if mirror else file.url


def _download(model: PublishedModel, files: Sequence[ModelFile]) -> None:
    """Download files into the cache, and verify them.

    Raises:
        ModelError: one cannot be downloaded, or is not the published one.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    for number, file in enumerate(files):
        url, path, checksum = _address(file), model.folder / file.name, _checksum(model, file)
        part = path.with_name(f"{path.name}.part")
        receive = functools.partial(_receive, file, part)
        resumed = part.exists()
        path.unlink(missing_ok=True)
        try:
            try:
                pooch.retrieve(url, checksum, path.name, model.folder, downloader=receive)
            except ValueError:
                if not resumed:
                    raise
                part.unlink(missing_ok=True)  # its bytes may be of another version of the file
                pooch.retrieve(url, checksum, path.name, model.folder, downloader=receive)
        except (requests.RequestException, OSError, ValueError) as error:
            problem = first_line(error)
            if isinstance(error, requests.ConnectionError) and not part.exists():
                problem = "the host cannot be reached"
            by_hand = "".join(f"\n  {_address(rest)}\n    → {model.folder / rest.name}" for rest in files[number:])
            raise ModelError(
                f"Cannot download {path.name} of {model.name} from {url}: {problem}\nDownload these files on another "
                f"machine and copy them into the cache, or set REID_MODELS_URL to a mirror:{by_hand}"
            ) from error


def _receive(file: ModelFile, part: Path, url: str, output_file: str, _: object) -> None:
    """Download `url` into `output_file` for pooch, and keep what arrived in `part` if it is interrupted.

    Raises:
        ValueError: the file has another size than the published one.
        OSError: the connection failed, among them `requests.RequestException`.
    """
    import requests

    start = part.stat().st_size if part.exists() else 0
    if start == 0 or start != file.size:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
            answer.raise_for_status()
            start = start if answer.status_code == requests.codes.partial_content else 0
            left = answer.headers.get("Content-Length")
            size = start + int(left) if left else file.size
            if file.size not in (None, size):
                raise ValueError(f"it has {size:,} bytes there instead of {file.size:,}.")
            with progress_bar() as bar, open(part, "r+b" if start else "wb") as written:
                written.seek(start)
                task = bar.add_task(f"Downloading {file.name}", total=size, completed=start)
                for chunk in answer.iter_content(_CHUNK):
                    written.write(chunk)
                    bar.advance(task, len(chunk))
                    if file.size and written.tell() > file.size:
                        raise ValueError(f"it has more than {file.size:,} bytes.")
    os.replace(part, output_file)
