from __future__ import annotations

from pathlib import Path

import pytest

from reid.core.errors import ReidError
from reid.data.sources import load_benchmarks, load_source


def test_layout_and_root_in_one_text(tiny_market: Path) -> None:
    benchmark = load_source(f"market1501:{tiny_market}")
    assert (len(benchmark.train), len(benchmark.query), len(benchmark.gallery)) == (120, 20, 60)


def test_options_follow_a_question_mark(tmp_path: Path) -> None:
    names = {f"{pid}_{shot}.jpg": pid for pid in range(20) for shot in range(3)}
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "t.csv").write_text("path,pid\n" + "".join(f"{name},{pid}\n" for name, pid in names.items()))
    half, fifth = (load_source(f"table:{tmp_path / 't.csv'}?fraction={fraction}") for fraction in (0.5, 0.2))
    assert len(half.train) == 30
    assert len(fifth.train) == 48


def test_the_same_set_twice_is_numbered(tiny_market: Path) -> None:
    names = [benchmark.name for benchmark in load_benchmarks([f"market1501:{tiny_market}"] * 2)]
    assert names == ["market1501#1", "market1501#2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("market1501", "LAYOUT:ROOT"),  # no root
        ("market1501:", "LAYOUT:ROOT"),  # an empty root
        ("/data/market", "LAYOUT:ROOT"),  # no layout
        ("market:/data", "Did you mean 'market1501'"),  # misspelt
        ("market1501:/data?fast", "fast"),  # an option without a value
        ("market1501:/data?fast=1", "fast"),  # an option that the layout does not take
    ],
)
def test_a_wrong_text_is_named(text: str, words: str) -> None:
    with pytest.raises(ReidError, match=words):
        load_source(text)
