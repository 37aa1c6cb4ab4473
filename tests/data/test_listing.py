"""Folders with links, loops and unreadable entries: everything is read or named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reid.core.errors import DataError
from reid.data.layouts import load_benchmark
from reid.data.listing import find_files, list_entries, summarise
from reid.embedding.batches import find_images
from tests.data.trees import write_image


def relative(paths: list[str], root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in paths]


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Three images in the folder, three behind links, and links that cannot be followed."""
    root = tmp_path / "images"
    for name in ("a.jpg", "b/1.jpg", "b/2.jpg"):
        write_image(root / name)
    for name in ("1.jpg", "deep/2.jpg"):
        write_image(tmp_path / "elsewhere" / name)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "one.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "itself.jpg").symlink_to(root / "itself.jpg")
    (root / "above").symlink_to(root)
    (root / "again").symlink_to(root / "b")
    os.mkfifo(root / "pipe.jpg")
    (root / "notes.txt").touch()
    (root / ".hidden.jpg").touch()
    return root


def test_links_are_followed_and_everything_passed_over_is_named(linked: Path) -> None:
    found, skipped = find_files(linked, [".jpg"])
    assert relative(found, linked) == ["a.jpg", "b/1.jpg", "b/2.jpg", "linked/1.jpg", "linked/deep/2.jpg", "one.jpg"]
    assert {os.path.relpath(item.path, linked): item.reason for item in skipped} == {
        "gone": "a link that leads nowhere: No such file or directory",
        "gone.jpg": "a link that leads nowhere: No such file or directory",
        "itself.jpg": "a link that leads nowhere: Too many levels of symbolic links",
        "above": f"a link to the folder {linked}, which is read once",
        "again": f"a link to the folder {linked / 'b'}, which is read once",
        "pipe.jpg": "neither a file nor a folder",
        "notes.txt": "another type of file",
    }


def test_images_behind_links_are_embedded_and_the_rest_is_in_one_warning(
    linked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(find_images(linked)) == 6
    printed = " ".join(capsys.readouterr().out.split())
    assert "7 of 13 entries were passed over: 2 × a link that leads nowhere" in printed
    assert "(gone, gone.jpg)" in printed


def test_a_folder_without_images_names_what_it_contains(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"contains no image .* It contains 1 × another type of file \(notes\.txt\)"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="Cannot read the folder"):
        find_files(tmp_path / "none", [".jpg"])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not apply")
def test_a_subfolder_without_permission_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "closed" / "b.jpg")
    (tmp_path / "closed").chmod(0)
    try:
        found, skipped = find_files(tmp_path, [".jpg"])
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert relative(found, tmp_path) == ["a.jpg"]
    assert [item.reason for item in skipped] == ["a folder that cannot be read"]


def test_a_link_to_itself_is_named_in_a_layout(tmp_path: Path) -> None:
    for person in ("anna", "ben", "carl"):
        for name in ("cam1.jpg", "cam2.jpg"):
            write_image(tmp_path / person / name)
    (tmp_path / "dora").symlink_to(tmp_path / "dora")
    (tmp_path / "anna" / "again").symlink_to(tmp_path / "anna")
    reasons = {Path(item.path).name: item.reason for item in load_benchmark("folders", tmp_path).skipped}
    assert reasons["dora"].startswith("a link that leads nowhere")
    assert reasons["again"] == "a folder; images inside it are not read"


def test_entries_are_files_folders_or_have_a_problem(linked: Path) -> None:
    kinds = {entry.name: (entry.is_folder, entry.is_file) for entry in list_entries(linked)}
    assert kinds["b"] == kinds["linked"] == (True, False)
    assert kinds["a.jpg"] == kinds["one.jpg"] == (False, True)
    assert kinds["gone"] == kinds["pipe.jpg"] == (False, False)
    assert ".hidden.jpg" not in kinds
    assert summarise([]) == ""
