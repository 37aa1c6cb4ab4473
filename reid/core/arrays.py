"""Checks of columns and features: one definition for crops, tracks, embeddings, samplers and evaluation.

The functions accept NumPy arrays, sequences and torch tensors on any device. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import DataError, first_few

UNKNOWN = -1
"""Value of `camids`, `tracks` and `frames` where the data set has no information."""

_UNIT_ROWS = 4096  # rows that are normalised together

FARTHEST_PIXEL = 1e6
"""More than the coordinates of any frame."""


def integer_column(name: str, values: ArrayLike, n: int | None = None, *, minimum: int | None = None) -> NDArray[Any]:
    """Return `values` as an int64 column `[n]`.

    Args:
        name: of the column, as the error message calls it, such as `Tracks.camera` or `query_pids`.
        values: integers.
        n: required number of rows; None accepts any.
        minimum: smallest value allowed; None accepts any.

    Raises:
        DataError: wrong shape, values that are not integers, or a value below `minimum`.

    Example:
        >>> integer_column("pids", [3, 5], 2)
        array([3, 5])
    """
    column = _column(name, values, n)
    if len(column) and column.dtype.kind not in "iu":
        raise DataError(f"{name} must contain integers; it contains {column.dtype}, such as {column[0]!r}.")
    column = column.astype(np.int64)
    if minimum is not None and len(column) and column.min() < minimum:
        row = int(np.argmin(column))
        raise DataError(f"{name} is {column[row]} in row {row}; it must be {minimum} or more.")
    return column


def float_column(
    name: str, values: ArrayLike, n: int | None = None, *, low: float | None = None, high: float | None = None
) -> NDArray[np.float64]:
    """Return `values` as a float64 column `[n]`.

    Args:
        name: of the column, as the error message calls it.
        values: integers or floats.
        n: required number of rows; None accepts any.
        low, high: inclusive limits. NaN is an error where either is given.

    Raises:
        DataError: wrong shape, values that are not numbers, or a value outside the limits.

    Example:
        >>> float_column("quality", [0, 0.5], 2, low=0, high=1)
        array([0. , 0.5])
    """
    column = _column(name, values, n)
    if len(column) and column.dtype.kind not in "iuf":
        raise DataError(f"{name} must contain numbers; it contains {column.dtype}, such as {column[0]!r}.")
    column = column.astype(np.float64)
    bottom, top = -np.inf if low is None else low, np.inf if high is None else high
    inside = (column >= bottom) & (column <= top)
    if (low is not None or high is not None) and not inside.all():
        row = int(np.argmin(inside))
        raise DataError(f"{name} is {column[row]} in row {row}; it must be from {bottom:g} to {top:g}.")
    return column


def text_column(name: str, values: Sequence[Any] | NDArray[np.object_], n: int | None = None) -> NDArray[np.object_]:
    """Return `values`, each converted to str, as an object column `[n]`.

    Raises:
        DataError: wrong number of rows.

    Example:
        >>> text_column("paths", ["a.jpg", "b.jpg"]).tolist()
        ['a.jpg', 'b.jpg']
    """
    column = np.empty(len(values), dtype=object)
    column[:] = [str(value) for value in values]
    return _column(name, column, n)


def box_array(name: str, boxes: ArrayLike) -> NDArray[np.float64]:
    """Return boxes as float64 `[N, 4]`: x, y, width, height in pixels. An empty list gives `[0, 4]`.

    Raises:
        DataError: another shape.
    """
    array = np.asarray(boxes, dtype=np.float64)
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise DataError(f"{name} must be [N, 4] (x, y, width, height); got shape {list(array.shape)}.")
    return array


def corners_of_boxes(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return left, top, right, bottom `[N, 4]` of boxes `[N, 4]`: x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def pixels_of_boxes(boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return left, top, right, bottom `[N, 4]` in whole pixels, rounded and not clipped to an image."""
    return np.rint(corners_of_boxes(boxes).clip(-FARTHEST_PIXEL, FARTHEST_PIXEL)).astype(np.int64)


