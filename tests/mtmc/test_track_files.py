from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reid.core.errors import ReidError
from reid.mtmc import Tracks
from reid.mtmc.track_files import FORMATS, read_tracks
from reid.mtmc.track_writers import write_aicity, write_tracks

MOT = "1,7,10,20,30,40,0.5,-1,-1,-1\n2,7,11,20,30,40,0.75,-1,-1,-1\n"


def put(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def rows(tracks: Tracks) -> list[tuple]:
    names = [tracks.camera_names[i] for i in tracks.camera]
    columns = (names, tracks.track.tolist(), tracks.frame.tolist(), tracks.boxes.tolist(), tracks.confidence.tolist())
    return list(zip(*columns, strict=True))


TWO = [("cam01", 7, 1, [10, 20, 30, 40], 0.5), ("cam01", 7, 2, [11, 20, 30, 40], 0.75)]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(MOT, id="as written by most"),
        pytest.param(MOT.rstrip("\n"), id="no line end at the end"),
        pytest.param(MOT.replace("\n", "\r\n"), id="Windows line ends"),
        pytest.param(MOT.replace("\n", "\r"), id="old Macintosh line ends"),
        pytest.param("\ufeff" + MOT, id="byte order mark"),
        pytest.param("# frame,id,…\n" + MOT, id="a comment"),
        pytest.param(MOT.replace("\n", "\n\n%\n  \n"), id="blank lines and comments between"),
        pytest.param(MOT.replace(",", ", "), id="spaces after commas"),
        pytest.param(MOT.replace(",", " "), id="spaces"),
        pytest.param(MOT.replace(",", "   "), id="several spaces"),
        pytest.param(MOT.replace(",", "\t"), id="tabs"),
        pytest.param(MOT.replace(",", ";"), id="semicolons"),
        pytest.param(MOT.replace(",", ";").replace(".", ","), id="semicolons and decimal commas, from a German Excel"),
        pytest.param("\ufeff" + MOT.replace(",", " ; ").replace("\n", "\r\n"), id="Windows CSV with spaces"),
        pytest.param(MOT.replace(",7,", ',"7",'), id="quotes"),
        pytest.param(MOT.replace("\n", ",\n"), id="a comma at each end"),
        pytest.param(MOT.replace(",7,", ",7.0,"), id="ids with a point, as pandas writes them"),
        pytest.param(MOT.replace(",7,", ",7.000000000000000000e+00,"), id="as numpy.savetxt writes them"),
        pytest.param("".join(reversed(MOT.splitlines(keepends=True))), id="in another order"),
        pytest.param(MOT.replace(",7,", ",+7,"), id="a plus sign"),
        pytest.param(MOT.replace(",-1,-1,-1", ""), id="7 columns"),
        pytest.param(MOT.replace(",-1,-1,-1", ",-1,-1"), id="9 columns, of which 8 and 9 say nothing"),
        pytest.param(MOT.replace("-1,-1,-1", "2.5,3.5,0"), id="world coordinates"),
    ],
)
def test_mot_text_in_every_spelling(tmp_path, text):
    tracks = read_tracks(put(tmp_path / "t", cam01=text))
    assert rows(tracks) == TWO
    assert (tracks.format, tracks.warnings) == ("mot", ())


GT = "1,7,10,20,30,40,1,1,0.5\n2,7,11,20,30,40,0,1,1\n3,7,11,20,30,40,1,7,0\n"
AICITY = "41 7 1 10 20 30 40 -1 -1\n42 7 2 11 20 30 40 -1 -1\n"


