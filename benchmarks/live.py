"""Memory of `reid live` over time: a soak with video files, or simulated days of tracklets.

    python -m benchmarks.live vtest.avi --minutes 20 --rate 2
    python -m benchmarks.live --days 30 --tracklets 1000000

With a video, `reid live --loop` plays `--cameras` copies of it in real time in a process of its own, and its resident
memory is read every ten seconds from the moment at which all cameras run. With `--days`, generated tracklets of 100
cameras are pushed to the online matcher, four of each person, who passes one camera after the other and then never
comes back; features are random vectors with noise.
"""

from __future__ import annotations

import collections
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from benchmarks.measure import Benchmark
from reid.config import StreamSettings

if TYPE_CHECKING:
    from reid.mtmc import Tracklets

CAMERAS, SIGHTINGS, GAP, DIMENSION = 100, 4, 120.0, 64
"""Of the generated tracklets: cameras, tracklets of a person, seconds between two of them, and length of a feature."""


def usage(process: int | str = "self") -> tuple[float, int]:
    """Return MiB of resident memory and the number of threads (Linux)."""
    lines = (line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines())
    values = {words[0]: words[1] for words in lines if len(words) > 1}
    return int(values["VmRSS:"]) / 1024, int(values["Threads:"])


def soak(video: Path, cameras: int, minutes: float, options: list[str], every: float) -> None:
    """Run `reid live` on copies of a video; print memory, threads and events over time."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = [f"cam{number}" for number in range(1, cameras + 1)]
        for name in names:
            (folder / f"{name}{video.suffix}").symlink_to(video.resolve())
        events = folder / "events.jsonl"
        files = [str(folder / f"{name}{video.suffix}") for name in names]
        command = [sys.executable, "-c", "from reid.commands import main; main()", "live", *files, "--loop"]
        process = subprocess.Popen([*command, "--out", str(events), *options], stdout=subprocess.PIPE, text=True)
        while process.poll() is None and (not events.exists() or events.read_text().count('"running"') < cameras):
            time.sleep(1)
        begin = time.monotonic()
        seen: list[tuple[float, float, int, int]] = []
        try:
            while time.monotonic() - begin < 60 * minutes and process.poll() is None:
                time.sleep(every)
                lines = events.read_text().count("\n") if events.exists() else 0
                if process.poll() is None:
                    seen.append(((time.monotonic() - begin) / 60, *usage(process.pid), lines))
        finally:
            process.send_signal(signal.SIGINT)
            output = process.communicate(timeout=600)[0]
        if len(seen) < 4:
            raise click.ClickException(f"reid live ended early: {output}")
        click.echo("| minutes | MiB | threads | events |\n|---|---|---|---|")
        step = max(1, len(seen) // 20)  # all readings count below; the table shows twenty
        for minute, mib, count, lines in seen[step - 1 :: step]:
            click.echo(f"| {minute:.1f} | {mib:.0f} | {count} | {lines:,} |")
        late = [mib for minute, mib, *_ in seen if minute >= minutes / 4]
        slope = np.polyfit([minute for minute, *_ in seen if minute >= minutes / 4], late, 1)[0]
        click.echo(
            f"\nafter a quarter of the time: {min(late):.0f} to {max(late):.0f} MiB, {60 * slope:+.1f} MiB an hour\n"
        )
        sent = [json.loads(line) for line in events.read_text().splitlines()]
        kinds = collections.Counter(event["event"] for event in sent)
        click.echo(", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items())))
        bad = sum(event.get("state") in ("stalled", "waiting", "failed") for event in sent)
        click.echo(f"cameras lost: {bad}; exit status {process.returncode}")
        click.echo(output)


def generated_tracklets(number: int, seconds: float, seed: int = 0) -> Iterator[tuple[float, Tracklets]]:
    """Yield (minute's end, its tracklets): each person is seen `SIGHTINGS` times, `GAP` seconds apart."""
    from reid.mtmc import Tracklets

    rng = np.random.default_rng(seed)
    people = number // SIGHTINGS
    begins = np.sort(rng.uniform(0, seconds - SIGHTINGS * GAP, people))
    waiting: list[tuple[float, int, int]] = []
    looks: dict[int, np.ndarray] = {}
    track, person = np.zeros(CAMERAS, np.int64), 0
    for end in np.arange(60.0, seconds + 60, 60.0):
        while person < people and begins[person] < end:
            looks[person] = rng.normal(size=DIMENSION)
            first = int(rng.integers(CAMERAS))
            waiting += [(begins[person] + GAP * turn, (first + turn) % CAMERAS, person) for turn in range(SIGHTINGS)]
            person += 1
        now = sorted(entry for entry in waiting if entry[0] < end)
        waiting = [entry for entry in waiting if entry[0] >= end]
        if not now:
            continue
        camera = np.array([entry[1] for entry in now])
        features = [looks[who] + 0.5 * rng.normal(size=DIMENSION) for _, _, who in now]
        for _, _, who in now:
            if begins[who] + GAP * (SIGHTINGS - 1) < end:
                looks.pop(who, None)
        tracks = np.zeros(len(now), np.int64)
        for row, place in enumerate(camera.tolist()):
            track[place] += 1
            tracks[row] = track[place]
        starts = np.array([entry[0] for entry in now])
        made = Tracklets.from_features(
            [f"cam{place:03d}" for place in range(CAMERAS)],
            camera,
            tracks,
            np.zeros(len(now), np.int64),
            np.array(features, np.float32),
            starts,
        )
        yield float(end), replace(made, end=made.start + 10)


def simulate(days: float, number: int, stream: StreamSettings) -> None:
    """Push generated tracklets minute by minute; print memory, time and identities over the days."""
    from reid.mtmc.online import OnlineMatcher

    matcher = OnlineMatcher(stream=stream)
    collected: Tracklets | None = None
    due, shown, pushed, highest, most = stream.period, 0.0, 0, 0, 0
    click.echo("| days | tracklets | remembered | MiB | identities | CPU seconds |\n|---|---|---|---|---|---|")
    for end, tracklets in generated_tracklets(number, 86_400 * days):
        collected = tracklets if collected is None else collected.append(tracklets)
        if end < due:
            continue
        due = end + stream.period
        identity = matcher.push(collected)
        new = np.unique(identity[identity > highest])
        assert (new == np.arange(highest + 1, highest + 1 + len(new))).all(), "an identity was left out or used again"
        highest, pushed = matcher.last, pushed + len(identity)
        most, collected = max(most, len(matcher)), None
        if end >= shown:
            memory, seconds = usage()[0], time.process_time()
            row = f"| {end / 86_400:.2f} | {pushed:,} | {len(matcher):,} | {memory:.0f} | {highest:,} | {seconds:.0f} |"
            click.echo(row)
            shown += 86_400 * days / 15
    click.echo(f"\n{pushed:,} tracklets, {highest:,} identities of {number // SIGHTINGS:,} people; at most {most:,}")
    click.echo(f"remembered; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


@click.command(cls=Benchmark)
@click.argument("video", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--minutes", default=20.0, help="Minutes to run.")
@click.option("--cameras", default=4, help="Copies of the video.")
@click.option("--rate", default=2.0, help="Frames per second and camera.")
@click.option("--model", default="intel-0287", help="Model that embeds people.")
@click.option("--detector", default="intel-adas-0002", help="Detector.")
@click.option("--every", default=10.0, help="Seconds between two readings.")
@click.option("--days", type=float, help="Days to simulate, instead of a video.")
@click.option("--tracklets", default=1_000_000, help="Tracklets in these days.")
@click.option("--period", default=60.0, help="Seconds between decisions.")
@click.option("--remembered", default=1000, help="Tracklets that the matcher remembers at most.")
def main(
    video: Path | None,
    minutes: float,
    cameras: int,
    rate: float,
    model: str,
    detector: str,
    every: float,
    days: float | None,
    tracklets: int,
    period: float,
    remembered: int,
) -> None:
    """Measure the memory of `reid live` over time: with a video, or with simulated days of tracklets."""
    if days is not None:
        simulate(days, tracklets, StreamSettings(period=period, max_tracklets=remembered))
    elif video is not None:
        options = ["--rate", str(rate), "--model", model, "--detector", detector, f"stream.period={period}"]
        soak(video, cameras, minutes, options, every)
    else:
        raise click.UsageError("Pass a video, or --days.")


if __name__ == "__main__":
    main()