def boxes_of_corners(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x, y, width, height `[N, 4]` of left, top, right, bottom `[N, 4]`."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def different_cameras(first: Any, second: Any) -> Any:
    """Return where two columns of cameras differ. An unknown camera (-1) differs from every camera, also from another.

    Args:
        first, second: integers, NumPy or torch, of shapes that broadcast.

    Example:
        >>> different_cameras(np.array([3, 3, -1]), np.array([3, 4, -1]))
        array([False,  True,  True])
    """
    return (first != second) | (first == UNKNOWN)


def separate_unknown(camids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return cameras `[N]` in which every unknown one (-1) has a number that no other row has.

    Example:
        >>> separate_unknown(np.array([3, -1, 3, -1]))
        array([3, 4, 3, 5])
    """
    unknown = camids == UNKNOWN
    return np.where(unknown, camids.max(initial=0) + np.cumsum(unknown), camids)


def none_for_nan(values: ArrayLike, digits: int | None = None) -> Any:
    """Return a number, or an array as lists of numbers, with None for NaN and infinity, which JSON does not have.

    Args:
        values: one number, or an array of any shape.
        digits: decimal places to round to.

    Example:
        >>> none_for_nan([[0.25, float("nan")]], 1)
        [[0.2, None]]
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim:
        return [none_for_nan(part, digits) for part in array]
    value = float(array)
    return None if not np.isfinite(value) else value if digits is None else round(value, digits)


def check_finite(
    features: Any,
    name: str = "features",
    *,
    labels: Sequence[str] | NDArray[np.object_] | None = None,
    fix: str = "Check the model and those images, or remove these rows.",
) -> None:
    """Raise an error if a row contains NaN or infinity.

    Args:
        features: `[N, D]`, NumPy or torch. A tensor on a GPU makes the host wait for the device.
        name: what the rows are, in the plural, for the error message.
        labels: `[N]`, what each row is of (its image file); the error names the first one.
        fix: last sentence of the error message.

    Raises:
        DataError: with the number of such rows and the first ten.

    Example:
        >>> check_finite(np.zeros((2, 3)))
    """
    if hasattr(features, "detach"):
        finite = features.detach().isfinite().all(dim=1).cpu().numpy()
    else:
        finite = np.isfinite(features).all(axis=1)
    bad = np.flatnonzero(~finite)
    if len(bad):
        first = "" if labels is None else f"; the first is {labels[int(bad[0])]}"
        raise DataError(
            f"{len(bad)} of {len(finite)} {name} contain NaN or infinity: rows {first_few(bad)}{first}. {fix}"
        )


def unit_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide each row by its Euclidean length; a row of zeros stays zero.

    Example:
        >>> unit_rows(np.array([[3, 4], [0, 0]], dtype=np.float32)).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    scaled = np.empty(features.shape, np.float32)
    for start in range(0, len(features), _UNIT_ROWS):  # blocks save copies of large sets
        rows = slice(start, start + _UNIT_ROWS)
        lengths = np.linalg.norm(features[rows], axis=1, keepdims=True)
        scaled[rows] = features[rows] / np.where(lengths == 0, 1, lengths)
    return scaled


def column_codes(columns: ArrayLike) -> NDArray[np.int64]:
    """Return one number for each distinct column of an array `[k, N]`, from 0, in the order of the sorted columns.

    Example:
        >>> column_codes([[5, 5, 0], [1, 2, 9]]).tolist()
        [1, 2, 0]
    """
    return np.unique(np.asarray(columns), axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)


def find_columns(keys: ArrayLike, wanted: ArrayLike) -> NDArray[np.int64]:
    """Return the index in `keys [k, T]` of each column of `wanted [k, N]`, the last of equal ones; −1 without any.

    Example:
        >>> find_columns([[5, 0], [1, 9]], [[0, 5], [9, 9]]).tolist()
        [1, -1]
    """
    code = column_codes(np.concatenate([keys, wanted], axis=1))
    n = np.shape(keys)[1]
    table = np.full(int(code.max(initial=-1)) + 1, -1, np.int64)
    table[code[:n]] = np.arange(n)
    return table[code[n:]]


def concatenated_ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `start, start + 1, …` for each start, `length` numbers of each, concatenated.

    Args:
        starts: `[N]`.
        lengths: `[N]`, 0 or more.

    Example:
        >>> concatenated_ranges(np.array([5, 0]), np.array([2, 3])).tolist()
        [5, 6, 0, 1, 2]
    """
    return np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)


def _column(name: str, values: Any, n: int | None) -> NDArray[Any]:
    try:
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except ValueError as error:
        raise DataError(f"{name} must be one column; its rows differ in length.") from error
    if array.ndim != 1 or n not in (None, len(array)):
        rows = "" if n is None else f" of {n} rows"
        raise DataError(f"{name} must be one column{rows}; got shape {list(array.shape)}.")
    return array