@pytest.mark.parametrize(
    ("text", "format", "why", "expected"),
    [
        pytest.param(MOT, "mot", "mot: 10 columns", TWO, id="10 columns"),
        pytest.param("1,7,10,20,30,40\n", "mot", "6 columns", [(*TWO[0][:4], 1)], id="no confidence: 1"),
        pytest.param(MOT.replace("0.5", "-1"), "mot", "10", [(*TWO[0][:4], 1), TWO[1]], id="confidence -1: not given"),
        pytest.param(
            GT, "mot", "consider, class, visibility: 9 columns",
            [(*TWO[0][:4], 1), ("cam01", 7, 3, [11, 20, 30, 40], 1)], id="ground truth; a row not to consider",
        ),
        pytest.param(
            AICITY, "aicity", "a height, not a confidence; spaces",
            [("41", 7, 1, [10, 20, 30, 40], 1), ("42", 7, 2, [11, 20, 30, 40], 1)], id="AI City",
        ),
        pytest.param(
            AICITY.replace(" ", ","), "duke", "a height, not a confidence; commas",
            [("41", 7, 1, [10, 20, 30, 40], 1), ("42", 7, 2, [11, 20, 30, 40], 1)], id="DukeMTMC",
        ),
        pytest.param(
            "41 7 1 10 20 30 40\n", "aicity", "height", [("41", 7, 1, [10, 20, 30, 40], 1)], id="AI City, 7 columns"
        ),
    ],
)  # fmt: skip
def test_formats_are_detected_from_content(tmp_path, text, format, why, expected):
    put(tmp_path / "t", cam01=text)
    for path in (tmp_path / "t", tmp_path / "t" / "cam01.txt"):
        tracks = read_tracks(path)
        assert tracks.format == format
        assert why in tracks.format_reason
        assert rows(tracks) == expected


def test_ground_truth_rows_with_consider_0_are_counted(tmp_path):
    assert read_tracks(put(tmp_path / "t", a=GT)).warnings == (
        "1 ground-truth rows skipped: their 7th column (consider) is 0.",
    )


def test_the_format_can_be_given(tmp_path):
    logits = "1,7,10,20,30,40,5.5\n"  # looks like camera 1, id 7, frame 10, of height 5.5
    folder = put(tmp_path / "t", cam01=logits)
    assert read_tracks(folder).format == "duke"
    given = read_tracks(folder, format="mot")
    assert rows(given) == [("cam01", 7, 1, [10, 20, 30, 40], 5.5)]
    assert given.format_reason.startswith("mot: as given")
    with pytest.raises(ReidError, match="Did you mean 'aicity'"):
        read_tracks(folder, format="aic")
    with pytest.raises(ReidError, match="not a Parquet file"):
        read_tracks(folder, format="parquet")


def test_empty_files_are_cameras_without_tracks(tmp_path):
    folder = put(tmp_path / "t", cam2=MOT, cam10="", cam1="\n# nothing\n")
    tracks = read_tracks(folder)
    assert tracks.camera_names == ("cam1", "cam2", "cam10")
    assert set(tracks.camera.tolist()) == {1}
    nothing = read_tracks(put(tmp_path / "none", a="", b=""))
    assert (len(nothing), nothing.camera_names, nothing.format) == (0, ("a", "b"), "mot")
    assert read_tracks(folder / "cam10.txt", format="aicity").camera_names == ()


