from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

import reid.core.atomic
import reid.data.archives
from reid.commands import main
from reid.core.errors import ReidError
from reid.data.archives import read_unpacked, unpack_archive, verify_archive
from reid.data.layouts import load_benchmark
from tests.data.trees import CUHK, DUKE, market, write_images

KINDS = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]


def pack(tree: Path, archive: Path, top: str = "Market-1501-v15.09.15") -> Path:
    """Write a tree into an archive, whose suffix is its format, below the folder `top`."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for file in sorted(tree.rglob("*")):
                opened.write(file, f"{top}/{file.relative_to(tree)}")
    else:
        kind = {".tar": "", ".tgz": "gz"}.get(archive.suffix, archive.suffix[1:])
        with tarfile.open(archive, f"w:{kind}") as opened_tar:
            opened_tar.add(tree, top)
    return archive


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return market(tmp_path / "tree")


class Member(NamedTuple):
    """A member of a crafted archive."""

    name: str
    link_to: str = ""
    hard: bool = False
    device: bool = False


def pack_members(archive: Path, members: list[Member]) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for member in members:
                info = zipfile.ZipInfo(member.name)
                mode = stat.S_IFLNK if member.link_to else stat.S_IFCHR if member.device else stat.S_IFREG
                info.external_attr = (mode | 0o644) << 16
                opened.writestr(info, member.link_to or "x")
        return archive
    with tarfile.open(archive, "w") as opened_tar:
        for member in members:
            entry = tarfile.TarInfo(member.name)
            entry.size = 0 if member.link_to or member.device else 1
            entry.linkname = member.link_to
            if member.link_to:
                entry.type = tarfile.LNKTYPE if member.hard else tarfile.SYMTYPE
            elif member.device:
                entry.type = tarfile.CHRTYPE
            opened_tar.addfile(entry, io.BytesIO(b"x" * entry.size))
    return archive


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# unpack


@pytest.mark.parametrize("kind", KINDS)
def test_unpacked_files_equal_the_packed_files(tmp_path: Path, tree: Path, kind: str) -> None:
    folder = unpack_archive(pack(tree, tmp_path / f"set{kind}"), tmp_path / "deep" / "out")
    assert everything_below(folder / "Market-1501-v15.09.15") == everything_below(tree)
    for file in tree.rglob("*.jpg"):
        assert (folder / "Market-1501-v15.09.15" / file.relative_to(tree)).read_bytes() == file.read_bytes()
    assert os.listdir(tmp_path / "deep") == ["out"], "nothing temporary is left"


def test_a_tar_whose_top_folder_is_dot_is_unpacked(tmp_path: Path, tree: Path) -> None:
    folder = unpack_archive(pack(tree, tmp_path / "set.tar", top="."), tmp_path / "out")
    assert everything_below(folder) == everything_below(tree)


def test_backslashes_in_names_separate_folders(tmp_path: Path) -> None:
    archive = pack_members(tmp_path / "set.zip", [Member("a\\b\\"), Member("a\\b\\c.jpg")])
    assert everything_below(unpack_archive(archive, tmp_path / "out")) == ["a", "a/b", "a/b/c.jpg"]


@pytest.mark.parametrize("kind", [".zip", ".tar"])
@pytest.mark.parametrize(
    ("member", "why"),
    [
        pytest.param(Member("../evil.jpg"), "leads out", id="parent"),
        pytest.param(Member("query/../../evil.jpg"), "leads out", id="parent inside"),
        pytest.param(Member("query\\..\\..\\evil.jpg"), "leads out", id="parent by backslashes"),
        pytest.param(Member("/tmp/evil.jpg"), "absolute", id="absolute"),
        pytest.param(Member("C:\\evil.jpg"), "absolute", id="drive"),
        pytest.param(Member("\\\\server\\evil.jpg"), "absolute", id="network"),
        pytest.param(Member("query/a.jpg", link_to="/etc/passwd"), "a link", id="link"),
        pytest.param(Member("query", link_to=".."), "a link", id="link to the folder above"),
        pytest.param(Member("query/a.jpg", device=True), "neither a file nor a folder", id="device"),
        pytest.param(Member("GOOD.jpg"), "twice", id="the same name where letters' case is one"),
    ],
)
def test_an_archive_with_one_unsafe_name_is_not_unpacked(tmp_path: Path, kind: str, member: Member, why: str) -> None:
    box = tmp_path / "box"
    box.mkdir()
    archive = pack_members(tmp_path / f"set{kind}", [Member("good.jpg"), member])
    for act in (lambda: unpack_archive(archive, box / "in" / "out"), lambda: verify_archive(archive, "market1501")):
        with pytest.raises(ReidError, match=why) as error:
            act()
        assert str(archive) in str(error.value)
    assert everything_below(box) in ([], ["in"])
    assert not list(tmp_path.rglob("evil*"))


def test_hard_links_are_refused(tmp_path: Path) -> None:
    archive = pack_members(tmp_path / "set.tar", [Member("a.jpg"), Member("b.jpg", link_to="a.jpg", hard=True)])
    with pytest.raises(ReidError, match=r"'b\.jpg' is a link"):
        unpack_archive(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_leaves_nothing_behind(tmp_path: Path, tree: Path, kind: str) -> None:
    archive = pack(tree, tmp_path / f"set{kind}")
    whole = archive.read_bytes()
    for broken in (whole[: len(whole) * 2 // 3], b""):
        archive.write_bytes(broken)
        for act in (lambda: unpack_archive(archive, tmp_path / "out"), lambda: verify_archive(archive, "market1501")):
            with pytest.raises(ReidError, match=r"set.*(damaged|neither a complete zip nor a tar)"):
                act()
    assert sorted(os.listdir(tmp_path)) == sorted([archive.name, "tree"])


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_a_flipped_byte_is_detected_by_the_checksum(tmp_path: Path, tree: Path, kind: str) -> None:
    archive = pack(tree, tmp_path / f"set{kind}")
    data = bytearray(archive.read_bytes())
    at = len(data) * 2 // 3
    if kind == ".zip":  # in the content of a file, not in a header
        with zipfile.ZipFile(archive) as opened:
            info = opened.infolist()[-1]
        at = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    data[at] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(ReidError, match="is damaged"):
        verify_archive(archive, "market1501")
    with pytest.raises(ReidError, match="is damaged"):
        unpack_archive(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_member_larger_than_its_header_states_raises_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.jpg", b"\0" * 10_000_000)
    data = (tmp_path / "bomb.zip").read_bytes()
    (tmp_path / "bomb.zip").write_bytes(data.replace((10_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(ReidError, match=r"bomb\.zip"):
        unpack_archive(tmp_path / "bomb.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_larger_than_the_free_disk_is_not_unpacked(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(tree, tmp_path / "set.zip")
    monkeypatch.setattr(reid.core.atomic, "_RESERVE", 2**60)
    with pytest.raises(ReidError, match=r"Unpacking .* needs .* GB, but .* has .* GB free"):
        unpack_archive(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_destination_that_is_not_empty_raises_an_error(tmp_path: Path, tree: Path) -> None:
    archive = pack(tree, tmp_path / "set.zip")
    with pytest.raises(ReidError, match="not an empty folder"):
        unpack_archive(archive, tree)
    with pytest.raises(ReidError, match="not an empty folder"):
        unpack_archive(archive, archive)
    (tmp_path / "empty").mkdir()
    assert unpack_archive(archive, tmp_path / "empty").is_dir()


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tree, tmp_path / "set.zip")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reid.data.archives, "_blocks", stop)
    with pytest.raises(KeyboardInterrupt):
        unpack_archive(archive, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["set.zip", "tree"]


@pytest.mark.parametrize(
    ("name", "message"), [("none.zip", "no file"), ("set.rar", "neither a complete zip nor a tar")]
)
def test_a_missing_file_or_another_format_raises_an_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "set.rar").write_bytes(b"Rar!" * 100)
    with pytest.raises(ReidError, match=message):
        unpack_archive(tmp_path / name, tmp_path / "out")


def test_an_archive_with_a_password_raises_an_error(tmp_path: Path, tree: Path) -> None:
    archive = pack(tree, tmp_path / "set.zip")
    data = bytearray(archive.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(ReidError, match=r"needs a password\. Unpack it by hand"):
        unpack_archive(archive, tmp_path / "out")


@pytest.mark.parametrize(("layout", "folders"), [("market1501", None), ("dukemtmc", DUKE)])
def test_the_layout_of_an_unpacked_archive_is_detected(
    tmp_path: Path, tree: Path, layout: str, folders: dict[str, list[str]] | None
) -> None:
    if folders:
        tree = write_images(tmp_path / "other", folders)
    folder = unpack_archive(pack(tree, tmp_path / "set.zip", "any/name"), tmp_path / "out")
    assert read_unpacked(folder)[0] == layout
    assert len(read_unpacked(folder, layout)[1].train) == 3
    with pytest.raises(ReidError, match="does not contain list_train"):
        read_unpacked(folder, "msmt17")


def test_an_unknown_layout_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "holidays").mkdir()
    with pytest.raises(ReidError, match="has none of the layouts market1501, dukemtmc"):
        read_unpacked(tmp_path)


# verify


@pytest.mark.parametrize("kind", KINDS)
def test_verify_counts_images_and_writes_nothing(tmp_path: Path, tree: Path, kind: str) -> None:
    (tree / "query" / "Thumbs.db").write_bytes(b"x")
    archive = pack(tree, tmp_path / f"set{kind}")
    before = everything_below(tmp_path)
    found = verify_archive(archive, "market1501")
    assert found.images == {"bounding_box_train": 3, "query": 2, "bounding_box_test": 4}
    assert found.n_files == 10
    assert found.unpacked_bytes == sum(file.stat().st_size for file in tree.rglob("*.*"))
    assert found.n_bytes == archive.stat().st_size
    assert found.md5_agrees is False
    assert everything_below(tmp_path) == before


def test_verify_returns_sha256_and_md5(tmp_path: Path, tree: Path) -> None:
    archive = pack(tree, tmp_path / "set.zip")
    found = verify_archive(archive, "dukemtmc")
    assert found.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert found.md5 == hashlib.md5(archive.read_bytes()).hexdigest()
    assert found.md5_agrees is None, "no published sum is known for certain"


@pytest.mark.parametrize("layout", ["msmt17", "cuhk03"])
def test_verify_of_another_data_set_lists_what_is_missing(tmp_path: Path, tree: Path, layout: str) -> None:
    archive = pack(tree, tmp_path / "set.zip", "top")
    with pytest.raises(
        ReidError, match=rf"is undamaged, but is not a {layout} archive: it does not contain .*top level contains top"
    ):
        verify_archive(archive, layout)


def test_verify_accepts_one_variant_of_cuhk03(tmp_path: Path) -> None:
    tree = write_images(tmp_path / "c", {"images_detected": CUHK["train"]})
    assert verify_archive(pack(tree, tmp_path / "c.zip"), "cuhk03").images == {
        "images_labeled": 0,
        "images_detected": 3,
    }


def test_verify_needs_a_layout_that_is_distributed_as_an_archive(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(ReidError, match="Unknown layout of archives 'table'"):
        verify_archive(pack(tree, tmp_path / "set.zip"), "table")


# The commands


def test_the_commands_verify_and_unpack(tmp_path: Path, tree: Path) -> None:
    archive = pack(tree, tmp_path / "set[1].zip")
    runner = CliRunner()
    verified = runner.invoke(main, ["data", "verify", str(archive), "market1501"])
    assert verified.exit_code == 0, verified.output
    assert "set[1].zip" in verified.output
    assert "bounding_box_train: 3" in verified.output
    assert "md5 differs from the published one" in verified.output

    unpacked = runner.invoke(main, ["data", "unpack", str(archive), "--out", str(tmp_path / "out")])
    assert unpacked.exit_code == 0, unpacked.output
    assert "train: 3 images" in unpacked.output
    root = unpacked.output.split("reid data check market1501:")[1].strip()
    assert len(load_benchmark("market1501", root).train) == 3

    again = runner.invoke(main, ["data", "unpack", str(archive), "--out", str(tmp_path / "out")])
    assert again.exit_code == 1
    assert "Error: " in again.output
    assert "not an empty folder" in again.output


def test_synthesize_reads_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import reid.synthetic

    calls: list[tuple[object, ...]] = []

    def synthesize(out: Path, settings: reid.synthetic.SyntheticSettings, *, workers: int) -> Path:
        calls.append((out, settings, workers))
        return out

    monkeypatch.setattr(reid.synthetic, "synthesize", synthesize)
    out = tmp_path / "synthetic"
    (tmp_path / "s.yaml").write_text("seed: 3\nids: 30\n")
    arguments = ["--config", str(tmp_path / "s.yaml"), "ids=40", "videos=true"]
    for given in (arguments, []):
        done = CliRunner().invoke(main, ["data", "synthesize", "--out", str(out), *given])
        assert done.exit_code == 0, done.output
    settings = reid.synthetic.SyntheticSettings
    assert calls == [
        (out, settings(seed=3, ids=40, videos=True), os.cpu_count()),
        (out, settings(), os.cpu_count()),
    ]


@pytest.mark.slow
def test_the_script_in_datasets_is_the_same_command() -> None:
    script = Path(__file__).parents[2] / "datasets" / "prepare.py"
    printed = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    for name in ("verify", "unpack", "synthesize"):
        assert name in printed


@pytest.mark.parametrize("cut", [0, 100, 512])
def test_a_tar_that_is_cut_between_two_members_is_not_unpacked(tmp_path: Path, tree: Path, cut: int) -> None:
    with tarfile.open(tmp_path / "whole.tar", "w:") as archive:
        archive.add(tree, "tree")
    with tarfile.open(tmp_path / "whole.tar") as archive:
        last = archive.getmembers()[-1]
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[: last.offset + cut])
    with pytest.raises(ReidError, match=r"is damaged: .*(its end is missing|unexpected end|empty header)"):
        unpack_archive(tmp_path / "cut.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_decompression_bomb_is_refused_before_it_is_decompressed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(90_000_000))
    for reader in (verify_archive, unpack_archive):
        with pytest.raises(ReidError, match=r"bomb\.zip unpacks to more than 200 times its size"):
            reader(tmp_path / "bomb.zip", "market1501" if reader is verify_archive else tmp_path / "out")
