"""ONNX and OpenVINO models that name files outside their folder, use XML entities, or lie about sizes."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.embedding.test_runtimes import make_onnx, make_openvino, weights, with_external_weights

OPENVINO = "OpenVINO model"
ONNX_READERS = {"ONNX model in onnxruntime": "onnxruntime", "ONNX model in OpenVINO": "openvino"}
INSTALLED = {
    reader
    for reader, package in {**ONNX_READERS, OPENVINO: "openvino"}.items()
    if importlib.util.find_spec(package) and importlib.util.find_spec("onnx")
}
"""Readers of models that work here."""

Hostile = tuple[str, str, str, bytes]


@functools.cache
def valid_models() -> dict[str, bytes]:
    """Return valid files, and `tiny.bin` of `tiny.xml`, by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if OPENVINO in INSTALLED:
            make_openvino(folder / "tiny.xml")
        make_onnx(folder / "tiny.onnx")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def model_samples() -> Iterator[tuple[str, str, bytes]]:
    """Yield reader, file name and content of valid models."""
    for reader in sorted(INSTALLED):
        file = "tiny.xml" if reader == OPENVINO else "tiny.onnx"
        yield reader, file, valid_models()[file]


def surround_model(reader: str, folder: Path) -> None:
    """Write the files that a model may refer to, inside and outside its folder."""
    if reader in INSTALLED:
        (folder / "tiny.bin").write_bytes(valid_models().get("tiny.bin", b""))
        for place in (folder, folder.parent):
            (place / "outside.bin").write_bytes(weights().tobytes())
        (folder / "outside.bin").unlink()
        (folder / "link.bin").symlink_to(folder.parent / "outside.bin")
        (folder / "three.txt").write_text("3")


def hostile_models() -> Iterator[Hostile]:
    """Yield reader, name, file name and content."""
    for reader in sorted(INSTALLED):
        if reader == OPENVINO:
            for name, content in _hostile_xml(valid_models()["tiny.xml"].decode()).items():
                yield reader, name, "tiny.xml", content.encode()
        else:
            for name, data in _external_data().items():
                yield reader, f"tensors in {name}", "tiny.onnx", data
            with tempfile.TemporaryDirectory() as folder:
                for number in (10**9, 2**62):
                    path = make_onnx(Path(folder, "tiny.onnx"), batch=number)
                    yield reader, f"batches of {number}", "tiny.onnx", path.read_bytes()


@functools.cache
def _external_data() -> dict[str, bytes]:
    """Return ONNX files whose weights are outside their folder, by place."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.onnx")
        for name, place in {
            "the parent folder": "../outside.bin",
            "a path of 150 characters": "./" * 70 + "../outside.bin",
            "a device": "/dev/zero",
            "the system": "/etc/passwd",
            "the system, by a relative path": "../" * 20 + "etc/passwd",
            "a link to another folder": "link.bin",
            "a missing file": "missing.bin",
            "a folder": ".",
        }.items():
            found[name] = with_external_weights(path, place).read_bytes()
    key, value = b"\n\x08location", b"\x12\x0e../outside.bin"
    assert key + value in found["the parent folder"]
    found["the parent folder, value first"] = found["the parent folder"].replace(key + value, value + key)
    return found


def _hostile_xml(text: str) -> dict[str, str]:
    """Return OpenVINO files with entities, absurd sizes and deep nesting, by name."""
    dim, start = "<dim>3</dim>", '<?xml version="1.0"?>\n'
    assert dim in text
    assert text.startswith(start)

    def declare(declarations: str, use: str = dim) -> str:
        return text.replace(start, f"{start}<!DOCTYPE net [{declarations}]>\n").replace(dim, use)

    laughs = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 20))
    return {
        "an entity for a size": declare('<!ENTITY three "3">', "<dim>&three;</dim>"),
        "an entity of a file": declare('<!ENTITY three SYSTEM "three.txt">', "<dim>&three;</dim>"),
        "an entity of the system": declare('<!ENTITY x SYSTEM "file:///etc/passwd">', "<dim>&x;</dim>"),
        "an entity of a device": declare('<!ENTITY x SYSTEM "file:///dev/zero">', "<dim>&x;</dim>"),
        "an entity of the network": declare('<!ENTITY x SYSTEM "http://127.0.0.1:9/x">', "<dim>&x;</dim>"),
        "nested entities": declare(laughs, "<dim>&a19;</dim>"),
        "parameter entities": declare('<!ENTITY % x SYSTEM "three.txt"><!ENTITY three "%x;">', "<dim>&three;</dim>"),
        "an included file": text.replace(
            dim, '<dim><xi:include xmlns:xi="http://www.w3.org/2001/XInclude" parse="text" href="three.txt"/></dim>'
        ),
        "100,000 levels": start + "<net>" * 100_000,
        "100,000 closed levels": start + "<net>" * 100_000 + "</net>" * 100_000,
        "weights beyond the end": text.replace('size="960"', 'size="960000000000"'),
        "weights of 10²⁴ bytes": text.replace('size="960"', f'size="{10**24}"'),
        "weights before the start": text.replace('offset="0"', 'offset="-960"'),
        "a tensor of 10¹² elements": text.replace("5, 3, 4, 4", "1000000, 1000000, 1, 1"),
        "images of 10¹² pixels": text.replace("?,3,16,8", "?,3,1000000,1000000"),
        "batches of 10⁹": text.replace("?,3,16,8", "1000000000,3,16,8"),
        "a layer of an unknown type": text.replace('type="Tanh"', 'type="Tan Hyper"'),
        "an edge to itself": text.replace('<edge from-layer="0"', '<edge from-layer="2"'),
        "no layers": start + '<net name="a" version="11"><layers></layers><edges></edges></net>',
    }