def test_other_files_in_the_folder_are_ignored(tmp_path):
    folder = put(tmp_path / "t", cam01=MOT)
    for name in ("cameras.yaml", ".cam02.txt", "seqinfo.ini", "cam01.mp4", "scores.json"):
        (folder / name).write_text("not tracks")
    (folder / "videos.txt").mkdir()
    assert rows(read_tracks(folder)) == TWO


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param({"a": MOT + "3,7,10,x,30,40,1,-1,-1,-1\n"}, r"a\.txt, line 3: '3,7,10,x.*s 'x'", id="a word"),
        pytest.param({"a": "frame,id,x,y,w,h\n" + MOT}, r"line 1.*Put # before a header line", id="headings"),
        pytest.param({"a": MOT + "\n3,7,10\n"}, r"line 4: '3,7,10' has 3 values where the first line has 10", id="cut"),
        pytest.param({"a": MOT + "3,7,,20,30,40,1,-1,-1,-1\n"}, r"line 3.*contains ''", id="an empty field"),
        pytest.param({"a": "1,7,10,20,30\n"}, "5 columns, which is too few", id="too few columns"),
        pytest.param({"a": MOT + "3,-1,1,2,3,4,1,-1,-1,-1\n"}, r"line 3: the id is -1 \(1 of 3 rows.*tracker", id="-1"),
        pytest.param({"a": "#\n" + MOT + "3,-2,1,2,3,4,1,-1,-1,-1\n"}, r"line 4: the id is -2", id="negative id"),
        pytest.param({"a": MOT + "-3,2,1,2,3,4,1,-1,-1,-1\n"}, r"line 3: the frame is -3", id="negative frame"),
        pytest.param({"a": MOT + "\n3.5,2,1,2,3,4,1,-1,-1,-1\n"}, r"line 4: the frame is 3.5", id="half a frame"),
        pytest.param({"a": MOT + "nan,2,1,2,3,4,1,-1,-1,-1\n"}, r"line 3: the frame is nan", id="no frame"),
        pytest.param({"a": MOT + "3,1e19,1,2,3,4,1,-1,-1,-1\n"}, r"the id is 1e\+19", id="an id beyond 63 bits"),
        pytest.param({"a": MOT, "b": AICITY}, r"different formats: a\.txt is mot.*b\.txt is aicity", id="two formats"),
        pytest.param({"a": MOT, "b": GT}, r"different formats: .*b\.txt is mot with consider", id="truth and results"),
        pytest.param({"a": MOT.encode("utf-16")}, r"not plain text", id="UTF-16"),
        pytest.param({"a": b"1,7\0\0\0"}, r"not plain text", id="not text"),
        pytest.param({}, r"contains no \.txt or \.parquet", id="an empty folder"),
    ],
)  # fmt: skip
def test_invalid_track_files_are_errors_with_file_and_line(tmp_path, files, message):
    folder = put(tmp_path / "t", **files)
    with pytest.raises(ReidError, match=message):
        read_tracks(folder)


def test_missing_tracks_are_an_error(tmp_path):
    with pytest.raises(ReidError, match="There are no tracks at"):
        read_tracks(tmp_path / "none")
    (tmp_path / "gt").mkdir()
    with pytest.raises(ReidError, match="has the folders gt"):
        read_tracks(tmp_path)


def test_invalid_boxes_are_skipped_and_listed(tmp_path):
    bad = "3,7,1,2,0,40,1,-1,-1,-1\n4,7,1,2,30,-1,1,-1,-1,-1\n5,7,nan,2,3,4,1,-1,-1,-1\n6,7,1,2,inf,4,1,-1,-1,-1\n"
    tracks = read_tracks(put(tmp_path / "t", cam01=MOT + "\n" + bad + "7,7,-50,2,3,4,nan,-1,-1,-1\n"))
    assert rows(tracks) == TWO
    assert tracks.warnings == (
        "5 boxes skipped (no area, not finite, or beyond 1,000,000 pixels): cam01.txt line 4, cam01.txt line 5, "
        "cam01.txt line 6, cam01.txt line 7, cam01.txt line 8.",
    )


def test_frame_0_and_boxes_outside_the_image_are_kept(tmp_path):
    tracks = read_tracks(put(tmp_path / "t", a="0,0,-100,-50,30,40,1,-1,-1,-1\n"))
    assert rows(tracks) == [("a", 0, 0, [-100, -50, 30, 40], 1)]
    assert "Frames count from 0" in tracks.warnings[0]


@pytest.mark.parametrize(
    ("box", "confidence"),
    [("1,2,1e308,4", 1), ("-1e308,2,1e308,4", 1), ("1,2,1e-200,1e-200", 1), ("1,2,3,4", 1e300)],
)
def test_absurd_boxes_are_skipped_and_listed(tmp_path, box, confidence):
    tracks = read_tracks(put(tmp_path / "t", cam01=MOT + f"3,7,{box},{confidence},-1,-1,-1\n"))
    assert rows(tracks) == TWO
    assert "1 boxes skipped (no area, not finite, or beyond 1,000,000 pixels): cam01.txt line 3" in tracks.warnings[0]


LARGE_IDS = (2**53 + 1, 2**60 + 3, 2**63 - 1)


