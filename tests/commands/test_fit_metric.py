"""`reid metric fit`, the file it writes, and `reid test --learned-metric`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from reid.commands import main
from reid.core.errors import ReidError
from reid.embedding import Embeddings
from reid.embedding.learned_metric import LearnedMetric
from reid.evaluation import count_pairs, evaluate, verify
from reid.losses import xqda
from tests.losses.test_mahalanobis import people


def fit(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["metric", "fit", *map(str, arguments)])


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """40 people, and unlabelled and distractor rows that would distort the fit."""
    features, pids, camids = people()
    features[:6], pids[:6] = 1e4, [-1, -1, -1, 0, 0, 0]
    return Embeddings(features, pids=pids, camids=camids, meta={"model": "net-1"}).save(tmp_path / "train.parquet")


@pytest.mark.parametrize("method", ["kissme", "xqda"])
def test_fitted_metric_improves_the_ranking_of_other_people(labelled: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "made" / "metric.npz"
    result = fit(labelled, "--method", method, "--ridge", 1e-3, "--out", out)
    assert result.exit_code == 0, result.output
    assert "6 of 240 rows are left out: their pid is -1 or 0 (distractors)." in " ".join(result.output.split())
    assert f"{method}: 234 embeddings of 39 identities, pairs across cameras; 6 → " in result.output
    assert f"learned metric: {out}" in result.output
    metric = LearnedMetric.load(out)
    assert {"method": method, "model": "net-1", "rows": 234, "identities": 39, "ridge": 1e-3}.items() <= dict(
        metric.about
    ).items()
    features, pids, camids = people(seed=1)
    before = Embeddings(features, pids=pids, camids=camids, meta={"model": "net-1", "metric": "cosine"})
    after = metric.apply(before)
    assert (after.pids == before.pids).all()
    assert (after.camids == before.camids).all()
    np.testing.assert_allclose(np.linalg.norm(after.features, axis=1), 1, rtol=1e-5)
    assert after.meta == {
        "model": f"net-1+{metric.id}",
        "metric": "cosine",
        "normalised": True,
        "dimension": len(metric.factor),
        "learned_metric": metric.id,
    }
    assert before.meta["model"] == "net-1"

    def score(table: Embeddings) -> float:
        q, g = table.take(camids == 0), table.take(camids != 0)
        return evaluate(q.features, g.features, q.pids, g.pids, q.camids, g.camids).mAP

    assert score(after) > score(before) + 0.2


def test_several_files_give_the_metric_of_the_function(labelled: Path, tmp_path: Path) -> None:
    table = Embeddings.load(labelled)
    parts = [table.take(np.arange(start, len(table), 2)).save(tmp_path / f"{start}.parquet") for start in (0, 1)]
    assert fit(*parts, "--any-camera", "--dimensions", 2, "--out", tmp_path / "m.npz").exit_code == 0
    known = table.take(table.pids > 0)
    unit = known.features / np.linalg.norm(known.features, axis=1, keepdims=True)
    expected = xqda(unit, known.pids, dimensions=2)
    got = LearnedMetric.load(tmp_path / "m.npz").factor
    np.testing.assert_allclose(got.T @ got, expected.matrix.detach(), rtol=1e-3, atol=1e-5)
    assert len(got) == 2


def test_zero_rows_stay_zero_and_other_features_are_an_error() -> None:
    metric = LearnedMetric(np.eye(2, 3, dtype=np.float32), {"method": "xqda", "model": "net-1"})
    assert (metric.transform(np.zeros((1, 3), dtype=np.float32)) == 0).all()
    with pytest.raises(ReidError, match=r"fitted on dimension 3, not 4"):
        metric.apply(Embeddings(np.ones((2, 4))))
    with pytest.raises(ReidError, match=r"features of model 'net-1', not of 'net-2'"):
        metric.apply(Embeddings(np.ones((2, 3)), meta={"model": "net-2"}))
    assert metric.apply(Embeddings(np.ones((2, 3)))).meta["model"] == f"+{metric.id}"


@pytest.mark.parametrize(
    ("columns", "arguments", "expected"),
    [
        ({}, (), "no pid column"),
        ({"pids": [1, 1, 2]}, (), "no camid column.*--any-camera"),
        ({"pids": [1, 1, 2], "camids": [1, 1, 2]}, (), "no pair of one person across cameras"),
        ({"pids": [1, 1, 2], "camids": [1, 2, 2]}, ("--dimensions", 9), "1 or more and at most 3; got 9"),
    ],
)
def test_missing_labels_are_errors(tmp_path: Path, columns: dict, arguments: tuple, expected: str) -> None:
    file = Embeddings(np.eye(3), **columns).save(tmp_path / "x.parquet")
    result = fit(file, *arguments, "--out", tmp_path / "m.npz")
    assert result.exit_code == 1
    assert not (tmp_path / "m.npz").exists()
    with pytest.raises(ReidError, match=expected):
        raise ReidError(result.output)


def test_nan_features_and_wrong_file_names_are_errors(tmp_path: Path) -> None:
    features = np.eye(3)
    features[1, 1] = np.nan
    file = Embeddings(features, pids=[1, 1, 2], camids=[1, 2, 1]).save(tmp_path / "x.parquet")
    assert "1 of 3 features contain NaN or infinity: rows 1" in fit(file, "--out", tmp_path / "m.npz").output
    assert "must end in .npz" in fit(file, "--out", tmp_path / "m.json").output


def test_invalid_metric_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ReidError, match="There is no learned metric"):
        LearnedMetric.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    np.savez(tmp_path / "objects.npz", factor=np.ones((2, 2)), about=np.array({}, dtype=object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:100])
    for name in ("text", "other", "objects", "cut"):
        with pytest.raises(ReidError, match=f"{name}.npz is not a learned metric.*reid metric fit"):
            LearnedMetric.load(tmp_path / f"{name}.npz")
    factor = np.eye(2, dtype=np.float32)
    for about, expected in (({"format": 2, "method": "xqda"}, "has format 2"), ({"format": 1}, "name of a method")):
        np.savez(tmp_path / "m.npz", factor=factor, about=np.array(json.dumps(about)))
        with pytest.raises(ReidError, match=expected):
            LearnedMetric.load(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", factor=factor * np.nan, about=np.array('{"format": 1, "method": "xqda"}'))
    with pytest.raises(ReidError, match="must contain finite"):
        LearnedMetric.load(tmp_path / "m.npz")
    with pytest.raises(ReidError, match=r"is stored as \.npz"):
        LearnedMetric(factor, {"method": "xqda"}).save(tmp_path / "m.bin")


@pytest.mark.usefixtures("few_pictures")
@pytest.mark.slow
def test_reid_test_uses_a_learned_metric(tmp_path: Path, tiny_market: Path) -> None:
    """The written features are those of the model, transformed by the metric, whose id is in the files."""
    from reid.models import build_model
    from reid.models.checkpoints import save_checkpoint

    def call(*arguments: object) -> None:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output

    checkpoint, data = tmp_path / "x.pt", f"market1501:{tiny_market}"
    model = build_model("light10", height=64, width=32)
    save_checkpoint(checkpoint, model)
    npz = tmp_path / "metric.npz"
    for part in ("train", "query"):
        where = ("--data", data, "--split", part)
        call("embed", "--model", checkpoint, *where, "--out", tmp_path / f"{part}.parquet")
    call("metric", "fit", tmp_path / "train.parquet", "--out", npz)
    settings = ("--learned-metric", npz, "--device", "cpu", "--no-page", "--out", tmp_path / "test")
    call("test", "--model", checkpoint, "--data", data, *settings)
    plain = Embeddings.load(tmp_path / "query.parquet")
    learned = Embeddings.load(next((tmp_path / "test").glob("*-query.parquet")))
    metric = LearnedMetric.load(npz)
    np.testing.assert_allclose(learned.features, metric.transform(plain.features), rtol=1e-3, atol=1e-4)
    numbers = json.loads((tmp_path / "test/metrics.json").read_text())
    assert numbers["model"]["learned_metric"] == metric.id
    assert numbers["model"]["model"] == learned.meta["model"] == f"{plain.meta['model']}+{metric.id}"


def test_the_first_of_named_people_is_no_distractor(tmp_path: Path) -> None:
    features, pids, camids = people()
    pids -= pids.min()
    assert pids.min() == 0
    meta = {"pid_names": [f"person {number}" for number in range(pids.max() + 1)]}
    table = Embeddings(features, pids=pids, camids=camids, meta=meta)
    result = fit(table.save(tmp_path / "train.parquet"), "--out", tmp_path / "metric.npz")
    assert result.exit_code == 0, result.output
    assert f"{len(pids)} embeddings of {len(np.unique(pids))} identities" in result.output
    assert "left out" not in result.output
    shifted = Embeddings(features, pids=pids + 1, camids=camids)
    assert verify(table).as_dict() == verify(shifted).as_dict()
    assert count_pairs(table).genuine.sum() > count_pairs(Embeddings(features, pids, camids)).genuine.sum()


@pytest.mark.parametrize(
    ("factor", "message"), [(0, "1 of 240 labelled features contain only zeros"), (1e30, "too large")]
)
def test_features_without_a_direction_are_errors(tmp_path: Path, factor: float, message: str) -> None:
    features, pids, camids = people()
    features[7] *= np.float32(factor)
    file = Embeddings(features, pids=pids + 1, camids=camids).save(tmp_path / "t.parquet")
    result = fit(file, "--out", tmp_path / "m.npz")
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
