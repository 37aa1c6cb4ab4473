from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reid.core.errors import ConfigError, ModelError
from reid.embedding.bundle import RuntimeFailure, onnx_session
from reid.tracking import DETECTORS, open_detector
from reid.tracking.detectors import files
from reid.tracking.detectors.detector import MOST_BOXES, clean_boxes
from tests.embedding.test_runtimes import with_external_weights
from tests.tracking.toys import FULL, SIZE, boxes_at, describe, picture, save_onnx, toy_detector


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_detector(tmp_path_factory.mktemp("toy") / "toy.onnx")


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_a_file_finds_people_in_every_runtime(toy: Path, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "installed", lambda name: name == runtime)
    detector = open_detector(toy, "cpu", threads=1)
    images = [picture(1, people=2), picture(9), np.zeros((SIZE[1], SIZE[0], 3), np.uint8)]
    found = detector(images)
    assert sorted(map(tuple, found[0][:, :4].tolist())) == sorted(boxes_at(1, 2))
    assert found[1][:, :4].tolist() == [list(boxes_at(9)[0])]
    assert (found[1][:, 4] > 0.99).all()
    assert len(found[2]) == 0


def test_boxes_are_in_pixels_of_a_frame_of_any_size(toy: Path) -> None:
    large = np.kron(picture(1), np.ones((6, 4, 1), np.uint8))
    x, y, w, h = boxes_at(1)[0]
    assert open_detector(toy)([large])[0][:, :4].tolist() == [[4 * x, 6 * y, 4 * w, 6 * h]]


