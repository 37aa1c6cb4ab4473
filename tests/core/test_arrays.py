import subprocess
import sys

import numpy as np
import pytest
import torch

from reid.core.arrays import box_array, check_finite, float_column, integer_column, text_column, unit_rows
from reid.core.errors import DataError


def test_columns_keep_values_and_have_fixed_types():
    for values in ([1, 2, -1], np.array([1, 2, -1], dtype=np.int8), torch.tensor([1, 2, -1])):
        column = integer_column("pids", values, 3)
        assert column.dtype == np.int64
        assert column.tolist() == [1, 2, -1]
    assert integer_column("pids", [], 0).dtype == np.int64
    for values in ([0, 1], torch.tensor([0.0, 1.0], requires_grad=True)):
        column = float_column("quality", values, 2, low=0, high=1)
        assert column.dtype == np.float64
        assert column.tolist() == [0, 1]
    assert text_column("paths", [3, "b"], 2).tolist() == ["3", "b"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: integer_column("pids", [1, 2], 3), r"pids must be one column of 3 rows; got shape \[2\]"),
        (lambda: integer_column("pids", [[1, 2]]), r"pids must be one column; got shape \[1, 2\]"),
        (lambda: integer_column("pids", [[1], [2, 3]]), "pids must be one column; its rows differ in length"),
        (lambda: integer_column("pids", 7), r"pids must be one column; got shape \[\]"),
        (lambda: integer_column("pids", [1.0, 2.5]), "pids must contain integers; it contains float64, such as"),
        (lambda: integer_column("pids", ["a"]), "pids must contain integers"),
        (lambda: integer_column("pids", [True]), "pids must contain integers; it contains bool"),
        (lambda: integer_column("frame", [4, -2], minimum=0), "frame is -2 in row 1; it must be 0 or more"),
        (lambda: float_column("time", ["a"]), "time must contain numbers"),
        (lambda: float_column("quality", [0.5, 1.5], low=0, high=1), r"quality is 1.5 in row 1; .* from 0 to 1"),
        (lambda: float_column("quality", [np.nan], low=0), "quality is nan in row 0; it must be from 0 to inf"),
        (lambda: text_column("paths", ["a"], 2), "paths must be one column of 2 rows"),
        (
            lambda: box_array("boxes", [[1, 2, 3]]),
            r"boxes must be \[N, 4\] \(x, y, width, height\); got shape \[1, 3\]",
        ),
    ],
)
def test_bad_columns_raise_errors_that_name_column_and_row(call, message):
    with pytest.raises(DataError, match=message):
        call()


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_check_finite_names_the_rows(convert):
    features = np.zeros((20, 4), dtype=np.float32)
    check_finite(convert(features))
    check_finite(convert(features[:0]))
    features[3, 1], features[7, 0] = np.nan, np.inf
    names = [f"{row}.jpg" for row in range(20)]
    with pytest.raises(DataError, match=r"2 of 20 gallery features contain NaN or infinity: rows 3, 7; .* 3\.jpg\."):
        check_finite(convert(features), "gallery features", labels=names)
    with pytest.raises(DataError, match=r"rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …\. Stop\."):
        check_finite(convert(np.full((11, 1), np.nan)), fix="Stop.")


def test_unit_rows_have_length_one_or_zero():
    rows = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    rows[2] = 0
    lengths = np.linalg.norm(unit_rows(rows), axis=1)
    assert np.allclose(lengths, [1, 1, 0, 1, 1])


def test_arrays_does_not_import_torch():
    code = "import sys, reid.core.arrays; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
