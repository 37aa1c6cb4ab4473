from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from reid import Embedder
from reid.core.errors import ReidError
from reid.data.crops import Crops
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint

SIZE = (64, 32)


@pytest.fixture(scope="module")
def model():
    """Untrained model whose batch-norm statistics and scales differ from their initial values."""
    model = build_model("light18", height=SIZE[0], width=SIZE[1], num_classes=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.neck.running_mean.normal_(0, 0.1, generator=generator)
        model.neck.weight.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def embedder(model):
    return Embedder(model, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven images of four sizes, in PNG because it is lossless."""
    folder = tmp_path_factory.mktemp("crops")
    for number, image in enumerate(images()):
        cv2.imwrite(str(folder / f"{number:02d}.png"), image[..., ::-1])
    return folder


def images():
    rng = np.random.default_rng(3)
    shapes = [(64, 32), (128, 64), (40, 50), (200, 90)]
    return [rng.integers(0, 256, (*shapes[number % 4], 3), dtype=np.uint8) for number in range(11)]


def paths(folder):
    return [str(folder / f"{number:02d}.png") for number in range(11)]


def close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_features_equal_single_forward_passes(embedder, model):
    at_size = np.stack([image for image in images() if image.shape[:2] == SIZE])
    got = embedder(at_size)
    assert got.dtype == np.float32
    assert got.shape == (3, model.embedding_size)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-6)
    model.eval()
    with torch.no_grad():
        for image, feature in zip(at_size, got, strict=True):
            own = model(model.preprocessing(torch.from_numpy(image)[None])).embeddings[0].numpy()
            close(feature, own / np.linalg.norm(own))


def test_flip_averages_with_the_mirrored_image(embedder, model):
    image = images()[0][None]
    model.eval()
    with torch.no_grad():
        both = [
            model(model.preprocessing(torch.from_numpy(i.copy()))).embeddings[0].numpy()
            for i in (image, image[:, :, ::-1])
        ]
    mean = np.mean(both, axis=0)
    flipping = Embedder(model, flip=True)
    close(flipping(image)[0], mean / np.linalg.norm(mean))
    close(flipping(image), flipping(np.ascontiguousarray(image[:, :, ::-1])))
    assert np.abs(flipping(image) - embedder(image)).max() > 1e-4


def test_files_crops_and_arrays_give_the_same_features(embedder, folder):
    files = embedder(paths(folder))
    crops = Crops.from_columns(paths(folder), range(11))
    close(files, embedder(images()))
    np.testing.assert_array_equal(files, embedder(crops))
    np.testing.assert_array_equal(files, embedder(crops.paths))
    np.testing.assert_array_equal(files, embedder([folder / f"{number:02d}.png" for number in range(11)]))


@pytest.mark.parametrize("batch_size", [1, 3, 11, 64], ids=lambda size: f"batches of {size}")
def test_order_does_not_depend_on_batch_size_and_threads(embedder, model, folder, batch_size):
    order = [7, 0, 3, 3, 10, 1]
    whole = embedder(images())
    other = Embedder(model, batch_size=batch_size, threads=3)
    close(other([paths(folder)[i] for i in order]), whole[order])
    close(other([images()[i] for i in order]), whole[order])


@pytest.mark.parametrize(
    "images",
    [
        pytest.param([], id="a list"),
        pytest.param(np.zeros((0, 64, 32, 3), np.uint8), id="an array"),
        pytest.param(Crops.from_columns([], []), id="crops"),
    ],
)
def test_no_images_give_no_rows(embedder, images):
    assert embedder(images).shape == (0, embedder.model.embedding_size)
    assert embedder.table(images).features.shape == (0, embedder.model.embedding_size)


def test_training_mode_of_the_model_is_restored(model, folder):
    expected = Embedder(model)(paths(folder)[:2])
    statistics = model.neck.running_mean.clone()
    model.train()
    try:
        np.testing.assert_array_equal(Embedder(model)(paths(folder)[:2]), expected)
        assert model.training
        assert torch.equal(statistics, model.neck.running_mean)
    finally:
        model.eval()


def test_checkpoint_gives_the_features_of_its_model(embedder, model, folder, tmp_path):
    save_checkpoint(tmp_path / "best.pt", model)
    loaded = Embedder(tmp_path / "best.pt", device="cpu")
    np.testing.assert_array_equal(loaded(paths(folder)), embedder(paths(folder)))
    assert loaded.describe() == embedder.describe()


def test_table_has_the_known_columns_of_crops(model, folder, tmp_path):
    embedder = Embedder(model, flip=True)
    crops = Crops.from_columns(paths(folder), np.arange(11) // 2, camids=np.arange(11) % 3, frames=np.arange(11))
    table = embedder.table(crops)
    np.testing.assert_array_equal(table.features, embedder(crops))
    assert table.pids.tolist() == crops.pids.tolist()
    assert table.camids.tolist() == crops.camids.tolist()
    assert table.frames.tolist() == crops.frames.tolist()
    assert table.tracks is None
    assert table.paths.tolist() == paths(folder)
    assert table.meta["flip"] is True
    assert table.meta["metric"] == "cosine"
    assert table.meta["dimension"] == table.dimension
    assert table.meta["preprocessing"]["size"] == list(SIZE)
    table.save(tmp_path / "t.parquet")


def test_table_of_paths_and_of_arrays(embedder, folder):
    table = embedder.table(paths(folder))
    assert table.paths.tolist() == paths(folder)
    assert table.pids is None
    assert embedder.table(images()).paths is None


def test_model_id_depends_on_weights_but_not_on_the_classifier(model):
    own = Embedder(model).describe()["model"]
    assert own.startswith("light18-")
    copy = build_model(**model.spec)
    assert Embedder(copy).describe()["model"] != own
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        copy.classifier.weight.add_(1)
    assert Embedder(copy).describe()["model"] == own
    json.dumps(Embedder(copy).describe(), allow_nan=False)


@pytest.mark.parametrize("how", ["absent", "empty", "text", "cut short"])
def test_unreadable_file_is_an_error(embedder, folder, tmp_path, how):
    bad = tmp_path / "bad.png"
    whole = (folder / "01.png").read_bytes()
    content = {"empty": b"", "text": b"not an image", "cut short": whole[: len(whole) // 2]}
    if how in content:
        bad.write_bytes(content[how])
    with pytest.raises(ReidError, match=r"bad\.png"):
        embedder([*paths(folder), str(bad)])


def test_file_that_fails_while_decoding(model, folder, tmp_path):
    bad = tmp_path / "bad.png"
    content = bytearray((folder / "01.png").read_bytes())
    content[60:600] = bytes(540)
    bad.write_bytes(content)
    some = [paths(folder)[0], str(bad), *paths(folder)[1:]]
    with pytest.raises(ReidError, match=r"bad\.png: cannot be decoded.*Repair or remove it"):
        Embedder(model, batch_size=4)(some)
    table = Embedder(model, batch_size=4).table(some, unreadable="skip")
    close(table.features, Embedder(model)(paths(folder)))
    assert table.paths.tolist() == paths(folder)
    assert len(table.meta["left_out"]) == 1


def test_unreadable_files_are_skipped_and_listed(embedder, folder, tmp_path):
    bad = tmp_path / "bad.png"
    bad.touch()
    crops = Crops.from_columns([paths(folder)[0], bad, paths(folder)[1]], [5, 6, 7])
    table = embedder.table(crops, unreadable="skip")
    assert table.pids.tolist() == [5, 7]
    np.testing.assert_array_equal(table.features, embedder(paths(folder)[:2]))
    assert len(table.meta["left_out"]) == 1
    assert str(bad) in table.meta["left_out"][0]
    assert "left_out" not in embedder.table(crops.take([0, 2]), unreadable="skip").meta


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param([np.zeros((4, 4, 3))], r"Image 0 is float64 of shape \[4, 4, 3\]", id="floats"),
        pytest.param([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)], "Image 1 .*[4, 4]", id="gray"),
        pytest.param(np.zeros((2, 4, 4, 4), np.uint8), r"shape \[4, 4, 4\]", id="four channels"),
        pytest.param(np.zeros((4, 4, 3), np.uint8), r"a list of uint8", id="one image without its N"),
        pytest.param([np.zeros((0, 4, 3), np.uint8)], r"shape \[0, 4, 3\]", id="no pixels"),
        pytest.param("a.jpg", r"as a list of paths: \['a\.jpg'\]", id="one path"),
        pytest.param(["a.jpg", np.zeros((4, 4, 3), np.uint8)], "Image 0 .*only paths", id="a path among arrays"),
    ],
)
def test_invalid_images_are_errors(embedder, given, message):
    with pytest.raises(ReidError, match=message):
        embedder(given)


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        pytest.param("torchh", r"runtime 'torchh'.*'torch'.*Known: auto, onnx, openvino", id="unknown"),
        pytest.param("onnx", r"'onnx' reads \.onnx and \.xml", id="onnx"),
        pytest.param("openvino", r"'openvino' reads \.onnx and \.xml", id="openvino"),
    ],
)
def test_runtime_must_be_known_and_fit_the_model(model, runtime, message):
    with pytest.raises(ReidError, match=message):
        Embedder(model, runtime=runtime)
    assert Embedder(model, runtime="torch").device.type == "cpu"


def test_checkpoint_accepts_no_other_preprocessing(model):
    with pytest.raises(ReidError, match="contains its preprocessing"):
        Embedder(model, preprocessing={"size": [64, 32]})


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        pytest.param(["last.pt"], "last.pt", id="only last"),
        pytest.param(["last.pt", "best.pt"], "best.pt", id="best before last"),
    ],
)
def test_run_folder_gives_its_checkpoint(model, tmp_path, names, taken):
    other = build_model(**{**model.spec, "seed": 1})
    for name in names:
        save_checkpoint(tmp_path / name, model if name == taken else other)
    loaded = Embedder(tmp_path, device="cpu")
    assert loaded.describe() == Embedder(model).describe()
    assert (loaded.dimension, loaded.preprocessing.size) == (model.embedding_size, SIZE)


def test_folder_without_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ReidError, match=r"is a folder\. Pass the checkpoint"):
        Embedder(tmp_path)


def test_embed_batch_equals_the_call(model):
    at_size = np.stack([image for image in images() if image.shape[:2] == SIZE])
    flipping = Embedder(model, flip=True)
    close(flipping.embed_batch(at_size), flipping(at_size))


@pytest.mark.slow
def test_backbone_by_name_pools_its_last_feature_map(tmp_path):
    random = Embedder("light10", weights="none", device="cpu")
    bare = build_model("light10", neck="none")
    np.testing.assert_array_equal(random(images()), Embedder(bare)(images()))
    torch.save(build_model("light10", seed=7).backbone.state_dict(), tmp_path / "w.pth")
    given = Embedder("light10", weights=tmp_path / "w.pth", device="cpu")
    np.testing.assert_array_equal(given(images()), Embedder(build_model("light10", neck="none", seed=7))(images()))
    assert given.describe()["model"] != random.describe()["model"]


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        pytest.param(
            "resnet50", None, "resnet50 is a backbone. Pass its weights: 'imagenet', a file, or 'none'", id="no"
        ),
        pytest.param("light18", "imagenet", "no ImageNet weights of light18.*Use a local file", id="unpublished"),
        pytest.param("light18", "none.pth", r"There is no file none\.pth", id="no file"),
        pytest.param(
            "resnet5",
            None,
            "no file, folder, backbone or published model 'resnet5'. Did you mean 'resnet50'",
            id="misspelt",
        ),
        pytest.param("none/best.pt", None, "no checkpoint none/best.pt", id="a path"),
        pytest.param(
            "best.pt", "none", "weights=none is only used with the name of a backbone", id="weights of a file"
        ),
        pytest.param(
            "best.onnx", "none", "weights=none is only used with the name of a backbone", id="weights of ONNX"
        ),
    ],
)
def test_invalid_model_names_are_errors(model, weights, message):
    with pytest.raises(ReidError, match=message):
        Embedder(model, weights=weights)


def test_imagenet_weights_without_a_connection_are_an_error(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(ReidError, match=r"cannot download.*https://.*no route to host.*weights=/path/to/file"):
        Embedder("resnet18", weights="imagenet")


def test_folder_takes_precedence_over_a_backbone_name(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "resnet50" / "best.pt", model)
    assert Embedder("resnet50").describe() == Embedder(model).describe()


def test_bundle_embeds_and_flips(tmp_path, monkeypatch, model):
    """Test with a stand-in for a bundle; the tests of the export use real ones."""

    class Bundle:
        model_id, dimension, size = "m-1", model.embedding_size, model.preprocessing.size
        manifest = {"preprocessing": model.preprocessing.as_dict()}  # noqa: RUF012

        def embed(self, images):
            return model.embed(torch.from_numpy(np.ascontiguousarray(images))).numpy()

    asked = []
    monkeypatch.setattr(
        "reid.embedding.embedder.open_bundle", lambda *args, **options: asked.append((*args, options)) or Bundle()
    )
    (tmp_path / "bundle.json").write_text("{}")
    plain = Embedder(tmp_path, threads=3)
    assert asked == [(tmp_path, "auto", 3, "cpu", {"trust": False})]
    assert plain.describe() == Embedder(model).describe() | {"model": "m-1"}
    close(plain(images()), Embedder(model)(images()))
    mirrored = [np.ascontiguousarray(image[:, ::-1]) for image in images()]
    both = plain(images()) + plain(mirrored)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(Embedder(tmp_path, flip=True)(images()), both, atol=2e-6)
    with pytest.raises(ReidError, match="contains its preprocessing"):
        Embedder(tmp_path, preprocessing={"size": [64, 32]})


def test_folder_is_searched_with_subfolders_in_sorted_order(embedder, folder, tmp_path, capsys):
    for number, name in enumerate(["b/2.png", "a/10.PNG", "a/ü/1.png", "c.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((folder / f"{number:02d}.png").read_bytes())
    (tmp_path / "notes.txt").touch()
    (tmp_path / "a" / ".hidden.png").touch()
    order = ["a/10.PNG", "a/ü/1.png", "b/2.png", "c.png"]
    table = embedder.table(tmp_path)
    assert table.paths.tolist() == [str(tmp_path / name) for name in order]
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 5 entries were passed over: 1 × another type of file (notes.txt)" in printed
    np.testing.assert_array_equal(table.features, embedder(str(tmp_path)))
    close(embedder([tmp_path / "c.png", tmp_path / "a"]), table.features[[3, 0, 1]])


def saved(path, image, **options):
    Image.fromarray(image).save(path, **options) if isinstance(image, np.ndarray) else image.save(path, **options)
    return str(path)


def rotated_exif():
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90° for display"
    return exif


SMOOTH = cv2.resize(np.random.default_rng(1).integers(0, 256, (8, 4, 3), dtype=np.uint8), (32, 64))
GRAY = np.asarray(Image.fromarray(SMOOTH).convert("L"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image", "options", "meant", "likeness"),
    [
        pytest.param("g.png", GRAY, {}, np.dstack([GRAY] * 3), 1, id="gray: repeated over three channels"),
        pytest.param("g.jpg", GRAY, {"quality": 100}, np.dstack([GRAY] * 3), 0.999, id="gray JPEG"),
        pytest.param("a.png", np.dstack([SMOOTH, GRAY]), {}, SMOOTH, 1, id="RGBA: alpha is dropped"),
        pytest.param(
            "p.png", Image.fromarray(SMOOTH // 64 * 64).quantize(256), {}, SMOOTH // 64 * 64, 0.99, id="palette"
        ),
        pytest.param("c.jpg", Image.fromarray(SMOOTH).convert("CMYK"), {"quality": 100}, SMOOTH, 0.99, id="CMYK JPEG"),
        pytest.param("c.tif", Image.fromarray(SMOOTH).convert("CMYK"), {}, SMOOTH, 1, id="CMYK TIFF"),
        pytest.param("w.tif", GRAY.astype(np.uint16) * 257, {}, np.dstack([GRAY] * 3), 1, id="16 bits: the upper 8"),
        pytest.param(
            "e.jpg", SMOOTH, {"quality": 100, "exif": rotated_exif()}, SMOOTH, 0.99, id="EXIF: as stored, not rotated"
        ),
        pytest.param("b.bmp", SMOOTH, {}, SMOOTH, 1, id="BMP"),
    ],
)
def test_image_formats_are_read_as_rgb(embedder, tmp_path, name, image, options, meant, likeness):
    got = embedder([saved(tmp_path / name, image, **options)])[0]
    assert got @ embedder([np.ascontiguousarray(meant)])[0] >= likeness - 1e-6


def test_sixteen_bit_colour_keeps_the_upper_eight_bits(embedder, tmp_path):
    cv2.imwrite(str(tmp_path / "w.png"), SMOOTH[..., ::-1].astype(np.uint16) * 257)
    close(embedder([tmp_path / "w.png"]), embedder([SMOOTH]))


def test_decompression_bomb_is_rejected_by_its_header(embedder, folder, tmp_path):
    bomb = bytearray((folder / "00.png").read_bytes())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bomb)
    some = [paths(folder)[0], str(tmp_path / "bomb.png"), paths(folder)[1]]
    with pytest.raises(ReidError, match=r"1 of 3 images cannot be read:\n.*bomb\.png: has 60000×60000 pixels"):
        embedder(some)
    table = embedder.table(some, unreadable="skip")
    assert table.paths.tolist() == [some[0], some[2]]
    assert table.meta["left_out"] == [
        f"{some[1]}: has 60000×60000 pixels; more than 50,000,000 is too large for a crop"
    ]
    with pytest.raises(ReidError, match="Unknown value of unreadable 'maybe'"):
        embedder.table(some, unreadable="maybe")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps"])
def test_unavailable_device_is_an_error(model, device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has an Apple GPU")
    with pytest.raises(ReidError, match=device):
        Embedder(model, device=device)


@pytest.mark.parametrize("content", [None, b"not a checkpoint"])
def test_invalid_checkpoint_is_an_error(tmp_path, content):
    path = tmp_path / "best.pt"
    if content:
        path.write_bytes(content)
    with pytest.raises(ReidError, match=r"best\.pt"):
        Embedder(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"batch_size": 0}, "batch_size must be 1 or more; got 0", id="no batch"),
        pytest.param({"batch_size": -1}, "batch_size must be 1 or more; got -1", id="a negative batch"),
        pytest.param({"threads": -1}, "threads .* must be 0 or more; got -1", id="negative threads"),
        pytest.param(
            {"weights": "none"}, "weights=none is only used with the name of a backbone", id="weights of a model"
        ),
    ],
)
def test_numbers_out_of_range_are_errors(model, options, message):
    with pytest.raises(ReidError, match=message):
        Embedder(model, **options)


def test_nan_output_is_an_error(model, folder):
    broken = build_model(**model.spec)
    with torch.no_grad():
        broken.neck.weight[0] = torch.nan
    with pytest.raises(ReidError, match=r"NaN or infinity for 2 of 2 images, the first .*00\.png"):
        Embedder(broken)(paths(folder)[:2])


def test_random_number_generators_are_not_used(model, folder):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    Embedder(model, flip=True)(paths(folder))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_embeddings_do_not_import_torch():
    code = "import sys; import reid; reid.Embeddings([[1.0]]); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert ran.stdout.strip() == "False"
