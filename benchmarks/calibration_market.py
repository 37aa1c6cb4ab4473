"""Calibrate on half of the identities of embeddings, test on the other half; and without labels. Prints what came out.

    python -m benchmarks.calibration_market FILE.npz ...

Files as described in tests/evaluation/test_real_embeddings.py: query and gallery features, pids, camids, sequences and
frames. Every number in docs/calibration.md is from here.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.measure import Benchmark
from reid.core.errors import ReidError
from reid.evaluation import calibrate, calibrate_tracks, count_pairs, open_set, verify
from reid.evaluation.pairs import LabelledPairs

MEMORY = 2**27
DRAWS, SIZES = 10, (10, 20, 50, 100, 200, 375)
"""Random divisions of the identities, and numbers of identities that calibrate."""


def load(path):
    """features, pids, camids, times: query and gallery together; a sequence is a stretch of time of its own."""
    columns = ("features", "pids", "camids", "sequences", "frames")
    with np.load(path) as arrays:
        parts = [np.concatenate([arrays[f"query_{name}"], arrays[f"gallery_{name}"]]) for name in columns]
    features, pids, camids, sequences, frames = parts
    return features.astype(np.float32), pids, camids, sequences.astype(np.int64) * 10**6 + frames


def halves(pids, seed, size=None):
    """Masks of two random halves of the identities, or `size` of one and the other; distractors dealt alike."""
    rng = np.random.default_rng(seed)
    people = rng.permutation(np.unique(pids[pids > 0]))
    cut = len(people) // 2
    strangers = np.flatnonzero(pids == 0)
    rng.shuffle(strangers)
    first = np.isin(pids, people[: size or cut])
    if size is None:
        first[strangers[::2]] = True
    second = np.isin(pids, people[cut:])
    second[strangers[1::2]] = True
    return first, second


class Tested:
    """Counted pairs of the half that the calibration has not seen."""

    __test__ = False

    def __init__(self, features, pids, camids):
        pairs = LabelledPairs(features, pids, camids)
        self.by_cameras = {(a, b): (own, others) for a, b, own, others in pairs.count_by_cameras(MEMORY)}
        self.genuine = sum(own for own, _ in self.by_cameras.values())
        self.impostor = sum(others for _, others in self.by_cameras.values())
        self.distance = (pairs.edges[1:] + pairs.edges[:-1]) / 2

    def far(self, threshold):
        return self.impostor[self.distance < threshold].sum() / self.impostor.sum()

    def tar(self, threshold):
        return self.genuine[self.distance < threshold].sum() / self.genuine.sum()

    def far_by_cameras(self, threshold_of):
        return np.array(
            [
                others[self.distance < threshold_of(cameras)].sum() / others.sum()
                for cameras, (_, others) in self.by_cameras.items()
            ]
        )

    def calibration_error(self, calibration, balanced, bins=15):
        """Σ |share of same pairs − mean p| over bins of p, weighted by pairs; balanced: both kinds weigh the same."""
        own, others = self.genuine.astype(np.float64), self.impostor.astype(np.float64)
        if balanced:
            own, others = own / own.sum(), others / others.sum()
        p = calibration.probability(self.distance, prior=own.sum() / (own.sum() + others.sum()))
        place = np.minimum((p * bins).astype(np.int64), bins - 1)
        gaps = np.bincount(place, own, bins) - np.bincount(place, (own + others) * p, bins)
        return np.abs(gaps).sum() / (own + others).sum()


def single_camera_tracks(pids, camids, times, jump=250):
    """Rows in order and their track, as a tracker of each camera would give them: cut where the time jumps."""
    rows = np.flatnonzero(pids > 0)
    rows = rows[np.lexsort((times[rows], camids[rows], pids[rows]))]
    pid, camera, time = pids[rows], camids[rows], times[rows]
    same = (np.diff(pid) == 0) & (np.diff(camera) == 0)
    rows = rows[np.append(True, ~(same & (np.diff(time) == 0)))]
    pid, camera, time = pids[rows], camids[rows], times[rows]
    new = (np.diff(pid) != 0) | (np.diff(camera) != 0) | (np.diff(time) > jump)
    return rows, np.cumsum(np.append(True, new))


def spread(values):
    return f"{np.median(values):.2f} ({np.min(values):.2f}–{np.max(values):.2f})"


def percent(point):
    """Rate and interval of an operating point."""
    if point.rate is None or point.low is None:
        return "not enough data" if point.rate is None else f"{100 * point.rate:.1f}"
    return f"{100 * point.rate:.1f} ({100 * point.low:.1f}–{100 * point.high:.1f})"


def measure_verification(path, features, pids, camids):
    start = time.perf_counter()
    count_pairs(features, pids, camids)
    counted = time.perf_counter()
    result = verify(features, pids, camids)
    print(
        f"\nVerification: AUC {result.auc:.4f} (within {result.auc_within:.1e}), EER {100 * result.eer:.2f} %; "
        f"counting took {counted - start:.1f} s, with intervals {time.perf_counter() - counted:.1f} s"
    )
    for point in result.tar:
        print(f"  TAR at FAR {point.far:g}: {percent(point)}")
    with np.load(path) as arrays:
        search = [arrays[f"{part}_{name}"] for name in ("features", "pids", "camids") for part in ("query", "gallery")]
    found = open_set(*search, unenrolled=0.5, fars=(0.1, 0.01))
    print(f"Open set: {found.n_mated} mated, {found.n_unmated} other queries")
    for point in found.points:
        print(f"  DIR at FAR {point.far:g}: {percent(point)}")


@click.command(cls=Benchmark)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="FILE.npz...")
def main(files: tuple[Path, ...]) -> None:
    """Calibrate on half of the identities and test on the other half, with labels and without."""
    torch.set_num_threads(1)
    for path in files:
        features, pids, camids, times = load(path)
        print(f"\n{Path(path).stem}")
        measure_verification(path, features, pids, camids)
        print(f"\nWith labels, {DRAWS} halvings: achieved / asked FAR, median (lowest–highest)")
        tested = {}
        rows = {fmr: [] for fmr in (1e-2, 1e-3, 1e-4)}
        errors = []
        for seed in range(DRAWS):
            first, second = halves(pids, seed)
            calibration = calibrate(features[first], pids[first], camids[first])
            tested[seed] = other = Tested(features[second], pids[second], camids[second])
            for fmr, found in rows.items():
                try:
                    calibration.threshold(fmr)
                except ReidError:  # too few pairs for this rate
                    continue
                one = other.far_by_cameras(lambda _, c=calibration, f=fmr: c.threshold(f)) / fmr
                own = other.far_by_cameras(lambda cameras, c=calibration, f=fmr: c.threshold(f, cameras)) / fmr
                whole = other.far(calibration.threshold(fmr)) / fmr
                found.append((whole, one.min(), one.max(), own.min(), own.max()))
            errors.append([other.calibration_error(calibration, balanced) for balanced in (False, True)])
        for fmr, found in rows.items():
            if not found:
                print(f"  {fmr:g}: refused")
                continue
            table = np.array(found)
            print(
                f"  {fmr:g}: all pairs {spread(table[:, 0])}; of the camera pairs, one threshold "
                f"{np.median(table[:, 1]):.2f} to {np.median(table[:, 2]):.2f}, own thresholds "
                f"{np.median(table[:, 3]):.2f} to {np.median(table[:, 4]):.2f}"
            )
        natural, balanced = np.array(errors).T
        print(f"  calibration error, all pairs: mean {natural.mean():.1e}, largest {natural.max():.1e}")
        print(f"  calibration error, balanced:  mean {balanced.mean():.4f}, largest {balanced.max():.4f}")

        print(f"\nBy identities that it rests on, without distractors, {DRAWS} draws: achieved / asked, balanced error")
        for size in SIZES:
            cells = []
            for fmr in (1e-2, 1e-3):
                ratios, errors = [], []
                for seed in range(DRAWS):
                    first, _ = halves(pids, seed, size)
                    try:
                        calibration = calibrate(features[first], pids[first], camids[first], fmr=fmr)
                    except ReidError:
                        continue
                    ratios.append(tested[seed].far(calibration.threshold()) / fmr)
                    errors.append(tested[seed].calibration_error(calibration, True))
                cells.append(f"{fmr:g}: {spread(ratios)}, {np.mean(errors):.3f}" if ratios else f"{fmr:g}: refused")
            print(f"  {size:3d} identities  " + "   ".join(cells))

        rows_used, track = single_camera_tracks(pids, camids, times)
        calibration = calibrate_tracks(features[rows_used], camids[rows_used], track, times[rows_used])
        curve = calibration.overall
        whole = Tested(features, pids, camids)
        print(
            f"\nWithout labels: {calibration.identities} tracks, {calibration.identity_pairs} overlapping pairs, "
            f"{curve.genuine} and {curve.impostor} pairs of crops; line {calibration.notes['line']}"
        )
        for fmr in (1e-2, 1e-3):
            try:
                threshold = calibration.threshold(fmr)
            except ReidError:
                print(f"  {fmr:g}: refused")
                continue
            raw = (threshold - calibration.notes["line"][0]) / calibration.notes["line"][1]
            one = whole.far_by_cameras(lambda _, t=threshold: t) / fmr
            own = whole.far_by_cameras(lambda cameras, c=calibration, f=fmr: c.threshold(f, cameras)) / fmr
            print(
                f"  {fmr:g}: achieved / asked {whole.far(threshold) / fmr:.2f} (without the line "
                f"{whole.far(raw) / fmr:.3f}); of the camera pairs {one.min():.2f} to {one.max():.2f}, own thresholds "
                f"{own.min():.2f} to {own.max():.2f}; same found {calibration.tmr(threshold):.3f} expected, "
                f"{whole.tar(threshold):.3f} achieved"
            )
        print(f"  calibration error, balanced: {whole.calibration_error(calibration, True):.4f}")


if __name__ == "__main__":
    main()
