from __future__ import annotations

import io
import os
import re

import cv2
import numpy as np
import pytest
from matplotlib import pyplot as plt
from rich.console import Console

from reid.core.errors import ReidError
from reid.evaluation import evaluate_distances, top_matches
from reid.report import RankLists, Scored, choose_queries, describe_protocol, plot_cmc, plot_rank_lists, results_table
from reid.report.ranklists import fit_image, read_image
from reid.report.style import BLUE, GREEN, GREY, RED

# Four queries. Places of the right match: 1, 3, 2; the fourth query has none.
DISTANCES = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.1, 0.3], [0.1, 0.2, 0.3]])
RESULT = evaluate_distances(DISTANCES, [5, 5, 5, 9], [5, 6, 7], [1, 1, 1, 1], [2, 2, 2], max_rank=3)
BETTER = evaluate_distances(DISTANCES[:1], [5], [5, 6, 7], [1], [2, 2, 2], max_rank=3)


def flat(value, shape=(64, 32)):
    return np.full((*shape, 3), value, dtype=np.uint8)


# Two queries over a gallery of four. Query 0 (pid 5, camera 1): own camera, right, wrong, junk, an empty place.
IMAGES = [flat(40), flat(90)]
GALLERY = [flat(value) for value in (120, 140, 160, 180)]
INDICES = [[2, 0, 1, 3, -1], [1, 0, 2, 3, -1]]
LABELS = ([5, 6], [5, 6, 5, -1], [1, 3], [2, 2, 1, 1])


def draw(path, *, images=IMAGES, gallery=GALLERY, indices=INDICES, queries=(0, 1), title="", **columns):
    distances = [[0.05, 0.125, 0.25, 0.5, np.inf]] * 2
    lists = RankLists(images, gallery, indices, distances, *LABELS, **columns)
    return plot_rank_lists(lists, path, queries=queries, title=title)


def colours_of(picture):
    return {tuple(pixel) for pixel in cv2.imread(str(picture))[:, :, ::-1].reshape(-1, 3)}


def rgb(code):
    return tuple(int(code[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_cmc_is_drawn_in_each_format(tmp_path, suffix):
    path = plot_cmc({"plain": RESULT, "better": BETTER}, tmp_path / "new" / f"cmc.{suffix}")
    start = path.read_bytes()[:5]
    assert start == {"png": b"\x89PNG\r", "pdf": b"%PDF-", "svg": b"<?xml"}[suffix]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_cmc_legend_shows_every_run_with_its_scores(tmp_path):
    text = plot_cmc({f"run {i}": RESULT for i in range(9)} | {"best": BETTER}, tmp_path / "cmc.svg").read_text()
    for name in ("best", "run 0", "run 8", "rank-1 33.3 %, mAP 61.1 %", "rank-1 100.0 %, mAP 100.0 %"):
        assert f"<!-- {name} -->" in text
    assert text.index("<!-- best -->") < text.index("<!-- run 0 -->")


def test_a_curve_of_one_rank_can_be_drawn(tmp_path):
    one = evaluate_distances(DISTANCES[:1], [5], [5, 6, 7], [1], [2, 2, 2], max_rank=1)
    assert plot_cmc({"one": one}, tmp_path / "cmc.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("results", "name", "words"),
    [
        pytest.param({}, "cmc.png", "There is no result", id="nothing to draw"),
        pytest.param({"a": RESULT}, "cmc.bmp", "Use .pdf, .png, .svg", id="unknown format"),
        pytest.param({"a": RESULT}, "cmc", "no known picture format", id="no format"),
        pytest.param({"a": RESULT}, "file/cmc.png", "Cannot write", id="a file where a folder should be"),
    ],
)
def test_cmc_errors(tmp_path, results, name, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReidError, match=words):
        plot_cmc(results, tmp_path / name)


def test_queries_are_chosen_by_average_precision():
    assert choose_queries(RESULT, "worst", 2).tolist() == [1, 2]
    assert choose_queries(RESULT, "best", 2).tolist() == [0, 2]
    assert choose_queries(RESULT, "worst", 10).tolist() == [1, 2, 0]  # the dropped one never
    assert choose_queries(RESULT, "random", 10).tolist() == [0, 1, 2]
    many = evaluate_distances(np.zeros((40, 1)), [1] * 40, [1], [1] * 40, [2])
    assert choose_queries(many, "worst", 3).tolist() == choose_queries(many, "best", 3).tolist() == [0, 1, 2]
    drawn = [choose_queries(many, "random", 5, seed=seed).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("choice", "n", "words"), [("wrost", 3, "Did you mean 'worst'"), ("best", 0, "must be 1 or more; got 0")]
)
def test_choices_out_of_range(choice, n, words):
    with pytest.raises(ReidError, match=words):
        choose_queries(RESULT, choice, n)


@pytest.mark.slow
def test_rank_lists_mark_each_crop_by_colour_and_sign(tmp_path):
    picture = draw(tmp_path / "lists.png", ap=[0.5, 1.0], title="worst")
    assert {rgb(colour) for colour in (BLUE, GREEN, RED, GREY)} <= colours_of(picture)
    text = draw(tmp_path / "lists.svg", ap=[0.5, 1.0], title="the worst").read_text()
    assert [text.count(f"<!-- {sign} -->") for sign in "✓✗–"] == [2, 3, 3]
    for words in ("the worst", "0.125", "AP 50.0 %", "AP 100.0 %", "cam 3"):
        assert re.search(f"<!-- {words} -->", text), words
    assert "<!-- inf -->" not in text


def test_without_the_cross_camera_rule_only_junk_is_grey(tmp_path):
    text = draw(tmp_path / "lists.svg", cross_camera=False).read_text()
    assert [text.count(f"<!-- {sign} -->") for sign in "✓✗–"] == [3, 3, 2]


def test_only_the_drawn_images_are_read(tmp_path):
    names = np.array([str(tmp_path / f"{i}.png") for i in range(2)], dtype=object)
    cv2.imwrite(names[0], flat(50))
    assert draw(tmp_path / "lists.png", images=names, queries=[0]).is_file()
    with pytest.raises(ReidError, match=r"1\.png"):
        draw(tmp_path / "more.png", images=names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"queries": []}, "There is no query", id="nothing chosen"),
        pytest.param({"images": IMAGES * 2}, "do not fit 4 queries", id="more images than lists"),
        pytest.param({"gallery": GALLERY[:3]}, "gallery 3 images, 4 pids", id="fewer images than pids"),
        pytest.param({"indices": [[0], [1]]}, "do not fit", id="indices of another shape than distances"),
        pytest.param({"images": [np.zeros((4, 4)), flat(1)]}, "uint8", id="floats for an image"),
        pytest.param({"images": ["nowhere.jpg", flat(1)]}, "nowhere.jpg", id="a path to nothing"),
        pytest.param({"images": [os.devnull, flat(1)]}, os.devnull, id="no bytes"),
        pytest.param({"images": [__file__, flat(1)]}, "test_report.py", id="not an image"),
    ],
)
def test_rank_list_errors(tmp_path, changes, words):
    with pytest.raises(ReidError, match=words):
        draw(tmp_path / "lists.png", **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        pytest.param((64, 32), 192, 96, id="the usual shape fills the place"),
        pytest.param((50, 50), 96, 96, id="a square"),
        pytest.param((400, 50), 192, 24, id="tall and thin"),
        pytest.param((1, 300), 1, 96, id="a strip"),
    ],
)
def test_images_keep_their_proportions(shape, rows, columns):
    placed = (fit_image(flat(7, shape)) == 7).all(axis=2)
    assert placed.shape == (192, 96)
    assert (placed.any(axis=1).sum(), placed.any(axis=0).sum()) == (rows, columns)


