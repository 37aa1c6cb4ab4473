"""Frames per second of `reid track` and `reid run` relative to the detector alone, in processor time, in one run.

    python -m benchmarks.tracking_speed VIDEO [--detector NAME] [--model MODEL] [--frames 200] [--rounds 3]

The detector alone gets decoded frames. Processor time counts all threads of the process, so that other programs on the
machine disturb it little. Each round measures all three; the medians of their ratios are printed.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
import cv2

from benchmarks.measure import at_median
from reid.data.frame_reader import FrameReader
from reid.data.videos import Video
from reid.pipelines.run import run_videos
from reid.pipelines.settings import RunSettings, TrackSettings
from reid.pipelines.track import track_videos
from reid.tracking import open_detector


def cut(source: Path, target: Path, frames: int) -> Path:
    reader = FrameReader(Video(source))
    writer = None
    for frame in reader:
        if writer is None:
            writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), reader.fps, reader.size)
        writer.write(cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))
        if frame.number == frames:
            break
    assert writer is not None
    writer.release()
    return target


def seconds(step) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--detector", default="intel-adas-0002")
@click.option("--model", default="intel-0287")
@click.option("--frames", default=200)
@click.option("--rounds", default=3)
def main(video: Path, detector: str, model: str, frames: int, rounds: int) -> None:
    """Compare `reid track` and `reid run` on VIDEO with the detector alone."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        short = cut(video, work / "short.mp4", frames)
        images = [frame.image for frame in FrameReader(Video(short))]
        network = open_detector(detector)
        network(images[:1])
        tiny = cut(video, work / "tiny.mp4", 20)  # so that imports are not measured
        chosen = {"detector": detector, "rate": 0, "workers": 1}
        run_videos(tiny, work / "warm", RunSettings(**chosen, model=Path(model)))
        alone, tracked, run = [], [], []
        for number in range(rounds):
            alone.append(seconds(lambda: [network([image]) for image in images]))
            out = work / f"track{number}"
            tracked.append(seconds(lambda out=out: track_videos(short, out, TrackSettings(**chosen))))
            out = work / f"run{number}"
            run.append(seconds(lambda out=out: run_videos(short, out, RunSettings(**chosen, model=Path(model)))))
        text = f"detector alone {at_median(alone):.2f}, track {at_median(tracked):.2f}, run {at_median(run):.2f}"
        print(f"{len(images)} frames, median of {rounds} rounds, processor seconds: {text}")
        print(f"frames/s relative to the detector alone: track {at_median(alone, tracked):.3f}, "
              f"run {at_median(alone, run):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