@pytest.mark.parametrize("identity", LARGE_IDS)
@pytest.mark.parametrize("format", list(FORMATS))
def test_large_ids_are_exact(tmp_path, format, identity):
    tracks = Tracks.from_columns(["cam1"], [0, 0], [identity, 5], [1, 2], [[10, 20, 30, 40]] * 2)
    write_tracks(tracks, tmp_path / "t", format)
    assert read_tracks(tmp_path / "t").track.tolist() == [identity, 5]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param("1000000000000,7,1,2,3,4,1", r"line 3: the frame is 1e\+12.*not time stamps", id="a time stamp"),
        pytest.param(
            "3,9223372036854775808,1,2,3,4,1", r"line 3: the id is 9.*from 0 to 2\^63 - 1", id="an id of 2^63"
        ),
        pytest.param("3,9007199254740993.5,1,2,3,4,1", r"line 3: the id is 9", id="a large id with a fraction"),
        pytest.param("3,1e400,1,2,3,4,1", r"line 3: the id is inf", id="an infinite id"),
    ],
)
def test_absurd_frames_and_ids_are_errors(tmp_path, row, message):
    with pytest.raises(ReidError, match=message):
        read_tracks(put(tmp_path / "t", cam01=MOT + row + ",-1,-1,-1\n"))


def test_absurd_numbers_in_parquet_are_errors(tmp_path):
    pq.write_table(table(track=pa.array([7, 2**63], pa.uint64())), tmp_path / "t.parquet")
    with pytest.raises(ReidError, match=r"row 1 \(from 0\): the id is 9.*2\^63 - 1"):
        read_tracks(tmp_path)
    pq.write_table(table(track=[7, 2**62 + 1], x=[1, 2]), tmp_path / "t.parquet")
    assert read_tracks(tmp_path).track.tolist() == [7, 2**62 + 1]
    with pytest.raises(ReidError, match=r"Tracks.frame is 2147483648 in row 0; the largest is 2147483647"):
        Tracks.from_columns(["a"], [0], [1], [2**31], [[1, 2, 3, 4]])


def test_untracked_rows_are_left_out_on_request_and_counted(tmp_path):
    folder = put(tmp_path / "t", cam01=MOT + "3,-1,1,2,3,4,1,-1,-1,-1\n")
    with pytest.raises(ReidError, match="--skip-untracked"):
        read_tracks(folder)
    tracks = read_tracks(folder, skip_untracked=True)
    assert rows(tracks) == TWO
    assert tracks.warnings == ("cam01.txt: 1 of 3 rows skipped: their id is -1 (untracked).",)
    detections = put(tmp_path / "d", cam01="3,-1,1,2,3,4,1,-1,-1,-1\n")
    with pytest.raises(ReidError, match=r"1 of 1 rows.*Run a tracker"):
        read_tracks(detections, skip_untracked=True)


def test_percent_confidences_in_7_columns_are_no_cameras(tmp_path):
    lines = [f"{frame},{track},{100 + frame},20,30,60,{80 + track}" for frame in range(1, 51) for track in (1, 2)]
    tracks = read_tracks(put(tmp_path / "t", cam01="\n".join(lines)))
    assert (tracks.camera_names, len(tracks), tracks.frame.max()) == (("cam01",), 100, 50)
    assert tracks.format_reason == "mot: 7 columns, the 7th a confidence in percent, commas"
    aicity = [
        f"{camera} {track} {frame} {100 + frame} 20 30 60" for frame in range(9) for camera, track in ((1, 1), (2, 1))
    ]
    assert read_tracks(put(tmp_path / "a", all="\n".join(aicity))).camera_names == ("1", "2")


def sequence(folder: Path, text: str = GT) -> Path:
    put_gt = folder / "gt"
    put_gt.mkdir(parents=True)
    (put_gt / "gt.txt").write_text(text)
    (folder / "seqinfo.ini").write_text("[Sequence]\nname=x\nframeRate=30\nimWidth=640\nimHeight=480\n")
    return folder


def test_a_tree_of_sequences_is_read_as_several_cameras(tmp_path):
    for name in ("MOT17-02", "MOT17-10"):
        sequence(tmp_path / "train" / name)
    tracks = read_tracks(tmp_path / "train")
    assert tracks.camera_names == ("MOT17-02", "MOT17-10")
    assert tracks.warnings[0] == "1 ground-truth rows skipped: their 7th column (consider) is 0."
    for path in ("MOT17-02", "MOT17-02/gt", "MOT17-02/gt/gt.txt"):
        assert read_tracks(tmp_path / "train" / path).camera_names == ("MOT17-02",)
    (tmp_path / "train" / "MOT17-10" / "gt" / "gt.txt").write_text("1,7,x,20,30,40,1,1,1\n")
    with pytest.raises(ReidError, match=r"MOT17-10/gt/gt\.txt, line 1"):
        read_tracks(tmp_path / "train")


