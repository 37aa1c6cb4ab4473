"""Every benchmark has the same command style, and is listed in benchmarks/README.md."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import benchmarks
from benchmarks.measure import Benchmark

FOLDER = Path(benchmarks.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "measure"))


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_is_a_click_command_with_help(name: str) -> None:
    command = importlib.import_module(f"benchmarks.{name}").main
    assert isinstance(command, Benchmark), "the class prints the processor"
    done = CliRunner().invoke(command, ["--help"])
    assert done.exit_code == 0
    assert command.help


def test_readme_lists_every_benchmark() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    assert [name for name in NAMES if f"`{name}`" not in text] == []


SMALL = ["--size", "small", "--dimension", "8", "--runs", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "printed"),
    [
        ("loader", ["--epochs", "1", "--crops", "256"], "crops a second"),
        ("matching_scale", ["--boxes", "2000", "--cameras", "2"], "IDF1"),
        ("matching_growth", ["100"], "| 100 | agglomerative |"),
        ("ranking", SMALL, "of the product"),
        ("reranking", SMALL, "of the sparse one"),
        ("losses", ["--size", "16", "--dimension", "8", "--runs", "1"], "batch-hard reid"),
        ("gallery_speed", ["--rows", "300", "--dimension", "8", "--repeats", "1"], "search: NumPy"),
        ("matching_grid", ["--people", "4", "--layout", "1 camera"], "| **all** | 8 |"),
        ("self_calibration", ["--people", "4"], "2 cameras, overlap 1, 4 people, no appearance"),
        ("long_runs", ["--calls", "1", "--tracklets", "600"], "600 tracklets online: "),
        ("gradient_cache", ["--ids", "4", "--chunks", "0,8", "--repeats", "1", "--threads", "1"], "| chunks of 8 |"),
    ],
)
def test_benchmark_runs_on_a_small_input(
    name: str,
    arguments: list[str],
    printed: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "gallery_speed":
        pytest.importorskip("lancedb")
    module = importlib.import_module(f"benchmarks.{name}")
    if name != "ranking":  # a process for each peak takes seconds
        monkeypatch.setattr(module, "peak_above_inputs", _run_here, raising=False)
    if name == "self_calibration":
        monkeypatch.setattr(module, "LAYOUTS", ("2 cameras, overlap 1",))
    if name == "long_runs" and sys.platform != "linux":
        pytest.skip("reads /proc")
    module.main.main(arguments, standalone_mode=False)
    out = capfd.readouterr().out
    assert out.startswith("Processor: ")
    assert out.count("Processor: ") == 1
    assert printed in out


def _run_here(prepare: Callable[..., Callable[[], object]], *arguments: object) -> int:
    prepare(*arguments)()
    return 1


@pytest.fixture(scope="module")
def market_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of 100 people, in the form of those of the Market-1501 test split."""
    rng = np.random.default_rng(0)
    centres, arrays = rng.normal(size=(101, 64)), {}
    for side, each in (("query", 2), ("gallery", 4)):
        pids = np.repeat(np.arange(1, 101), each)
        arrays[f"{side}_pids"] = pids
        arrays[f"{side}_features"] = (centres[pids] + rng.normal(size=(len(pids), 64))).astype(np.float32)
        arrays[f"{side}_camids"] = np.arange(len(pids)) % 4 + 1
        arrays[f"{side}_sequences"] = np.ones(len(pids), np.int64)
        arrays[f"{side}_frames"] = rng.integers(0, 20_000, len(pids))
    path = tmp_path_factory.mktemp("market") / "made.npz"
    np.savez(path, **arrays)
    for side in ("query", "gallery"):  # tracks that overlap in time
        arrays[f"{side}_frames"] = 7 * arrays[f"{side}_pids"] % 300 + 200 * (side == "gallery")
    np.savez(path.with_name("overlapping.npz"), **arrays)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("learned_metric", "xqda"),
        ("matching_market", "correlation, without travel times"),
        ("neighbour_search", "| made | 400 |"),
        ("reranking_market", "CA-Jaccard"),
        ("matching_small", "| made | all |"),
        ("calibration_market", "Without labels: "),
        ("gallery_open_set", "one camera, distractors True"),
    ],
)
def test_benchmark_of_embeddings_runs(
    name: str,
    printed: str,
    market_file: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "gallery_open_set":
        pytest.importorskip("lancedb")
    module = importlib.import_module(f"benchmarks.{name}")
    for constant, fewer in (("DRAWS", 1), ("SIZES", (10, 50)), ("PEOPLE", (10, None))):
        monkeypatch.setattr(module, constant, fewer, raising=False)
    file = market_file.with_name("overlapping.npz") if name == "calibration_market" else market_file
    module.main.main([str(file)], standalone_mode=False)
    assert printed.lower() in capfd.readouterr().out.lower()


@pytest.mark.slow
def test_the_peer_of_the_embedding_benchmark_is_opened_for_several_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stub of a package that the peer imports for downloads has no spec, which the second search refuses."""
    embedding = importlib.import_module("benchmarks.embedding")
    (tmp_path / "torchreid").mkdir()
    (tmp_path / "torchreid" / "__init__.py").write_text("")
    (tmp_path / "torchreid" / "models.py").write_text(
        "import gdown, torch\ndef build_model(name, classes, pretrained, use_gpu):\n    return torch.nn.Linear(1, 1)\n"
    )
    (tmp_path / "torchreid" / "utils.py").write_text(
        "import torch\ndef FeatureExtractor(name, weights, **_):\n    return lambda paths: torch.ones(len(paths), 1)\n"
    )
    for name in ("torchreid", "torchreid.models", "torchreid.utils", "gdown"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        for name in ("osnet_x1_0", "osnet_x0_25"):
            assert embedding._torchreid(name, tmp_path, tmp_path)(["1.jpg", "2.jpg"]).shape == (2, 1)
    finally:
        for name in ("torchreid", "torchreid.models", "torchreid.utils", "gdown"):
            sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_results_of_killed_commands_equal_those_of_uninterrupted_ones() -> None:
    """`synthesize`, which starts processes, is killed in tests/synthetic/test_writer.py."""
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "2", "train", "pack"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, cwd=FOLDER.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("train", "pack"):
        assert f"{name}: 2 kills" in done.stdout or f"{name}: 1 kills, 1 finished" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_killed_additions_and_erasures_of_a_gallery_are_whole() -> None:
    pytest.importorskip("lancedb")
    command = [sys.executable, "-m", "benchmarks.gallery_kills", "--kills", "2", "--tracklets", "50", "add", "erase"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=FOLDER.parent)
    assert done.returncode == 0, done.stdout + done.stderr
