"""Any content of a JSON or YAML file gives a value, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from reid.config import Config, load_config
from reid.core.errors import ConfigError, DataError, ReidError
from reid.core.reading import DEEPEST, parse_json, parse_yaml, read_json, read_yaml

JSON = {
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deeper than allowed": (b"[" * (DEEPEST + 2) + b"]" * (DEEPEST + 2), "nested too deeply"),
    "5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "4300"),
    "65 bits": (b'{"a": 36893488147419103232}', "64 bits"),
    "infinite": (b'{"a": 1e999}', "1e999 is not a finite number"),
    "NaN": (b'{"a": NaN}', "NaN is not a finite number"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8"),
    "key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' occurs twice"),
    "cut": (b'{"a": ', "line 1"),
    "empty": (b"", "cannot be read as JSON"),
    "list": (b"[1]", "one JSON object"),
}
BOMB = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in b"bcdefghijklmnopq")
YAML = {
    "deep": (b"[" * 100_000, "nesting depth"),
    "deeper than allowed": (b"[" * (DEEPEST + 2) + b"]" * (DEEPEST + 2), "levels deep"),
    "5000 digits": (b"a: " + b"9" * 5000, "4300"),
    "5000 hexadecimal digits": (b"a: 0x" + b"f" * 5000, "64 bits"),
    "impossible date": (b"a: 2001-99-99", "month"),
    "not UTF-8": (b"a: \xff", "not UTF-8"),
    "control character": (b"a: \x00", "not valid YAML"),
    "key twice": (b"a: 1\nb: {c: 1, c: 2}", "'c' occurs twice"),
    "Python object": (b"a: !!python/object/apply:os.system ['true']", "not valid YAML"),
    "alias bomb": (BOMB, r"alias \*a is not allowed"),
    "list": (b"[1]", "`key: value`"),
}  # fmt: skip


@pytest.mark.parametrize("name", JSON)
def test_invalid_json_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    content, message = JSON[name]
    path = tmp_path / "found.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"found\.json.*{message}"):
        read_json(path)


@pytest.mark.parametrize("name", YAML)
def test_invalid_yaml_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    content, message = YAML[name]
    path = tmp_path / "found.yaml"
    path.write_bytes(content)
    for read in (read_yaml, load_config):
        with pytest.raises(ConfigError, match=rf"(?s)found\.yaml.*{message}"):
            read(path)


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_unreadable_files_are_errors(tmp_path: Path, read, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReidError, match="There is no file"):
        read(tmp_path / "missing")
    with pytest.raises(ReidError, match="Is a directory"):
        read(tmp_path)
    path = tmp_path / "large"
    path.write_text("{}")
    assert read(path) == {}
    for name in ("LARGEST_JSON", "LARGEST_YAML"):
        monkeypatch.setattr(f"reid.core.reading.{name}", 1)
    with pytest.raises(ReidError, match="has 2 bytes; at most 1 are read"):
        read(path)


def test_ordinary_values_are_kept() -> None:
    assert parse_json(b'{"a": [1, -2.5, null, "\\u00fc"]}', "x") == {"a": [1, -2.5, None, "ü"]}
    assert parse_json('{"loss": NaN}', "x", allow_nan=True)["loss"] != 0
    assert parse_yaml("a: [1, 1e-3, 0x10, null, .inf]\nb: {}", "x") == {"a": [1, 1e-3, 16, None, float("inf")], "b": {}}


@pytest.mark.parametrize("text", ["market1501:/x/a #h/data", "market1501:/x/a: b", "market1501:/x/${HOME}", "12", "~"])
def test_paths_and_names_in_overrides_are_text_and_not_yaml(text: str, tmp_path: Path) -> None:
    config = load_config(None, [f"data.train={text}", f"data.store_dir={text}", f"model.weights={text}"])
    assert (config.data.train, config.data.store_dir, config.model.weights) == ([text], text, text)
    saved = tmp_path / "config.yaml"
    from reid.config import save_settings

    save_settings(config, saved)
    assert load_config(saved) == config


def test_lists_in_brackets_and_other_values_of_overrides_are_yaml() -> None:
    config = load_config(None, ["data.train=[market1501:/a, msmt17:/b]", "loss.margin=null", "data.store_dir="])
    assert (config.data.train, config.loss.margin, config.data.store_dir) == (["market1501:/a", "msmt17:/b"], None, "")
    with pytest.raises(ConfigError, match=r"data\.train"):
        load_config(None, ["data.train=[market1501:/a #h]"])


def test_environment_variables_in_settings_files_are_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data: {train: '${oc.env:HOME}', store_dir: '${HOME}'}\n")
    assert load_config(path).data.train == ["${oc.env:HOME}"]
    assert load_config(path).data.store_dir == "${HOME}"


def test_errors_show_the_beginning_of_long_values() -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_dict({"seed": "x" * 100_000})
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"\n<!DOCTYPE html><html>", "is a web page: .*Download the file again", id="a web page"),
        pytest.param(b"\xef\xbb\xbf<HTML>404", "is a web page", id="a web page with a byte order mark"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS.*git lfs pull", id="LFS"
        ),
    ],
)
def test_failed_downloads_are_named_by_every_reader(tmp_path, content, message):
    from reid.data.images import decode
    from reid.embedding import Embeddings
    from reid.mtmc import read_tracks

    for name, read in {
        "a.json": read_json, "a.yaml": read_yaml, "a.parquet": Embeddings.load, "a.txt": read_tracks, "a.jpg": decode
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ReidError, match=message):
            read(tmp_path / name)