def test_labels_and_readme_files_of_exports_are_passed_over_and_named(tmp_path):
    folder = sequence(tmp_path / "task")
    (folder / "gt" / "labels.txt").write_text("person\ncar\n3rd\n4\n5\n6\nbag\n")
    (folder / "gt" / "README.roboflow.txt").write_text("Exported on 1 May\n")
    tracks = read_tracks(folder / "gt")
    assert tracks.camera_names == ("task",)
    assert (
        "2 entries are not read as tracks: 2 × another type of file (README.roboflow.txt, labels.txt)."
        in (tracks.warnings[0])
    )
    assert tracks.warnings[1] == "task/gt/gt.txt: all classes are read as people: person 2, bag 1 rows."
    assert read_tracks(folder).warnings == tracks.warnings[1:]


def test_whatever_a_folder_of_tracks_also_contains_is_named(tmp_path):
    folder = put(tmp_path / "t", cam01=MOT)
    for name in ("cam01.mp4", "cam01.TXT.bak", "cameras.yaml", ".hidden"):
        (folder / name).write_text("")
    (folder / "cam02.txt").symlink_to("gone.txt")
    (folder / "more").mkdir()
    assert read_tracks(folder).warnings == (
        f"{folder}: 4 entries are not read as tracks: 2 × another type of file (cam01.TXT.bak, cam01.mp4); 1 × a link "
        "that leads nowhere: No such file or directory (cam02.txt); 1 × a folder (more).",
    )
    sequence(tmp_path / "train" / "one")
    (tmp_path / "train" / "two" / "det").mkdir(parents=True)
    assert "1 entries are not read as tracks: 1 × a folder (two)." in read_tracks(tmp_path / "train").warnings[0]


@pytest.mark.slow
def test_lines_that_are_not_plain_are_read_and_located_in_a_long_file(tmp_path):
    texts = [f"{number},7,{number},20,30,40,0.5" for number in range(1, 50_001)]
    for number, text in {
        3: "# note",
        20_000: "",
        20_001: " 60000 , 7 ,5,20,30,40,+0.5",
        44_444: "9,8,9,20,30,40,",
    }.items():
        texts[number - 1] = text
    file = tmp_path / "cam01.txt"
    file.write_text("\n".join(texts))
    with pytest.raises(ReidError, match=r"cam01\.txt, line 44444: '9,8,9,20,30,40,' has 6 values where the first"):
        read_tracks(file)
    texts[44_443] = ""
    file.write_text("\n".join(texts))
    tracks = read_tracks(file)
    assert tracks.frame.tolist() == [*(n for n in range(1, 50_001) if n not in (3, 20_000, 20_001, 44_444)), 60_000]
    assert tracks.boxes[:, 0].tolist() == [*tracks.frame[:-1].tolist(), 5]
    file.write_text("\n".join(texts).replace(" 60000 ", " 6 "))
    with pytest.raises(ReidError, match=r"cam01\.txt line 20001 and cam01\.txt line 6 both have id 7 in frame 6"):
        read_tracks(file)


TWICE = (
    "1,7,10,20,30,40,0.5,-1,-1,-1\n"
    "1,7,10,20,30,40,0.9,-1,-1,-1\n"
    "2,7,11,20,30,40,0.5,-1,-1,-1\n"
    "2,7,12,20,30,40,0.9,-1,-1,-1\n"
    "2,7,13,20,30,40,0.9,-1,-1,-1\n"
)


