"""Search again with what a person decided about hits: confirmed ones join the query, rejected ones are left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import unit_rows
from reid.gallery.answers import Answer, Hit, search
from reid.gallery.pictures import shrink_jpeg

if TYPE_CHECKING:
    from reid.gallery.gallery import Gallery


def search_reviewed(
    galleries: Sequence[Gallery],
    photos: NDArray[np.float32],
    confirmed: Collection[str] = (),
    rejected: Collection[str] = (),
    *,
    top: int = 10,
    purpose: str | None = None,
    **options: Any,
) -> Answer:
    """Search with photos and with the tracklets that a person confirmed.

    The mean feature of each confirmed tracklet is one more photo, so the expected number of strangers grows with it.
    Confirmed tracklets come first, with their distance to the photos and without numbers of chance; rejected ones are
    left out. Ids that are in no gallery (any more) are ignored. The audit log records the decisions.

    Args:
        galleries: of one model.
        photos: `[Q, D]` features of photos of one person.
        confirmed, rejected: ids of tracklets.
        top: largest number of hits besides the confirmed ones.
        purpose: for the audit log.
        options: of `answers.search`.

    Raises:
        ReidError: as `answers.search`.
    """
    photos = unit_rows(np.atleast_2d(np.asarray(photos, np.float32)))
    own: list[Hit] = []
    means = []
    for gallery in galleries if confirmed else ():
        details = gallery.details(sorted(confirmed))
        for tracklet, rows in sorted(gallery.features(sorted(confirmed)).items()):
            if tracklet in details:
                distance = float(1 - (photos @ rows.T).max())
                means.append(rows.mean(axis=0))
                own.append(Hit(distance, None, None, True, gallery.name, tracklet, **details[tracklet]))
    known = {*confirmed, *rejected}
    queries = np.concatenate([photos, unit_rows(np.array(means, np.float32))]) if means else photos
    answer = search(galleries, queries, top=top + len(known) * len(galleries), purpose=purpose, **options)
    for gallery in galleries if known else ():
        gallery.log_review(confirmed, rejected, purpose)
    others = [hit for hit in answer.hits if hit.tracklet not in known][:top]
    found = None if answer.found is None and not own else bool(own) or any(hit.accepted for hit in others)
    return replace(answer, hits=[*sorted(own, key=lambda hit: hit.distance), *others], found=found)


def describe_reviewed(answer: Answer, confirmed: Collection[str]) -> str:
    """Return the answer in one or two sentences, with the number of confirmed hits if there are any."""
    own = sum(hit.tracklet in confirmed for hit in answer.hits)
    if not own:
        return answer.describe()
    others = len(answer.accepted) - own
    if answer.calibration is None:
        rest = "The others are ranked only, because there is no calibration."
    elif others:
        rest = f"Chance does not explain {others} other{'s' * (others > 1)} (limit {answer.expected_false:g})."
    else:
        rest = f"Chance explains all others (limit {answer.expected_false:g})."
    return f"{own} confirmed. {rest} {answer.tracklets:,} tracklets searched."


def mask_others(answer: Answer) -> Answer:
    """Return an answer whose pictures show the heads of accepted and confirmed hits only; other heads are pixelated.

    A person beside the hit in its own crop is not masked: a gallery does not store where others are.
    """
    hits = [
        hit if hit.accepted or hit.picture is None else replace(hit, picture=shrink_jpeg(hit.picture, pixelate=True))
        for hit in answer.hits
    ]
    return replace(answer, hits=hits)


@dataclass(frozen=True)
class Decisions:
    """Decisions about hits of one person as constraints of `reid match`, by source.

    Attributes:
        files: content of a constraints file for each source: `merge` joins the confirmed tracks, `split` separates each
            of them from the rejected ones.
        left_out: hits that no file contains, with the reason.
    """

    files: dict[str, dict[str, Any]]
    left_out: list[str]


def as_constraints(
    galleries: Sequence[Gallery], confirmed: Collection[str], rejected: Collection[str], purpose: str | None = None
) -> Decisions:
    """Return decisions as files for `reid match --constraints`.

    A file is of one source, because tracks are numbered in each. A hit without a camera or track cannot be named, and a
    part of a split track only with a frame: both are left out where that is unknown. The audit log records the
    decisions, with the purpose.
    """
    keys: dict[str, tuple[list[list[Any]], list[list[Any]]]] = {}
    left_out = []
    for place, ids in enumerate((confirmed, rejected)):
        for gallery in galleries:
            for hit in gallery.details(sorted(set(ids))).values():
                name = f"{hit['source']}: camera {hit['camera']}, track {hit['track']}"
                if hit["camera"] is None or hit["track"] is None:
                    left_out.append(f"{name}: a constraint needs a camera and a track")
                    continue
                key = [hit["camera"], hit["track"] if hit["track"] < 2**53 else str(hit["track"])]
                if gallery.count_parts(hit["source"], hit["camera"], hit["track"]) > 1:
                    key += [one.frame for one in hit["seen"][:1]]
                    if not hit["seen"]:
                        left_out.append(f"{name}: the track was split into parts, which only frames distinguish")
                        continue
                keys.setdefault(hit["source"], ([], []))[place].append(key)
    files = {}
    for source, (same, different) in keys.items():
        merge = [[first, second] for first, second in pairwise(same)]
        split = [[one, other] for one in same for other in different]
        if merge or split:
            files[source] = {"format": 1, "merge": merge, "split": split}
        else:
            left_out.append(f"{source}: a constraint needs two tracks, at least one of them confirmed")
    for gallery in galleries:
        gallery.log_review(confirmed, rejected, purpose)
    return Decisions(files, left_out)
