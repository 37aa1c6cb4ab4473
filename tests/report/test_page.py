"""The page of an evaluation: content, escaping, self-containment, themes."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest

from reid.core.errors import ReidError
from reid.evaluation import evaluate, open_set, verify
from reid.report import (
    Applied,
    Drawing,
    Section,
    SetResults,
    Table,
    cmc_drawing,
    plot_activations,
    plot_cmc,
    plot_embedding_map,
    set_drawings,
    write_evaluation,
    write_page,
)

VOID = {"meta", "img", "source"}


class Page(HTMLParser):
    """Checks that tags are closed in order; collects text, headings and everything that could be loaded."""

    def __init__(self, content):
        super().__init__()
        self.open, self.links, self.text, self.headings, self.tags = [], [], [], [], []
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "srcset", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)

    @property
    def all_text(self):
        return " ".join(" ".join(self.text).split())


FEW = {"points": None, "activations": None}
"""Leaves out pictures that are drawn in the same way whatever the results are called."""


def random_results(cameras=(1, 2, 3), people=12, unenrolled=0, **more):
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(1, people + 1), 2 * len(cameras))
    camids = np.tile(np.repeat(cameras, 2), people)
    features = rng.normal(size=(people + 1, 8))[pids] + 0.4 * rng.normal(size=(len(pids), 8))
    asked = np.arange(len(pids)) % 2 == 0
    kept = ~asked & (pids > unenrolled)
    given = [features[asked], features[kept], pids[asked], pids[kept], camids[asked], camids[kept]]
    cross = len(cameras) > 1
    crops = [np.full((64, 32, 3), 50, dtype=np.uint8)] * 2
    results = SetResults(
        name="town",
        root="/data/town",
        ranking=evaluate(*given, cross_camera=cross, camera_pairs=True),
        verification=verify(features, pids, camids, cross_camera=cross, bootstrap=20),
        open_set=open_set(*given, cross_camera=cross, bootstrap=20) if unenrolled else None,
        points=Drawing("map", "Map", "x", partial(plot_embedding_map, {"PCA": features[:9, :2]}, pids[:9], camids[:9])),
        activations=Drawing(
            "activations", "Active", "x", partial(plot_activations, crops, np.ones((2, 4, 2))), photos=True
        ),
    )
    return replace(results, **more)


def written(tmp_path, *sets, described=None, **settings):
    path = tmp_path / "evaluation.html"
    write_evaluation(path, sets, described=described or {"model": "light14-abc"}, settings=settings)
    return path.read_text()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), random_results())


@pytest.mark.slow
def test_the_page_contains_all_parts(tmp_path):
    used = Applied("calibration.json rests on 10 pairs.", 0.3217, 0.001, 0.0013, 0.6)
    results = random_results(unenrolled=3, calibrated=used, left_out=["a.jpg: empty"])
    results = replace(results, lists=[Drawing("worst", "Worst queries", "x", plain_picture, photos=True)])
    page = Page(written(tmp_path, results, flip=False, batch=128))
    assert page.headings == [
        "Evaluation of light14-abc on town", "Scores", "town", "Verification", "Calibration", "Open set",
        "Camera pairs", "Rank lists", "Map of some identities", "Activation maps", "Model and settings",
    ]  # fmt: skip
    text = page.all_text
    ranking, found = results.ranking, results.verification
    for expected in (
        f"{100 * ranking.mAP:.2f}", f"{100 * ranking.rank(1):.2f}", "Cross-camera rule: gallery items",
        "identity not in gallery", "a.jpg: empty", f"AUC {100 * found.auc:.3f} %",
        f"equal error rate {100 * found.eer:.2f} %", "95 %, 20 draws", "0.3217", "0.100 %", "0.130 %", "60.00 %",
        "rests on 10 pairs", "27 queries have a match in the gallery, 9 have none",
            "needs 100 queries", "Worst queries", "flip no", "batch 128", "CMC. Fraction of queries",
    ):  # fmt: skip
        assert expected in text, expected
    assert page.tags.count("picture") == len([cmc_drawing([results]), *set_drawings(results)]) == 7


def plain_picture(path, *, dark=False):
    return plot_cmc({"a": random_results().ranking}, path, dark=dark)


@pytest.mark.slow
def test_the_page_loads_nothing_and_runs_no_script(content):
    page = Page(content)
    assert {"script", "link", "iframe", "object", "embed"}.isdisjoint(page.tags)
    assert page.links
    assert all(link.startswith(("#", "data:image/svg+xml;base64,", "data:image/webp;base64,")) for link in page.links)
    assert not re.search(r"url\(|@import|https?://", content)
    assert len(content) < 1_000_000


@pytest.mark.slow
def test_page_and_pictures_follow_the_theme(content):
    assert "color-scheme: light dark" in content
    assert content.count("@media (prefers-color-scheme: dark)") == 1
    both = re.findall(
        r'<source media="\(prefers-color-scheme: dark\)" srcset="data:image/([^;]+);base64,([^"]+)">'
        r'<img src="data:image/[^;]+;base64,([^"]+)"',
        content,
    )
    assert len(both) == content.count("<img")
    for kind, dark, light in both:
        dark, light = base64.b64decode(dark), base64.b64decode(light)
        assert dark != light
        if kind == "svg+xml":
            assert b"#16191d" in dark
            assert b"#16191d" not in light


@pytest.mark.slow
def test_all_text_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>&\'"><img src=x onerror=y>'
    results = random_results(name=evil, root=evil, left_out=[evil], notes={"Calibration": evil})
    results = replace(results, points=Drawing("map", evil, evil, results.points.draw))
    page = Page(written(tmp_path, results, described={"model": evil, evil: evil}, **{evil: evil}))
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "".join(page.text).count(evil) >= 11


@pytest.mark.slow
def test_absolute_paths_become_file_names(tmp_path):
    results = random_results(root="/data/private/town", left_out=["/data/private/town/query/a.jpg: empty"], **FEW)
    content = written(tmp_path, results, checkpoint="/home/me/runs/x/best.pt", data=["market1501:/data/private/town"])
    assert not re.search("/data|/home|private", content)
    text = Page(content).all_text
    for expected in ("Folder town", "a.jpg: empty", "checkpoint best.pt", "data market1501:town"):
        assert expected in text, expected


@pytest.mark.slow
def test_one_camera_only(tmp_path):
    results = random_results(cameras=(4,), notes={"Camera pairs": "All crops are of one camera."})
    page = Page(written(tmp_path, results))
    assert "All crops are of one camera." in page.all_text
    assert [drawing.name for drawing in set_drawings(results)] == ["distances", "roc", "map", "activations"]


def test_a_page_with_scores_only(tmp_path):
    ranking = evaluate([[1.0, 0]], [[1.0, 0]], [1], [1], cross_camera=False)
    page = Page(written(tmp_path, SetResults("town", "/data", ranking, notes={"Verification": "no pairs"})))
    assert page.headings[1:] == ["Scores", "town", "Verification", "Model and settings"]
    assert "no pairs" in page.all_text
    assert "dropped queries" not in page.all_text  # 0 dropped: no table
    assert "1 queries were scored, 0 were dropped" in page.all_text


@pytest.mark.slow
def test_several_data_sets_and_reranking(tmp_path):
    one = random_results(**FEW)
    sets = [one, replace(one, name="village", reranked=one.ranking)]
    page = Page(written(tmp_path, *sets))
    assert [link for link in page.links if link.startswith("#")] == ["#part1", "#part2", "#part5", "#part8"]
    for name in ("town: Ranked by", "village: Ranked by", "village, re-ranked: Ranked by"):
        assert name in page.all_text
    svg = cmc_drawing(sets).draw(tmp_path / "cmc.svg").read_text()
    assert all(f"<!-- {name} -->" in svg for name in ("town", "village", "village, re-ranked"))


@pytest.mark.slow
def test_rates_with_too_few_pairs_have_a_note(tmp_path):
    results = random_results(people=3, **FEW)
    page = Page(written(tmp_path, results))
    notes = [point.note for point in results.verification.tar if point.note]
    assert notes
    assert all(note in page.all_text for note in notes)
    assert page.all_text.count("not enough data") == len(notes)
    assert "nan" not in page.all_text


def test_a_custom_page(tmp_path):
    table = Table(["name", "b"], [["x & y", "1"]], "a < b")
    path = write_page(tmp_path / "page.html", "Title", [Section("First", ["text", table])], lead="lead")
    page = Page(path.read_text())
    assert "nav" not in page.tags
    assert page.all_text == "Title Title lead First text a < b name b x & y 1"


def test_a_failing_picture_leaves_no_page(tmp_path):
    empty = Drawing("x", "x", "x", partial(plot_cmc, {}))
    with pytest.raises(ReidError, match="There is no result"):
        write_page(tmp_path / "page.html", "Title", [Section("First", [empty])])
    (tmp_path / "file").write_text("")
    with pytest.raises(ReidError, match="Cannot write"):
        write_page(tmp_path / "file/page.html", "Title", [])
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