def test_different_boxes_of_one_id_in_a_frame(tmp_path):
    folder = put(tmp_path / "t", cam01=TWICE)
    with pytest.raises(ReidError, match=r"cam01\.txt line 4 and cam01\.txt line 3 both have id 7 in frame 2 of camera"):
        read_tracks(folder)
    first = read_tracks(folder, duplicates="first")
    assert [row[3:] for row in rows(first)] == [([10, 20, 30, 40], 0.5), ([11, 20, 30, 40], 0.5)]
    assert first.warnings == (
        "3 rows skipped whose id was already in that frame, 1 with an equal box, 2 with another box (kept: the "
        "first): cam01.txt line 2, cam01.txt line 4, cam01.txt line 5.",
    )
    confident = read_tracks(folder, duplicates="confident")
    assert [row[3:] for row in rows(confident)] == [([10, 20, 30, 40], 0.9), ([12, 20, 30, 40], 0.9)]
    assert "cam01.txt line 1, cam01.txt line 3, cam01.txt line 5" in confident.warnings[0]
    with pytest.raises(ReidError, match="Unknown value of duplicates 'last'"):
        read_tracks(folder, duplicates="last")


def test_equal_boxes_of_one_id_are_counted_once(tmp_path):
    tracks = read_tracks(put(tmp_path / "t", cam01=MOT + MOT))
    assert rows(tracks) == TWO
    assert tracks.warnings == (
        "2 rows skipped whose id was already in that frame, 2 with an equal box: cam01.txt line 3, cam01.txt line 4.",
    )


def test_the_same_id_in_two_cameras_is_no_duplicate(tmp_path):
    assert len(read_tracks(put(tmp_path / "t", a=MOT, b=MOT))) == 4


def ugly(rng: np.random.Generator) -> Tracks:
    n = 400
    boxes = 10.0 ** rng.uniform(-5, 6, (n, 4))
    boxes[:, :2] *= rng.choice([-1, 1], (n, 2))
    frames = rng.choice(10_000_000, n, replace=False)
    return Tracks.from_columns(
        ["cam1", "cam2", "cam3"], rng.choice([0, 2], n), rng.integers(0, 2**52, n), frames, boxes, rng.random(n)
    )


@pytest.mark.parametrize("format", list(FORMATS))
def test_written_tracks_are_read_back_equal(tmp_path, format):
    tracks = ugly(np.random.default_rng(0))
    write_tracks(tracks, tmp_path / "out", format)
    again = read_tracks(tmp_path / "out")
    assert again.format == format
    for name in ("track", "frame", "boxes"):
        assert np.array_equal(getattr(again, name), getattr(tracks, name)), name
    if format in ("mot", "parquet"):
        assert again.camera_names == tracks.camera_names  # the camera without boxes too
        assert np.array_equal(again.camera, tracks.camera)
        assert np.array_equal(again.confidence, tracks.confidence)
    else:
        assert again.camera_names == ("1", "3")
        assert (again.confidence == 1).all()


@pytest.mark.parametrize("format", list(FORMATS))
def test_tracks_without_boxes_can_be_written(tmp_path, format):
    write_tracks(Tracks.from_columns(["a"], [], [], [], []), tmp_path / "out", format)
    assert len(read_tracks(tmp_path / "out")) == 0


def test_written_text(tmp_path):
    tracks = Tracks.from_columns(["cam01", "cam02"], [1], [7], [3], [[10, 20.25, 30, 40]], [0.1])
    files = write_tracks(tracks, tmp_path / "mot")
    assert [file.name for file in files] == ["cam01.txt", "cam02.txt"]
    assert [file.read_text() for file in files] == ["", "3,7,10,20.25,30,40,0.1,-1,-1,-1\n"]
    assert write_aicity(tracks, tmp_path / "aic.txt") == {"cam01": 1, "cam02": 2}
    assert (tmp_path / "aic.txt").read_text() == "2 7 3 10 20.25 30 40 -1 -1\n"
    (duke,) = write_tracks(tracks, tmp_path / "duke", "duke")
    assert duke.read_text() == "2,7,3,10,20.25,30,40,-1,-1\n"
    named = Tracks.from_columns(["door", "hall"], [1], [7], [3], [[10, 20, 30, 40]])
    assert write_aicity(named, tmp_path / "named.txt") == {"door": 1, "hall": 2}


