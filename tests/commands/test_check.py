from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reid.commands import main
from tests.data.trees import DUKE, market, write_image, write_images


def check(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", "check", *map(str, arguments)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (market(tmp_path / "set") / "made.json").write_text("{}")
    return tmp_path / "set"


def test_data_set_without_problems(root: Path) -> None:
    result = check(f"market1501:{root}", "--strict")
    assert result.exit_code == 0, result.output
    for expected in (
        "Distractors (pid 0, in the gallery): 1. Junk (pid -1, ignored): 1.",
        "Cameras that see an identity, train: 1 by 1, 1 by 2.",
        "Files: 8 images decoded",
        "Width 8; height 16 pixels.",
        "Queries: 2 of 2 can be scored, matched in other cameras only.",
        "What to fix\n Nothing.",
        "synthetic",
    ):
        assert expected in result.output


def test_official_counts_are_printed_where_they_differ(tmp_path: Path) -> None:
    output = check(f"market1501:{market(tmp_path)}").output
    assert "3 ≠ 12,936" in output
    assert "Junk (pid -1, ignored): 1 ≠ 3,819" in output
    assert "Unpack the archive again" in output


def test_findings_exit_with_1_only_with_strict(root: Path) -> None:
    write_image(root / "query" / "portrait.jpg")
    assert check(f"market1501:{root}").exit_code == 0
    assert check(f"market1501:{root}", "--strict").exit_code == 1


def test_files_are_listed_up_to_the_limit(root: Path) -> None:
    for number in range(5):
        (root / "query" / f"[red]name {number}.jpg").write_bytes(b"")
        (root / "query" / f"0001_c1s1_00000{number}_00.jpg").write_bytes(b"")
    output = check(f"market1501:{root}", "--list", 2).output
    assert "[red]name 1.jpg: the name is not of the form" in output
    assert "[red]name 2.jpg" not in output
    assert "0001_c1s1_000001_00.jpg: is empty (0 bytes)" in output
    assert output.count("and 3 more (--list 5)") == 2


def test_dropped_queries_are_printed_with_their_reason(root: Path) -> None:
    write_image(root / "query" / "0020_c1s1_000451_03.jpg")
    output = check(f"market1501:{root}").output
    assert "Queries: 2 of 3 can be scored" in output
    assert "1 dropped: no gallery image of that identity (identities 20)" in output


def test_histogram_has_one_bar_per_bin(root: Path) -> None:
    for number in range(20):
        write_image(root / "bounding_box_train" / f"0002_c1s1_0010{number:02}_00.jpg")
    lines = check(f"market1501:{root}").output.splitlines()
    start = next(number for number, line in enumerate(lines) if "by number of crops" in line)
    bars = [line for line in lines[start + 1 :] if "█" in line]
    assert [line.split()[0] for line in bars] == ["1", "16–31"]


def test_json_report(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "check.json"
    result = check(f"market1501:{root}", "--json", file, "--quick")
    assert result.exit_code == 0, result.output
    written = json.loads(file.read_text("utf-8"))
    assert written["splits"][0]["images"] == 3
    assert written["files"]["decoded"] is False
    assert written["findings"] == []
    assert "Nothing found by the quick check" in result.output


def test_dukemtmc_is_reported_as_withdrawn(tmp_path: Path) -> None:
    output = check(f"dukemtmc:{write_images(tmp_path, DUKE)}").output
    assert output.count("withdrawn by its authors in 2019") == 1


def test_table_without_cameras(tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / f"{number}.jpg")
    rows = "\n".join(f"{number}.jpg,shoe {number % 4}" for number in range(12))
    (tmp_path / "shoes.csv").write_text(f"path,pid\n{rows}\n")
    result = check(f"table:{tmp_path / 'shoes.csv'}?fraction=0.5&seed=3")
    assert result.exit_code == 0, result.output
    assert "No cameras." in result.output
    assert "matched in the whole gallery" in result.output
    assert "Queries: 2 of 2" in result.output


def test_a_missing_image_of_a_table_is_listed(tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / f"{number}.jpg")
    rows = "\n".join(f"{number}.jpg,{number % 4}" for number in range(13))
    (tmp_path / "t.csv").write_text(f"path,pid\n{rows}\n")
    output = check(f"table:{tmp_path / 't.csv'}").output
    assert "12.jpg: cannot be read: No such file" in output
    assert "1 of 13 images cannot be read" in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["market:x"], "Did you mean 'market1501'"),
        (["market1501:typo"], "There is no folder typo"),
        (["market1501:.?variant=detected"], "Unknown option of the layout market1501 'variant'"),
        (["cuhk03:.?detected"], "'detected' is not of the form key=value"),
        (["table:.?fraction=[1"], "'fraction' of the layout table is '[1'"),
        (["table:.?fraction=many"], "'fraction' of the layout table is 'many'"),
    ],
)
def test_errors_are_one_line_and_exit_with_1(arguments: list[str], expected: str) -> None:
    result = check(*arguments)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert expected in result.output
    assert "Traceback" not in result.output


def test_unwritable_json_is_an_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = check(f"market1501:{root}", "--json", tmp_path / "file" / "check.json")
    assert result.exit_code == 1
    assert "Cannot write" in result.output


def test_real_market1501_has_the_official_counts(market_root: Path) -> None:
    result = check(f"market1501:{market_root}", "--quick", "--strict")
    assert result.exit_code == 0, result.output
    assert "≠ 12" not in result.output
    for expected in (
        "12,936 ✓",
        "3,368 ✓",
        "15,913 ✓",
        "2,798 ✓",
        "3,819 ✓",
        "0 unreadable",
        "Queries: 3,368 of 3,368",
    ):
        assert expected in result.output
