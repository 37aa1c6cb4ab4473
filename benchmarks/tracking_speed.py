"""Frames per second of `reid track` and `reid run` relative to the detector alone, in processor time, in one run.

    python -m benchmarks.tracking_speed VIDEO [--detector NAME] [--model MODEL] [--frames 200] [--rounds 3]

The detector gets decoded frames, or those of a loop over OpenCV's `VideoCapture`. Processor time counts all threads of
the process, so that other programs on the machine disturb it little. Each round measures everything; the medians of
the ratios are printed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Benchmark, at_median
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


def opencv_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    capture = cv2.VideoCapture(str(path))
    while (read := capture.read())[0]:
        yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)


def seconds(step: Callable[[Path], object], out: Path) -> float:
    began = time.process_time()
    step(out)
    return time.process_time() - began


@click.command(cls=Benchmark)
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
        every = RunSettings(**chosen, model=Path(model))
        eight = every.model_copy(update={"encounters": False})
        steps: dict[str, Callable[[Path], object]] = {
            "detector, decoded frames": lambda out: [network([image]) for image in images],
            "detector, OpenCV loop": lambda out: [network([image]) for image in opencv_frames(short)],
            "reid track": lambda out: track_videos(short, out / "track", TrackSettings(**chosen)),
            "reid run --no-encounters": lambda out: run_videos(short, out / "eight", eight),
            "reid run": lambda out: run_videos(short, out / "run", every),
        }
        rows = [[seconds(step, work / str(number)) for step in steps.values()] for number in range(rounds)]
        times = dict(zip(steps, zip(*rows, strict=True), strict=True))
        print(f"{len(images)} frames, {rounds} rounds: processor seconds, frames/s relative to both detectors")
        alone, loop = list(times.values())[:2]
        for name, values in times.items():
            print(f"{name:26} {at_median(values):7.2f} {at_median(alone, values):7.3f} {at_median(loop, values):7.3f}")


if __name__ == "__main__":
    main()
