"""`import reid`: the public names, their examples, and the check for PyPI's other project of that name."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import reid
from reid.core.conflicts import check_no_conflict

PUBLIC = {
    "ConfigError", "DataError", "Embedder", "Embeddings", "Gallery", "ModelError", "ReidError", "Trainer",
    "TripletLoss", "calibrate", "evaluate", "load_benchmark", "match", "rerank", "run_videos", "score_tracks", "test",
    "train",
}  # fmt: skip
WITHOUT_EXAMPLE = {"ConfigError", "DataError", "ModelError"}
"""Subclasses of ReidError, whose example shows how to catch them."""


def test_dir_lists_exactly_the_public_names() -> None:
    assert {name for name in dir(reid) if not name.startswith("__")} == PUBLIC
    assert set(reid.__all__) == {*PUBLIC, "__version__"}


def test_import_is_fast_and_does_not_import_torch() -> None:
    code = "import reid, sys; dir(reid); print({'torch', 'numpy', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_openvino_sends_no_telemetry() -> None:
    converter = pytest.importorskip("openvino.tools.ovc")  # `import openvino` sends an event through it
    assert type(converter.telemetry).__module__ == "openvino.tools.ovc.telemetry_stub"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'embed'"):
        reid.embed  # noqa: B018


def test_subpackages_stay_importable() -> None:
    import reid.data
    import reid.losses

    assert reid.data.IdentitySampler
    assert reid.losses.TripletLoss is reid.TripletLoss


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_has_a_docstring_with_a_running_example(name: str) -> None:
    public = getattr(reid, name)
    text = inspect.getdoc(public)
    assert text
    if name in WITHOUT_EXAMPLE:
        return
    assert "Example:" in text
    module = inspect.getmodule(public)
    assert module is not None
    tests = [test for test in doctest.DocTestFinder(recurse=False).find(public, name, module) if test.examples]
    assert tests, "no >>> lines"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        lines: list[str] = []
        runner.run(test, out=lines.append)
        assert runner.failures == 0, "".join(lines)


def site_packages(folder: Path, *, record: str) -> Path:
    """Make a folder with a package `reid` and the metadata of another distribution called `reid`."""
    (folder / "reid").mkdir()
    (folder / "reid-1.2.3.dist-info").mkdir()
    (folder / "reid-1.2.3.dist-info/RECORD").write_text(record)
    (folder / "reid_toolkit-0.1.0.dist-info").mkdir()
    return folder / "reid"


def test_another_distribution_with_files_in_this_package_is_refused(tmp_path: Path) -> None:
    package = site_packages(tmp_path, record="reid/__init__.py,,\nreid/models.py,,\n")
    with pytest.raises(ImportError, match=r"reid-1\.2\.3\.dist-info.*cannot share an environment.*pip uninstall"):
        check_no_conflict(package)


def test_another_distribution_without_files_in_this_package_is_accepted(tmp_path: Path) -> None:
    check_no_conflict(site_packages(tmp_path, record="__editable__.reid-1.2.3.pth,,\n"))


def test_the_check_takes_less_than_5_ms(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"package{number}-1.0.dist-info").mkdir()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        check_no_conflict(tmp_path / "reid")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005


def test_version_names_the_distribution() -> None:
    from click.testing import CliRunner

    from reid.commands import main

    assert CliRunner().invoke(main, ["--version"]).output == f"reid-toolkit {reid.__version__}\n"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (reid.load_benchmark, "data must be of the type str"),
        (reid.match, "tracklets must be of the type Tracklets or Embeddings"),
        (lambda value: reid.score_tracks(value, value), "truth must be of the type Tracks"),
        (lambda value: reid.Trainer(value, "run"), "config must be of the type Config"),
    ],
)
def test_an_argument_of_another_type_is_refused_with_the_way_to_get_the_right_one(
    call: Callable[[object], object], named: str
) -> None:
    for value in (1, None, Path("somewhere"), {}):
        with pytest.raises(reid.ConfigError, match=named):
            call(value)
