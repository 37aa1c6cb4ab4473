"""Content of the pictures of distances, cameras, identities and activations, read from the figures."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from reid.core.errors import ReidError
from reid.evaluation import CameraPairs, PairCounts, evaluate_distances, verify
from reid.report import (
    choose_queries,
    find_queries,
    plot_activations,
    plot_camera_pairs,
    plot_cmc,
    plot_distances,
    plot_embedding_map,
    plot_roc,
    read_queries,
)
from reid.report.distance_histograms import merged_bins
from reid.report.style import DARK, FORMATS, GREEN, LIGHT, MARKERS, RED, picture


@pytest.fixture
def figures(monkeypatch):
    """Return the figures that a test saves, in order."""
    saved, save = [], Figure.savefig

    def keep(self, *given, **settings):
        saved.append(self)
        return save(self, *given, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def random_counts(seed=0, n=(500, 9000), bins=1000):
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, 2, bins + 1)
    genuine, impostor = rng.normal(0.4, 0.1, n[0]), rng.normal(1.0, 0.15, n[1])
    counted = [np.histogram(values.clip(0, 2), edges)[0] for values in (genuine, impostor)]
    return PairCounts(edges, *counted, metric="cosine", pairs="random")


def camera_pairs(mAP):
    mAP = np.asarray(mAP, dtype=np.float64)
    cameras = [np.arange(1, n + 1) for n in mAP.shape]
    return CameraPairs(*cameras, mAP=mAP, rank1=np.sqrt(mAP), queries=np.isfinite(mAP).astype(np.int64) * 7)


RANKED = evaluate_distances(np.array([[0.1, 0.2], [0.2, 0.1]]), [5, 6], [5, 6], [1, 1], [2, 2])
VERIFIED = verify(np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 3 + 1, np.arange(12) % 2)
CROPS = [np.full((64, 32, 3), 40 * i, dtype=np.uint8) for i in range(1, 4)]
PLOTS = {
    "cmc": partial(plot_cmc, {"a": RANKED}),
    "distances": partial(plot_distances, random_counts(), thresholds={"t": 0.5}),
    "roc": partial(plot_roc, {"a": VERIFIED}),
    "cameras": partial(plot_camera_pairs, camera_pairs([[np.nan, 0.3], [0.7, np.nan]])),
    "map": partial(plot_embedding_map, {"PCA": np.eye(4)[:, :2]}, [1, 1, 2, 2], [1, 2, 1, 2]),
    "activations": partial(plot_activations, CROPS, np.ones((3, 4, 2))),
}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", PLOTS)
def test_every_picture_in_every_format(tmp_path, name, suffix):
    path = PLOTS[name](tmp_path / f"{name}.{suffix}")
    start = path.read_bytes()[:12]
    assert {"png": b"\x89PNG", "pdf": b"%PDF-", "svg": b"<?xml", "webp": b"WEBP"}[suffix] in start
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLOTS)
def test_every_picture_has_a_dark_theme(tmp_path, name):
    corners = []
    for dark in (False, True):
        pixels = cv2.imread(str(PLOTS[name](tmp_path / "x.png", dark=dark)))
        corners.append(to_hex(pixels[1, 1, ::-1] / 255).upper())
        assert pixels.std() > 5
    assert corners == [LIGHT.paper, DARK.paper]


@pytest.mark.parametrize("name", PLOTS)
def test_an_unknown_format_is_refused_and_leaves_no_file(tmp_path, name):
    with pytest.raises(ReidError, match="no known picture format"):
        PLOTS[name](tmp_path / "x.bmp")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_the_same_drawing_gives_the_same_bytes(tmp_path, suffix):
    first, second = (PLOTS["distances"](tmp_path / f"{i}.{suffix}").read_bytes() for i in range(2))
    assert first == second


def test_the_text_of_a_pdf_is_text_of_a_truetype_font(tmp_path):
    content = PLOTS["cmc"](tmp_path / "x.pdf").read_bytes()
    assert b"/Type3" not in content
    assert b"/TrueType" in content or b"/CIDFontType2" in content


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_lines_have_enough_contrast(theme):
    def luminance(colour):
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgba(colour)[:3]]
        return float(np.dot(channels, [0.2126, 0.7152, 0.0722]))

    def contrast(colour):
        low, high = sorted((luminance(colour), luminance(theme.paper)))
        return (high + 0.05) / (low + 0.05)

    assert contrast(theme.ink) > 12
    assert min(map(contrast, theme.lines)) > 1.9  # of lines that differ in marker and dash too
    assert min(map(contrast, theme.lines[:2])) > 3  # those of the histograms
    assert min(map(contrast, (RED, GREEN))) > 3
    assert len(set(theme.lines)) == 7


def test_matplotlib_settings_do_not_change(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    PLOTS["cmc"](tmp_path / "x.png", dark=True)
    with pytest.raises(RuntimeError), picture(tmp_path / "y.png", (1, 1)):
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


# --- distances


@pytest.mark.parametrize("seed", range(4))
def test_merged_bins_keep_all_counts(seed):
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.random(rng.integers(2, 400)))
    columns = tuple(rng.integers(0, 3, len(edges) - 1) * (rng.random(len(edges) - 1) < 0.3) for _ in range(2))
    bars = int(rng.integers(1, 60))
    new_edges, merged = merged_bins(edges, columns, bars)
    assert set(new_edges) <= set(edges)
    assert (np.diff(new_edges) > 0).all()
    assert len(new_edges) - 1 <= bars
    for column, bar in zip(columns, merged, strict=True):
        assert bar.sum() == column.sum()
        at = np.searchsorted(edges, new_edges)
        assert bar.tolist() == [column[a:b].sum() for a, b in pairwise(at)]


def test_empty_bins_keep_the_whole_range():
    edges, (none,) = merged_bins(np.array([0.0, 1.0, 2.0]), (np.zeros(2, dtype=np.int64),), 1)
    assert (edges.tolist(), none.tolist()) == ([0.0, 2.0], [0])


def test_bars_sum_to_all_pairs_and_lines_stand_at_the_thresholds(tmp_path, figures):
    counts = random_counts()
    plot_distances(counts, tmp_path / "x.png", thresholds={"asked": 0.61803, "equal": 0.7})
    axes = figures[0].axes[0]
    bars = [patch.get_data() for patch in axes.patches if isinstance(patch, StepPatch)]
    assert len(bars) == 4  # each once filled, once hatched
    for data in bars:
        assert data.values.sum() == pytest.approx(100)
    impostor, genuine = bars[0], bars[2]
    for data, column in ((impostor, counts.impostor), (genuine, counts.genuine)):
        at = np.searchsorted(counts.edges, data.edges)
        assert data.values[3] == pytest.approx(100 * column[at[3] : at[4]].sum() / column.sum())
    assert [line.get_xdata() for line in axes.lines] == [[0.61803, 0.61803], [0.7, 0.7]]
    words = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert words == ["different people (9,000 pairs)", "same person (500 pairs)", "asked: 0.618", "equal: 0.700"]
    hatches = {patch.get_hatch() for patch in axes.patches if patch.get_hatch()}
    assert len(hatches) == 2  # told apart without colour


@pytest.mark.parametrize(
    ("n", "words"),
    [((0, 50), ["different people (50 pairs)"]), ((50, 0), ["same person (50 pairs)"])],
    ids=["no pair of one person", "no pair of different people"],
)
def test_one_kind_of_pairs_alone(tmp_path, figures, n, words):
    plot_distances(random_counts(n=n), tmp_path / "x.png")
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == words


def test_without_pairs_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(ReidError, match="no pairs"):
        plot_distances(random_counts(n=(0, 0)), tmp_path / "x.png")
    with pytest.raises(ReidError, match="There is no result"):
        plot_roc({}, tmp_path / "x.png")


def test_the_roc_holds_the_curve_in_percent(tmp_path, figures):
    plot_roc({"a": VERIFIED, "b": VERIFIED}, tmp_path / "x.png")
    axes = figures[0].axes[0]
    far, tar, _ = VERIFIED.roc()
    for line in axes.lines:
        np.testing.assert_allclose(line.get_xdata(), 100 * far)
        np.testing.assert_allclose(line.get_ydata(), 100 * tar)
    assert f"EER {100 * VERIFIED.eer:.2f} %" in axes.get_legend().get_texts()[0].get_text()
    assert axes.get_xscale() == "log"


# --- camera pairs


def test_the_heat_map_writes_every_number_that_there_is(tmp_path, figures):
    mAP = [[np.nan, 0.25, 0.5], [0.81, np.nan, 1.0]]
    plot_camera_pairs(camera_pairs(mAP), tmp_path / "x.png")
    for axes, values in zip(figures[0].axes, (np.array(mAP), np.sqrt(mAP)), strict=True):
        written = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
        assert written == {
            place: f"{100 * value:.0f}" for place, value in np.ndenumerate(values) if not math.isnan(value)
        }
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2"]


@pytest.mark.slow
def test_many_cameras_and_one(tmp_path):
    many = plot_camera_pairs(camera_pairs(np.random.default_rng(0).random((15, 15))), tmp_path / "many.png")
    one = plot_camera_pairs(camera_pairs([[0.5]]), tmp_path / "one.png")
    assert max(cv2.imread(str(many)).shape) < 2200
    assert min(cv2.imread(str(one)).shape[:2]) > 200


def test_no_pair_of_cameras(tmp_path):
    with pytest.raises(ReidError, match="No pair of cameras"):
        plot_camera_pairs(camera_pairs([[np.nan]]), tmp_path / "x.png")


# --- map of identities


def test_points_have_the_colour_of_their_identity_and_the_shape_of_their_camera(tmp_path, figures):
    points = np.random.default_rng(0).normal(size=(12, 2))
    pids, camids = np.repeat([7, 9, 11], 4), np.tile([2, 5], 6)
    plot_embedding_map({"PCA": points, "t-SNE": -points}, pids, camids, tmp_path / "x.png")
    for axes, sign in zip(figures[0].axes, (1, -1), strict=True):
        assert [text.get_text() for text in axes.texts] == ["7", "9", "11"]
        lines = {(line.get_color(), line.get_marker()): line.get_xydata() for line in axes.lines}
        assert len(lines) == 6
        for i, pid in enumerate((7, 9, 11)):
            for j, camera in enumerate((2, 5)):
                chosen = sign * points[(pids == pid) & (camids == camera)]
                np.testing.assert_allclose(lines[LIGHT.lines[i], MARKERS[j]], chosen)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["cam 2", "cam 5"]


def test_without_cameras_there_is_one_shape_and_no_legend(tmp_path, figures):
    plot_embedding_map({"PCA": np.zeros((30, 2))}, np.arange(30), None, tmp_path / "x.png")
    assert {line.get_marker() for line in figures[0].axes[0].lines} == {MARKERS[0]}
    assert not figures[0].legends


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(({}, [1], [1]), "There are no points", id="no projection"),
        pytest.param(({"PCA": np.zeros((0, 2))}, [], []), "There are no points", id="no rows"),
        pytest.param(
            ({"PCA": np.zeros((3, 2))}, [1, 2], [1, 2]), "2 pids and 2 camids differ", id="more points than pids"
        ),
        pytest.param(({"PCA": np.zeros((2, 3))}, [1, 2], [1, 2]), r"\(2, 3\), 2 pids", id="in space"),
        pytest.param(({"PCA": np.zeros((2, 2))}, [1, 2], [1]), "1 camids", id="fewer cameras"),
    ],
)
def test_map_errors(tmp_path, given, message):
    with pytest.raises(ReidError, match=message):
        plot_embedding_map(*given, tmp_path / "x.png")


# --- activations


def test_the_picture_is_brightest_where_the_map_is_highest(tmp_path):
    maps = np.zeros((1, 4, 2))
    maps[0, 3, 1] = 1
    crop = np.full((64, 32, 3), 60, dtype=np.uint8)
    drawn = cv2.imread(str(plot_activations([crop], maps, tmp_path / "x.png"))).astype(float).sum(axis=2)
    height, width = drawn.shape
    overlay = drawn[int(0.1 * height) : int(0.8 * height), int(0.55 * width) : int(0.9 * width)]
    row, column = np.unravel_index(overlay.argmax(), overlay.shape)
    assert row > 0.6 * overlay.shape[0]
    assert column > 0.5 * overlay.shape[1]


def test_names_are_below_the_crops_in_rows_of_six(tmp_path, figures):
    images, maps = [CROPS[0]] * 8, np.zeros((8, 4, 2))
    plot_activations(images, maps, tmp_path / "x.png", names=[f"name {i}" for i in range(8)])
    texts = figures[0].axes[0].texts
    assert [text.get_text() for text in texts] == [f"name {i}" for i in range(8)]
    assert len({text.get_position()[1] for text in texts}) == 2


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        pytest.param(([], np.zeros((0, 4, 2))), {}, "There are no crops", id="none"),
        pytest.param((CROPS, np.zeros((2, 4, 2))), {}, "3 images", id="fewer maps"),
        pytest.param((CROPS, np.zeros((3, 4))), {}, r"\(3, 4\)", id="maps without columns"),
        pytest.param((CROPS, np.zeros((3, 4, 2))), {"names": ["a"]}, "1 names", id="fewer names"),
        pytest.param((["nowhere.jpg"], np.zeros((1, 4, 2))), {}, "nowhere.jpg", id="a path to nothing"),
    ],
)
def test_activation_errors(tmp_path, given, settings, message):
    with pytest.raises(ReidError, match=message):
        plot_activations(*given, tmp_path / "x.png", **settings)
    assert not list(tmp_path.iterdir())


# --- chosen queries


def test_queries_are_selected_by_row_or_by_pid():
    chosen = read_queries(["3, 0", "pid:42", "3"])
    assert chosen == [("query", "3"), ("query", "0"), ("pid", "42"), ("query", "3")]
    assert find_queries(chosen, [42, 7, 42, 8]).tolist() == [3, 0, 2]
    assert find_queries([], [42]).tolist() == []
    assert choose_queries(RANKED, "best").tolist() == [0, 1]


@pytest.mark.parametrize("text", ["x", "-1", "pid:", "1.5", "", "3,", "cam:3"])
def test_an_invalid_query_is_refused(text):
    with pytest.raises(ReidError, match="is not a query"):
        read_queries([text])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([("query", "2")], "town has no query 2.*0 to 1"),
        ([("pid", "3")], "No query of town has pid 3.*5 to 6"),
        ([("pid", "anna")], "No query of town has pid anna.*5 to 6"),
    ],
)
def test_missing_queries_are_refused(chosen, message):
    with pytest.raises(ReidError, match=message):
        find_queries(chosen, [5, 6], "town")


def test_queries_of_named_people_are_chosen_by_name():
    names, pids = ("anna", "ben", "carl"), [2, 0, 2]
    assert find_queries(read_queries(["pid:carl", "1"]), pids, names=names).tolist() == [0, 2, 1]
    with pytest.raises(
        ReidError, match=r"Unknown pid of a query of town 'ana'\. Did you mean 'anna'\? Known: anna, carl"
    ):
        find_queries(read_queries(["pid:ana"]), pids, "town", names)
