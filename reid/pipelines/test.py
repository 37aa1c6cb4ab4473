"""Evaluate a model on benchmarks: scores, re-ranking, verification, pictures, one page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reid import evaluation, report
from reid.config import DataConfig
from reid.core.atomic import result_folder, write_json
from reid.core.console import console, warn
from reid.core.errors import ConfigError, ReidError
from reid.core.version import __version__
from reid.data.crops import Benchmark
from reid.data.layouts import load_benchmarks
from reid.data.loader import read_batches
from reid.data.pixels import open_test_split
from reid.embedding.embedder import Embedder
from reid.embedding.learned_metric import LearnedMetric
from reid.embedding.runtimes import FORMATS
from reid.embedding.table import Embeddings
from reid.evaluation import OpenSetResult, RankingResult, Reranking, VerificationResult
from reid.evaluation.pairs import DISTRACTOR
from reid.evaluation.projection import choose_identities, project
from reid.models import ReIDModel
from reid.models.checkpoints import checkpoint_in, training_settings
from reid.models.zoo import is_published
from reid.pipelines.calibrate import FoundCalibration, find_calibration
from reid.pipelines.settings import TestSettings
from reid.report import Applied, Drawing, SetResults
from reid.report.evaluation_page import ACTIVATIONS, CALIBRATION, CAMERAS, POINTS, VERIFICATION
from reid.report.page import shorten_all_paths

LARGE_K1 = 3.0
"""Warn about a k1 of re-ranking that is more than so many times the estimated number of crops per identity."""

LISTED, LIST_LENGTH = 8, 10
ACTIVATED = 6
"""Queries whose activation maps are shown, each with the first of its list."""


def test(
    model: str | Path | ReIDModel,
    data: str | Benchmark | Sequence[str | Benchmark] = (),
    out: str | Path | None = None,
    settings: TestSettings | None = None,
) -> list[SetResults]:
    """Evaluate a model on the test splits of benchmarks.

    Args:
        model: whatever `Embedder` accepts: a checkpoint, run folder, bundle, .onnx or .xml file, the name of a
            published model, or a `ReIDModel`.
        data: data sets as `LAYOUT:ROOT[?key=value&...]`, or benchmarks. Default: the checkpoint's `data.test`, else
            its `data.train`.
        out: folder for metrics.json, evaluation.html, pictures and the embeddings of each set; None writes nothing.
        settings: re-ranking, protocol and computation.

    Returns:
        One result per data set: `ranking` (mAP, CMC), `reranked`, `verification`, `open_set`, and pictures to draw.

    Raises:
        ReidError: the model, a data set or a setting cannot be used.

    Example:
        >>> import tempfile, reid
        >>> from reid.models import build_model
        >>> from reid.synthetic import synthesize
        >>> root = synthesize(tempfile.mkdtemp() + "/set", ids=8, cameras=2)
        >>> (result,) = reid.test(build_model("light10", height=64, width=32), f"market1501:{root}")
        >>> 0 <= result.ranking.mAP <= 1
        True
    """
    settings = settings or TestSettings()
    wanted = report.read_queries(settings.queries)
    given: Sequence[str | Benchmark] = [data] if isinstance(data, str | Benchmark) else list(data)
    if not given:
        given = _data_of(model)
    benchmarks = load_benchmarks(given)
    metric = None if settings.learned_metric is None else LearnedMetric.load(settings.learned_metric)
    options = settings.model_dump(include={"device", "batch_size", "flip"})
    embedder = Embedder(model, runtime=settings.runtime_for(), **options)
    described = embedder.describe() if metric is None else metric.describe(embedder.describe())
    calibration = find_calibration(
        settings.calibration, [] if isinstance(model, ReIDModel) else [Path(model)], described["model"]
    )
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(result_folder(out, "test", "metrics.json"))
        sets = []
        for benchmark in benchmarks:
            for text in benchmark.warnings:
                warn(text)
            one = _TestedSet(benchmark, embedder, metric, calibration, settings, wanted)
            if folder is not None:
                one.write(folder)
            sets.append(one.results)
        if folder is not None:
            report.cmc_drawing(sets).draw(folder / "cmc.png")
            scores = {one.name: numbers(one, calibration) for one in sets}
            protocol = report.describe_protocol(sets[0].ranking)
            content = {"model": described, "protocol": protocol, "sets": scores}
            write_json(folder / "metrics.json", shorten_all_paths(content))
            if settings.page:
                shown = {name: value for name, value in settings if value != ()}
                shown = {name: value.name if isinstance(value, Path) else value for name, value in shown.items()}
                shown["reid-toolkit"] = __version__
                report.write_evaluation(folder / "evaluation.html", sets, described=described, settings=shown)
    return sets


def _data_of(model: str | Path | ReIDModel) -> list[str]:
    """Return the data sets that a checkpoint was to be tested on, else those it was trained on."""
    texts: list[str] = []
    if isinstance(model, ReIDModel) or is_published(model):
        pass
    elif Path(model).suffix.lower() not in (*FORMATS, ".bundle"):
        saved = training_settings(checkpoint_in(Path(model))).get("data", {})
        texts = [text for text in saved.get("test") or saved.get("train") or [] if ":" in text]
    if not texts:
        raise ConfigError("The model does not record a data set. Name one as LAYOUT:ROOT, with --data or `data`.")
    return texts


class _TestedSet:
    """One data set, embedded, with its results."""

    def __init__(
        self,
        benchmark: Benchmark,
        embedder: Embedder,
        metric: LearnedMetric | None,
        calibration: FoundCalibration | None,
        settings: TestSettings,
        wanted: Sequence[tuple[str, str]],
    ) -> None:
        self.benchmark, self.embedder, self.calibration, self.settings = benchmark, embedder, calibration, settings
        skipped: list[str] = []
        data = DataConfig(store="files", unreadable="skip" if settings.skip_unreadable else "error")
        self.split = open_test_split(data, benchmark, embedder.preprocessing.size, skipped)
        self.skipped = tuple(line.removeprefix(f"{benchmark.root}/") for line in skipped)
        for line in self.skipped:
            console.print(f"skipped: {line}")
        crops = self.split.query.crops
        self.chosen = report.find_queries(wanted, crops.pids, benchmark.name, crops.names.get("pids"))
        if settings.any_camera:
            self.split = replace(self.split, cross_camera=False)
        self.query, self.gallery = (embedder.table(part.crops) for part in (self.split.query, self.split.gallery))
        if metric is not None:
            self.query, self.gallery = metric.apply(self.query), metric.apply(self.gallery)
        self.both = Embeddings.concat([self.query, self.gallery])
        query, gallery = self.split.query.crops, self.split.gallery.crops
        self.labels = (query.pids, gallery.pids, query.camids, gallery.camids)
        self.cameras_known = query.has_cameras and gallery.has_cameras
        self.distractor = DISTRACTOR if benchmark.n_distractors else None
        self.results = self._results()

    def write(self, out: Path) -> None:
        """Write the embeddings and the pictures."""
        self.query.save(out / f"{self.benchmark.name}-query.parquet", self.benchmark.root)
        self.gallery.save(out / f"{self.benchmark.name}-gallery.parquet", self.benchmark.root)
        for drawing in report.set_drawings(self.results):
            drawing.draw(out / f"{self.results.name}-{drawing.name}.png")

    def _results(self) -> SetResults:
        """Compute everything; `notes` explain missing parts."""
        rules: dict[str, Any] = {
            "cross_camera": self.split.cross_camera, "ap": self.settings.ap, "camera_pairs": self.cameras_known
        }  # fmt: skip
        ranking = evaluation.evaluate(self.query, self.gallery, **rules)
        reranked, identity_size = None, None
        if self.settings.rerank or self.settings.camera_aware:
            identity_size = evaluation.estimate_identity_size(self.both.features)
            reranking = self._reranking(identity_size)
            blocks = evaluation.rerank_blocks(self.query, self.gallery, settings=reranking)
            reranked = evaluation.evaluate_distances(blocks, *self.labels, **rules, metric=reranking.describe())
        notes, verification, activations = {}, None, None
        try:
            verification = evaluation.verify(
                self.both, cross_camera=self.split.cross_camera, distractor=self.distractor
            )
        except ReidError as error:
            notes[VERIFICATION] = str(error)
        if self.calibration is None:
            notes[CALIBRATION] = (
                "No calibration.json of this model was found next to it. Create one with `reid calibrate` to see here "
                "below which distance two crops are accepted as the same person."
            )
        points = self._points()
        if points is None:
            notes[POINTS] = "No identity has two crops."
        if not self.cameras_known:
            notes[CAMERAS] = "The data set has no camera labels."
        elif ranking.pairs is not None and ranking.pairs.mAP.size == 1:
            notes[CAMERAS] = "All crops are from one camera."
        try:
            activations = self._activations(ranking)
        except ReidError as error:
            notes[ACTIVATIONS] = str(error)
        return SetResults(
            name=self.benchmark.name,
            root=Path(self.benchmark.root).name,
            model=self.embedder.describe()["model"].rpartition("-")[0],
            ranking=ranking,
            reranked=reranked,
            identity_size=identity_size,
            verification=verification,
            open_set=self._open_set(ranking),
            calibrated=self._applied(verification),
            lists=self._lists(ranking),
            points=points,
            activations=activations,
            left_out=self.skipped,
            notes=notes,
        )

    def _reranking(self, identity_size: float) -> Reranking:
        """Return the settings of re-ranking for the estimated size of identities, and warn if they do not suit it."""
        if self.settings.camera_aware and not self.cameras_known:
            raise ConfigError(f"{self.benchmark.name} has no camera labels, which --camera-aware needs. Remove it.")
        names = {"camera_aware"} if self.settings.camera_aware else {"k1", "k2"}
        settings = self.settings.model_dump(include=names | {"lambda_value", "neighbour_search"})
        k1 = settings.get("k1")
        if k1 == "auto":
            settings["k1"], settings["k2"] = evaluation.auto_neighbours(identity_size, self.settings.k2)
        elif k1 is not None and k1 > LARGE_K1 * identity_size:
            warn(
                f"{self.benchmark.name} seems to have about {identity_size:.1f} crops per identity, queries and "
                f"gallery together. Re-ranking with k1={k1} is meant for larger identities and can lower the scores. "
                "Use --k1 auto."
            )
        return Reranking(**settings)

    def _applied(self, verification: VerificationResult | None) -> Applied | None:
        """Return how the calibration's threshold performs on this set."""
        if self.calibration is None:
            return None
        calibration = self.calibration.calibration
        threshold = calibration.threshold()
        rates = (None, None) if verification is None else verification.rates_at(threshold)
        return Applied(self.calibration.describe(), threshold, calibration.chosen_fmr, *rates)

    def _open_set(self, ranking: RankingResult) -> OpenSetResult | None:
        """Return open-set scores if some labelled queries have no match in the gallery."""
        query_pids = self.labels[0]
        if not ranking.dropped or not (query_pids[ranking.first_match == 0] >= 0).any():
            return None
        return evaluation.open_set(self.query, self.gallery, cross_camera=self.split.cross_camera)

    def _lists(self, ranking: RankingResult) -> list[Drawing]:
        """Return drawings of rank lists. Crops of the query's camera are included, in grey: the rule ignores them."""
        kinds = {
            "worst": ("Lowest average precision.", report.choose_queries(ranking, "worst", LISTED)),
            "best": ("Highest average precision.", report.choose_queries(ranking, "best", LISTED)),
            "random": ("Drawn with seed 0.", report.choose_queries(ranking, "random", LISTED)),
        }
        if len(self.chosen):
            kinds["chosen"] = ("Named with --queries.", self.chosen)
        query_pids, gallery_pids, query_camids, gallery_camids = self.labels
        drawings = []
        for name, (caption, rows) in kinds.items():
            shown = (query_pids[rows], gallery_pids, query_camids[rows], gallery_camids)
            indices, distances = evaluation.top_matches(
                self.query.take(rows), self.gallery, k=LIST_LENGTH, cross_camera=False
            )
            probabilities = None
            if self.calibration is not None:
                cameras = (np.broadcast_to(query_camids[rows][:, None], indices.shape), gallery_camids[indices])
                known = np.where(indices < 0, 2, distances)
                probabilities = self.calibration.calibration.probability(known, cameras)
            caption += f" Rows {', '.join(map(str, rows))} of the query set. Grey: ignored by the cross-camera rule."
            lists = report.RankLists(
                self.split.query.crops.paths[rows],
                self.split.gallery.crops.paths,
                indices,
                distances,
                *shown,
                ap=ranking.ap[rows],
                probabilities=probabilities,
                cross_camera=self.split.cross_camera,
            )
            title = f"{self.split.name}: {name} queries"
            draw = partial(report.plot_rank_lists, lists, queries=range(len(rows)), title=title)
            drawings.append(Drawing(name, f"{name.capitalize()} queries", caption, draw, photos=True))
        return drawings

    def _points(self) -> Drawing | None:
        """Return the drawing of some identities as points in the plane."""
        features, pids, camids = self.both.features, np.concatenate(self.labels[:2]), np.concatenate(self.labels[2:])
        rows = choose_identities(np.where(pids == self.distractor, -1, pids))
        if not len(rows):
            return None
        maps = {"PCA": project(features[rows], "pca"), "t-SNE": project(features[rows], "tsne")}
        caption = (
            "Some identities, drawn with seed 0: colours and numbers are identities, shapes are cameras. PCA preserves "
            "large distances; t-SNE preserves neighbourhoods, and distances between its groups have no meaning."
        )
        draw = partial(report.plot_embedding_map, maps, pids[rows], camids[rows] if self.cameras_known else None)
        return Drawing("map", f"{len(np.unique(pids[rows]))} identities in the plane", caption, draw)

    def _activations(self, ranking: RankingResult) -> Drawing:
        """Return the drawing of activation maps of the worst queries and their first counted matches."""
        rows, split = report.choose_queries(ranking, "worst", ACTIVATED), self.split
        nearest, _ = evaluation.top_matches(self.query.take(rows), self.gallery, k=1, cross_camera=split.cross_camera)
        first = nearest[:, 0]
        images, names = [], []
        for row, item in zip(rows, first, strict=True):
            sign = "✓" if split.gallery.crops.pids[item] == split.query.crops.pids[row] else "✗"
            images += [split.query.crops.paths[row], split.gallery.crops.paths[item]]
            names += [f"query {row}", f"{sign} nearest to {row}"]
        pixels = (
            next(read_batches(part.store, at, ACTIVATED)) for part, at in ((split.query, rows), (split.gallery, first))
        )
        model = self.embedder.model
        maps = np.stack([model.activation_map(batch).cpu().numpy() for batch in pixels], axis=1)
        caption = (
            "The worst queries and the nearest gallery crop that counts. Bright: high activation in the last feature "
            "map (sum over channels of squared activations, divided by its maximum)."
        )
        draw = partial(report.plot_activations, images, maps.reshape(-1, *maps.shape[2:]), names=names)
        return Drawing("activations", "Activation maps", caption, draw, photos=True)


def numbers(results: SetResults, calibration: FoundCalibration | None) -> dict[str, Any]:
    """Return the numbers of one data set as plain Python values, as in metrics.json. Undefined values are None."""
    content: dict[str, Any] = {"root": results.root, "left_out": list(results.left_out)}
    parts = ("plain", results.ranking), ("reranked", results.reranked), ("verification", results.verification)
    if results.identity_size is not None:
        content["estimated_crops_per_identity"] = round(results.identity_size, 2)
    content |= {name: part.as_dict() for name, part in (*parts, ("open_set", results.open_set)) if part is not None}
    if calibration is not None and results.calibrated is not None:
        used = results.calibrated
        measured = {"false_match_rate": used.fmr, "accept_rate": used.tmr}
        content["calibration"] = {
            "file": calibration.path.name,
            "model": calibration.calibration.model,
            "source": calibration.calibration.source,
            "threshold": used.threshold,
            "target_false_match_rate": used.target_fmr,
            **measured,
        }
    return content