def test_writing_what_would_be_misread_is_an_error(tmp_path):
    tracks = Tracks.from_columns(["a"], [0], [7], [3], [[10, 20, 30, 40]])
    write_tracks(tracks, tmp_path / "out")
    write_tracks(tracks, tmp_path / "out")  # the same files again
    with pytest.raises(ReidError, match=r"other track files \(a\.txt\)"):
        write_tracks(Tracks.from_columns(["b"], [], [], [], []), tmp_path / "out")
    with pytest.raises(ReidError, match="is not a valid file name"):
        write_tracks(Tracks.from_columns(["../a"], [], [], [], []), tmp_path / "new")
    with pytest.raises(ReidError, match="Unknown track format 'motchallenge'"):
        write_tracks(tracks, tmp_path / "new", "motchallenge")
    assert not (tmp_path / "new").exists()


def table(**columns) -> pa.Table:
    whole = {"camera": ["a", "a"], "track": [7, 7], "frame": [1, 2]}
    return pa.table(whole | {name: [1.0, 2.0] for name in "xywh"} | columns)


def test_parquet_of_other_programs(tmp_path):
    for camera in (pa.array([12, 3]), pa.array(["12", "3"]), pa.array(["12", "3"]).dictionary_encode()):
        pq.write_table(table(camera=camera, more=["x", "y"]), tmp_path / "t.parquet")
        tracks = read_tracks(tmp_path / "t.parquet")
        assert rows(tracks) == [("3", 7, 2, [2] * 4, 1), ("12", 7, 1, [1] * 4, 1)]
    pq.write_table(table(track=[7.0, 8.0], confidence=[0.5, 0.25]), tmp_path / "t.parquet")
    assert [row[1::3] for row in rows(read_tracks(tmp_path))] == [(7, 0.5), (8, 0.25)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(table().drop(["w", "h"]), "has no column 'w', 'h'", id="columns missing"),
        pytest.param(table(track=[7, None]), "'track' has no value in row 1", id="a value missing"),
        pytest.param(table(track=[7, -1]), "row 1 .from 0.: the id is -1.*untracked", id="no id"),
        pytest.param(table(frame=[1.5, 2]), "row 0 .from 0.: the frame is 1.5", id="half a frame"),
        pytest.param(table(x=["1", "2"]), "'x' must contain numbers; it contains string", id="text for numbers"),
        pytest.param(table(camera=[0.5, 1]), "'camera' must contain names", id="half a camera"),
        pytest.param(table(frame=[1, 1]), r"t\.parquet row 1 \(from 0\) and .* row 0", id="one id twice in a frame"),
    ],
)
def test_invalid_parquet_is_an_error(tmp_path, content, message):
    pq.write_table(content, tmp_path / "t.parquet")
    with pytest.raises(ReidError, match=message):
        read_tracks(tmp_path / "t.parquet")


def test_parquet_that_is_cut(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ReidError, match="cannot be read as Parquet"):
        read_tracks(tmp_path)


@pytest.mark.slow
def test_synthetic_tracks_can_be_read(tmp_path):
    from reid.mtmc.cameras import read_cameras
    from reid.synthetic import synthesize

    root = synthesize(tmp_path / "streets", ids=10, cameras=3, crops_per_pass=(2, 2), track_seconds=60)
    truth, tracks = read_tracks(root / "truth"), read_tracks(root / "tracks")
    assert truth.camera_names == tracks.camera_names == ("cam01", "cam02", "cam03")
    assert len(tracks)
    cameras = read_cameras(root / "cameras.yaml", tracks.camera_names)
    assert cameras.warnings == ()
    fps = json.loads((root / "made.json").read_text())["fps"]
    assert cameras["cam02"].seconds(1 + fps) == cameras["cam02"].offset + 1
    # `min` is valid for any two sightings of one person in the truth.
    for person in np.unique(truth.track).tolist():
        spans = []
        for camera, name in enumerate(truth.camera_names):
            times = cameras[name].seconds(truth.frame[(truth.track == person) & (truth.camera == camera)])
            for walk in np.split(times, np.flatnonzero(np.diff(times) > cameras.min_transition_time(name, name)) + 1):
                spans += [(walk[0], walk[-1], name)] if len(walk) else []
        for one in spans:
            for other in spans:
                if other[0] > one[1]:
                    assert other[0] - one[1] >= cameras.min_transition_time(one[2], other[2])