def test_letterbox_keeps_the_shape_of_the_frame(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.onnx").write_bytes(toy.read_bytes())
    describe(tmp_path / "toy.onnx", {"form": "yolo", "resize": "letterbox", **FULL})
    wide = np.concatenate([picture(1), np.full((SIZE[1], SIZE[0], 3), 20, np.uint8)], axis=1)
    double = np.kron(wide, np.ones((2, 1, 1), np.uint8))[: SIZE[1]]
    assert open_detector(tmp_path / "toy.onnx")([picture(1)])[0][:, :4].tolist() == [list(boxes_at(1)[0])]
    assert double.shape[1] == 2 * SIZE[0]
    assert len(open_detector(tmp_path / "toy.onnx")([wide])[0]) == 0  # people are half as large in the input


PERSON, CAR = [10, 20, 30, 60], [50, 10, 90, 40]  # corners
FRACTIONS = (np.array([PERSON, CAR]) / [*SIZE, *SIZE]).tolist()
CENTRES = [[20, 40, 20, 40], [70, 25, 40, 30]]
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ssd": (
        {"person": 1},
        {"out": [[[[0, 1, 0.9, *FRACTIONS[0]], [0, 2, 0.8, *FRACTIONS[1]], [-1, 0, 0, 0, 0, 0, 0]]]]},
    ),
    "boxes": ({}, {"boxes": [[*PERSON, 0.9], [*CAR, 0.8]], "labels": [0, 1]}),
    "corners": ({"person": 1}, {"boxes": [[PERSON, CAR]], "scores": [[0.9, 0.8]], "labels": [[1, 3]]}),
    "detr": (
        {"person": 1},
        {
            "boxes": (np.array([CENTRES]) / [*SIZE, *SIZE]).tolist(),
            "logits": [[[-9, np.log(9)], [9, -9]]],
        },
    ),
    "yolo": (
        {},
        {"out": [np.array([[*CENTRES[0], 0.9, 0.0], [*CENTRES[0], 0.8, 0], [*CENTRES[1], 0, 0.8]]).T.tolist()]},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_output_is_decoded(tmp_path: Path, form: str) -> None:
    """The network adds 0 × its input to constant outputs."""
    from onnx import helper

    keys, outputs = FORMS[form]
    arrays = {name: np.asarray(values, np.float32) for name, values in outputs.items()}
    if form == "yolo":
        arrays["out"] = np.concatenate(
            [arrays["out"], np.zeros((1, 6, 17), np.float32)], axis=2
        )  # more boxes than rows
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    nodes += [helper.make_node("Add", [f"{name}_values", "nothing"], [name]) for name in arrays]
    constants = {"zero": np.float32(0), **{f"{name}_values": values for name, values in arrays.items()}}
    shapes = {name: list(values.shape) for name, values in arrays.items()}
    path = describe(save_onnx(tmp_path / "net.onnx", nodes, shapes, constants), {"form": form, **FULL, **keys})
    found = open_detector(path)([np.zeros((2 * SIZE[1], SIZE[0], 3), np.uint8)])
    assert found[0].round(3).tolist() == [[10, 40, 20, 80, 0.9]]


def test_boxes_without_area_or_confidence_are_dropped() -> None:
    corners = np.array([[0, 0, 10, 20], [0, 0, 0, 20], [0, 0, np.nan, 20], [5, 5, 9, 9], [0, 0, np.inf, 1]], float)
    assert clean_boxes(corners, np.array([0.5, 0.9, 0.9, 0.01, 0.9]), 0.02).tolist() == [[0, 0, 10, 20, 0.5]]
    many = np.tile([0.0, 0, 10, 20], (MOST_BOXES + 5, 1))
    kept = clean_boxes(many, np.linspace(0.1, 0.9, len(many)), 0.02)
    assert (len(kept), kept[0, 4] > 0.1, kept[-1, 4]) == (MOST_BOXES, True, 0.9)


def test_another_file_or_description_has_another_name(toy: Path, tmp_path: Path) -> None:
    names = {open_detector(toy).name, open_detector(toy_detector(tmp_path / "toy.onnx", bias=0.8)).name}
    describe(tmp_path / "toy.onnx", {"form": "yolo", **FULL, "channel_order": "bgr"})
    assert len({*names, open_detector(tmp_path / "toy.onnx").name}) == 3


def test_errors_name_the_file_and_the_fix(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown detector 'intel-adas-002'\. Did you mean 'intel-adas-0002'"):
        open_detector("intel-adas-002")
    with pytest.raises(ModelError, match=r"There is no detector .*none.onnx"):
        open_detector(tmp_path / "none.onnx")
    path = tmp_path / "toy.onnx"
    path.write_bytes(toy.read_bytes())
    with pytest.raises(ConfigError, match=r"toy.reid.json.*Create toy.reid.json with the keys form, mean"):
        open_detector(path)
    describe(path, {"form": "yola", **FULL})
    with pytest.raises(ConfigError, match=r"form=.yola. in .*toy.reid.json"):
        open_detector(path)
    describe(path, {"form": "yolo", "outputs": ["fund"], **FULL})
    with pytest.raises(ConfigError, match=r"has no output .fund.\. Did you mean .found."):
        open_detector(path)
    describe(path, {"form": "detr", **FULL})
    with pytest.raises(ConfigError, match=r"gives outputs \[1, 5, 493\], which are not of the form 'detr'"):
        open_detector(path)([picture(1)])
    path.write_bytes(toy.read_bytes()[:300])
    describe(path, {"form": "yolo", **FULL})
    with pytest.raises(ModelError, match="damaged or too new"):
        open_detector(path)
    (tmp_path / "net.xml").write_text("<net/>")
    describe(tmp_path / "net.xml", {"form": "ssd", **FULL})
    with pytest.raises(ModelError, match=r"no file .*net.bin"):
        open_detector(tmp_path / "net.xml")


def test_a_gpu_needs_an_onnx_file_and_a_runtime(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, threads: int, device: str) -> None:
        raise RuntimeFailure(f"no {device}.")

    monkeypatch.setattr(files, "onnx_session", refuse)
    with pytest.raises(ConfigError, match="cannot be opened: no cuda:1"):
        open_detector(toy, "cuda:1")
    monkeypatch.setattr(files, "installed", lambda name: False)
    with pytest.raises(ModelError, match=r"pip install 'reid-toolkit\[video\]'"):
        open_detector(toy)


def test_the_number_of_the_gpu_is_passed_on(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def record(path: str, options: Any, providers: list[Any]) -> None:
        asked.extend(providers)

    asked: list[Any] = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    for device in ("cuda", "cuda:1"):
        onnx_session(toy, 1, device)
    assert asked == [("CUDAExecutionProvider", {}), ("CUDAExecutionProvider", {"device_id": "1"})]


def test_published_detectors_are_fetched_and_described(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reid.models import zoo

    opened = []
    monkeypatch.setattr(zoo, "fetch_model", lambda name, kind: toy)
    monkeypatch.setattr(files, "FileDetector", lambda path, form, device, threads: opened.append((path, form)))
    for name in (name for name, module in DETECTORS.items() if module == "files"):
        open_detector(name)
    (path, adas), (_, other) = opened
    assert path == toy
    assert (adas.form, adas.person, adas.size, adas.channel_order) == ("ssd", 1, (384, 672), "bgr")
    assert (other.form, other.outputs, other.scale) == ("boxes", ("boxes",), "0-255")


@pytest.mark.slow
def test_torchvision_models_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import torchvision.models as models

    real = models.get_model
    asked = []

    def untrained(name: str, weights: Any, **options: Any) -> Any:
        asked.append((name, weights, options))
        return real(name, weights=None, weights_backbone=None, **options)

    monkeypatch.setattr(models, "get_model", untrained)
    torch.manual_seed(0)
    detector = open_detector("ssdlite320_mobilenet_v3_large", "cpu", threads=1)
    found = detector([picture(1)])
    assert found[0].shape[1] == 5
    assert "COCO" in str(type(asked[0][1]).COCO_V1)
    assert asked[0][2] == {"score_thresh": 0.02}
    assert detector.name.startswith("ssdlite320_mobilenet_v3_large-")

    def offline(name: str, **options: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(ModelError, match=r"cannot be downloaded from https://.*no network"):
        open_detector("fasterrcnn_resnet50_fpn_v2", "cpu")


@pytest.fixture(scope="module")
def d_fine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny D-FINE with random weights, as the hub stores it."""
    import torch
    from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config, RTDetrImageProcessor

    torch.manual_seed(0)
    four = [1, 1, 1, 1]
    backbone = HGNetV2Config(
        embedding_size=8, depths=four, hidden_sizes=[8, 16, 16, 16], stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 16, 16], stage_mid_channels=[8, 8, 8, 8], stage_out_channels=[8, 16, 16, 16],
        stage_num_blocks=four, stage_downsample=[False, True, True, True], stage_light_block=[False] * 4,
        stage_kernel_size=[3, 3, 3, 3], stage_numb_of_layers=four, out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = DFineConfig(
        backbone_config=backbone, encoder_in_channels=[16] * 3, encoder_hidden_dim=16, encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, num_queries=20, decoder_in_channels=[16] * 3, decoder_ffn_dim=16,
        decoder_layers=2, decoder_attention_heads=2, num_denoising=0, id2label={0: "car", 1: "person"},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("hub") / "dfine"
    DFineForObjectDetection(config).save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_models_of_transformers_find_what_they_find_alone(d_fine: Path) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    detector = open_detector(f"transformers:{d_fine}", "cpu", threads=1)
    found = detector([picture(1), picture(2)])
    processor, model = (one.from_pretrained(d_fine) for one in (AutoImageProcessor, AutoModelForObjectDetection))
    for image, boxes in zip([picture(1), picture(2)], found, strict=True):
        with torch.inference_mode():
            output = model.eval()(**processor(images=image, return_tensors="pt"))
        scores = output.logits.sigmoid()[0, :, 1]
        x, y, w, h = (output.pred_boxes[0].double() * torch.tensor([*SIZE, *SIZE])).T
        expected = clean_boxes(
            torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1).numpy(), scores.double().numpy(), 0.02
        )
        assert len(boxes) > 0
        assert {tuple(row) for row in boxes.round(2).tolist()} <= {tuple(row) for row in expected.round(2).tolist()}
    assert detector.name.startswith("dfine-")
    assert open_detector(f"transformers:{d_fine}", "cpu").name == detector.name


@pytest.mark.slow
def test_d_fine_by_name_is_read_from_the_cache_of_models(
    d_fine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REID_CACHE", str(tmp_path))
    shutil.copytree(d_fine, tmp_path / "models" / "dfine-l")
    detector = open_detector("dfine-l", "cpu", threads=1)
    assert "no checksum of model.safetensors is published" in capsys.readouterr().out
    boxes = detector([picture(1)])[0]
    assert np.array_equal(boxes, open_detector(f"transformers:{d_fine}", "cpu", threads=1)([picture(1)])[0])
    assert detector.name.startswith("dfine-l-")
    with open(tmp_path / "models" / "dfine-l" / "config.json", "a") as file:
        file.write(" ")
    monkeypatch.setenv("REID_MODELS_URL", "http://127.0.0.1:9")
    with pytest.raises(
        ModelError, match=r"(?s)Cannot download config\.json of dfine-l.*ustc-community/dfine-large-coco"
    ):
        open_detector("dfine-l", "cpu")


@pytest.mark.slow
def test_models_of_transformers_that_cannot_be_used_are_errors(
    d_fine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"transformers:.*none cannot be opened: .*pass transformers:FOLDER"):
        open_detector(f"transformers:{tmp_path}/none")
    shutil.copytree(d_fine, tmp_path / "cars")
    config = json.loads((d_fine / "config.json").read_text())
    (tmp_path / "cars/config.json").write_text(json.dumps(config | {"id2label": {"0": "car", "1": "bus"}}))
    with pytest.raises(ConfigError, match="has no class 'person'"):
        open_detector(f"transformers:{tmp_path}/cars", "cpu")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'reid-toolkit\[transformers\]'"):
        open_detector("transformers:ustc-community/dfine-small-coco")


@pytest.mark.slow
def test_the_package_imports_without_torch_and_trackers() -> None:
    import subprocess

    code = "import reid.tracking, sys; print({'torch', 'trackers', 'supervision', 'openvino'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    code = "import reid.pipelines.track, reid.models.zoo, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", "processes that track start twice as fast without torch"


@pytest.mark.parametrize("place", ["../weights.bin", "/ABSOLUTE/weights.bin"])
def test_tensors_outside_the_folder_of_a_detector_are_refused(toy: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "inside").mkdir()
    path = with_external_weights(tmp_path / "inside/toy.onnx", place.replace("/ABSOLUTE", str(tmp_path)))
    shutil.copy(toy.with_suffix(".reid.json"), path.parent)
    with pytest.raises(ModelError, match=r"stores tensors in .*, outside its folder"):
        open_detector(path)
