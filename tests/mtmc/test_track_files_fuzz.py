"""Every track file is read, or refused with an error for users: no other exception, whatever its bytes are."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reid.core.errors import ReidError
from reid.data.tracks import MAX_FRAME, MAX_PIXELS
from reid.mtmc.track_files import FORMATS, read_tracks
from reid.mtmc.track_writers import write_tracks

pytestmark = pytest.mark.slow

EXAMPLES = settings(max_examples=150, deadline=None)

ABSURD = (
    "0", "-1", "-0.0", "1", "7", "10.5", "1e308", "-1e308", "1e-308", "nan", "inf", "-inf", "1e12",
    "9223372036854775807", "9223372036854775808", "18446744073709551616", "9007199254740993",
    "", " ", "+", "--1", "0x10", "1_0", "1,5", '"3"', "٣", "x", "#", "1e", "1e999999999", "\ufeff1", "-",
)  # fmt: skip
FIELDS = st.one_of(
    st.sampled_from(ABSURD), st.integers(-2, 100).map(str), st.floats(width=64).map(repr), st.text(max_size=3)
)
SEPARATORS = st.sampled_from([",", ", ", ";", " ; ", "\t", " ", "  "])
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\u2028"])


@st.composite
def track_text(draw: st.DrawFn) -> bytes:
    """Text of 5 to 11 columns: mostly plausible numbers, some of them replaced by absurd fields."""
    width, separator, end = draw(st.integers(5, 11)), draw(SEPARATORS), draw(LINE_ENDS)
    plausible = st.lists(st.integers(0, 50).map(str), min_size=width, max_size=width)
    anything = st.lists(FIELDS, min_size=1, max_size=width + 1)
    mixed = st.tuples(plausible, st.integers(0, width - 1), FIELDS).map(
        lambda t: [*t[0][: t[1]], t[2], *t[0][t[1] + 1 :]]
    )
    lines = draw(st.lists(st.one_of(plausible, plausible, mixed, anything), max_size=12))
    mark = draw(st.sampled_from(["", "\ufeff"]))
    return (mark + end.join(separator.join(line) for line in lines)).encode("utf-8", "surrogatepass")


def check(data: bytes, format: str = "auto", duplicates: str = "first", skip_untracked: bool = True) -> None:
    """Read the bytes as a track file; what is accepted is within bounds and can be written and read back."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cam01.txt"
        file.write_bytes(data)
        try:
            tracks = read_tracks(file, format=format, duplicates=duplicates, skip_untracked=skip_untracked)
        except ReidError:
            return
        assert (tracks.track >= 0).all()
        assert ((tracks.frame >= tracks.first_frame) & (tracks.frame <= MAX_FRAME)).all()
        assert (np.abs(tracks.boxes) <= MAX_PIXELS).all()
        write_tracks(tracks, Path(folder) / "again", "parquet")
        again = read_tracks(Path(folder) / "again")
        assert np.array_equal(again.track, tracks.track)
        assert np.array_equal(again.boxes, tracks.boxes)


@pytest.mark.slow
@given(
    track_text(), st.sampled_from(["auto", *FORMATS]), st.sampled_from(["error", "first", "confident"]), st.booleans()
)
@EXAMPLES
def test_absurd_text_is_read_or_refused(data: bytes, format: str, duplicates: str, skip_untracked: bool) -> None:
    check(data, format, duplicates, skip_untracked)


@given(st.binary(max_size=200), st.sampled_from([b"", b"PAR1", b"\xff\xfe", b"1,1,1,1,1,1\n"]))
@example(b"\x1c\r", b"")  # a space as text, but not as bytes
@EXAMPLES
def test_random_bytes_are_read_or_refused(data: bytes, head: bytes) -> None:
    check(head + data)


COLUMNS = st.sampled_from(
    [
        pa.array([1, 2]), pa.array([1, 2], pa.uint64()), pa.array([2**64 - 1, 0], pa.uint64()), pa.array([1.0, np.nan]),
        pa.array([2.0**62, 1.5]), pa.array(["a", "b"]), pa.array(["a", "b"]).dictionary_encode(), pa.array([None, 1]),
        pa.array([b"a", b"\xff"]), pa.array([True, False]), pa.array([[1], [2]]), pa.nulls(2),
        pa.array([1e308, -1e308]), pa.array([0, 1], pa.timestamp("us")), pa.array([1, 2], pa.float16()),
        pa.array([-(2**63), 2**63 - 1]), pa.array([{"a": 1}, {"a": 2}]), pa.array([1, 2]).cast(pa.decimal128(25, 2)),
    ]
)  # fmt: skip


@pytest.mark.slow
@given(st.lists(COLUMNS, min_size=8, max_size=8), st.integers(0, 0xFF), st.integers(0, 2000), st.booleans())
@EXAMPLES
def test_parquet_of_any_types_is_read_or_refused(columns: list[pa.Array], odd: int, place: int, damage: bool) -> None:
    names = ("camera", "track", "frame", "x", "y", "w", "h", "confidence")
    plain = [column if odd >> number & 1 else pa.array([1, 2]) for number, column in enumerate(columns)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(zip(names, plain, strict=True))), sink)
    data = bytearray(sink.getvalue().to_pybytes())
    if damage:
        data[4 + place % (len(data) - 4)] ^= 0x55
    check(bytes(data))


@pytest.mark.slow
def test_a_million_damaged_lines_are_refused_quickly(tmp_path: Path) -> None:
    line = b"1,7,10,20,30,40,0.5,-1,-1,-1\n"
    (tmp_path / "cam01.txt").write_bytes(line * 1_000_000 + b"1,7,10,x\n")
    with pytest.raises(ReidError, match=r"cam01\.txt, line 1000001"):
        read_tracks(tmp_path)