def test_a_file_and_its_array_are_drawn_equally(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "crop.png"), image[:, :, ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "crop.png"), read_image(image))


def test_pictures_do_not_use_pyplot(tmp_path):
    plot_cmc({"a": RESULT}, tmp_path / "cmc.png")
    draw(tmp_path / "lists.png")
    assert plt.get_fignums() == []


def test_rank_lists_accept_top_matches(tmp_path):
    rng = np.random.default_rng(0)
    indices, distances = top_matches(rng.normal(size=(2, 4)), rng.normal(size=(4, 4)), *LABELS, k=5)
    lists = RankLists(IMAGES, GALLERY, indices, distances, *LABELS)
    path = plot_rank_lists(lists, tmp_path / "lists.png", queries=[0])
    assert path.is_file()


def printed(rows, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results_table(rows))
    return console.export_text()


def test_the_table_shows_scores_and_protocol():
    rows = [Scored("market1501", "resnet50", RESULT), Scored("market1501", "resnet50", RESULT, reranked=True)]
    text = printed(rows)
    words = " ".join(text.split())
    assert "data set model re-ranked mAP mINP R1 R5 R10" in words
    assert "market1501 resnet50 no 61.11 61.11 33.33 100.00 100.00" in words
    assert "market1501 resnet50 yes 61.11" in words
    assert "Row" not in words
    for part in ("distances as given", "precision (mean of", "own identity and camera", "3 of 4 queries used"):
        assert words.count(part) == 1
    assert "(dropped: 1 identity not in gallery), gallery of 3." in words


def test_the_table_distinguishes_protocols():
    other = evaluate_distances(DISTANCES, [5, 5, 5, 9], [5, 6, -1], ap="trapezoid", cross_camera=False)
    rows = [Scored("a", "m", RESULT), Scored("b", "m", other), Scored("c", "m", RESULT)]
    words = " ".join(printed(rows).split())
    assert "Rows 1, 3: Ranked by" in words
    assert "Row 2: Ranked by" in words
    assert "(1 junk items left out)" in words
    assert describe_protocol(other) in words


def test_narrow_terminals_show_all_scores():
    text = printed([Scored("a_long_data_set_name", "a_long_model_name", RESULT, True)], width=72)
    lines = text.splitlines()
    assert lines[1].split()[-5:] == ["mAP", "mINP", "R1", "R5", "R10"]
    assert lines[3].split()[-5:] == ["61.11", "61.11", "33.33", "100.00", "100.00"]
    names = [line.split()[:2] for line in lines[3:5]]
    assert "".join(name[0] for name in names) + lines[5].strip() == "a_long_data_set_name"
    assert "".join(name[1] for name in names) == "a_long_model_name"


def test_long_model_names_are_shortened_in_the_middle():
    name = "light_osnet-" + "x" * 100 + "-epoch60"
    assert len(name) == 120
    lines = printed([Scored("synthetic", name, RESULT), Scored("synthetic", "osnet", RESULT)], width=80).splitlines()
    assert max(map(len, lines[:5])) <= 80
    assert lines[3].split() == [
        "synthetic",
        "light_osn…-epoch60",
        "no",
        "61.11",
        "61.11",
        "33.33",
        "100.00",
        "100.00",
    ]
    assert lines[4].split()[1] == "osnet"


def test_no_rows():
    with pytest.raises(ReidError, match="There are no results"):
        results_table([])
