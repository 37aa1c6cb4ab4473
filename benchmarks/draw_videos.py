"""Put drawn videos (`reid run --draw`) side by side into one animated WebP, for the docs.

python -m benchmarks.draw_videos MATCHED/videos docs/pictures/videos.webp --first 100 --last 250
"""

from __future__ import annotations

from pathlib import Path

import click
import cv2
import numpy as np
from PIL import Image

from benchmarks.measure import Benchmark
from reid.data.frame_reader import FrameReader
from reid.data.videos import Video


@click.command(cls=Benchmark)
@click.argument("videos", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--first", default=1)
@click.option("--last", default=150)
@click.option("--height", default=240)
@click.option("--quality", default=40)
def main(videos: Path, out: Path, first: int, last: int, height: int, quality: int) -> None:
    """Write frames FIRST to LAST of all VIDEOS, side by side, to OUT."""
    readers = [FrameReader(Video(path)) for path in sorted(videos.glob("*.mp4"))]
    pictures = []
    for frames in zip(*readers, strict=False):
        if first <= frames[0].number <= last:
            scaled = [
                cv2.resize(
                    f.image, (f.image.shape[1] * height // f.image.shape[0], height), interpolation=cv2.INTER_AREA
                )
                for f in frames
            ]
            pictures.append(Image.fromarray(np.concatenate(scaled, axis=1)))
    pictures[0].save(
        out,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / readers[0].fps),
        loop=0,
        quality=quality,
        method=4,
    )
    print(f"{out}: {len(pictures)} frames, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
