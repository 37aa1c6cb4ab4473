"""Live cameras to events: read the newest frames, track, embed, match online."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid.core.console import console, warn
from reid.core.errors import ConfigError, DataError, did_you_mean
from reid.data.videos import VIDEO_SUFFIXES
from reid.embedding.embedder import Embedder
from reid.mtmc.cameras import read_cameras
from reid.mtmc.online import OnlineMatcher
from reid.pipelines.calibrate import find_calibration
from reid.pipelines.live_engine import Event, LiveEngine, LiveFrame, utc
from reid.pipelines.live_outputs import open_output
from reid.pipelines.settings import LiveSettings, MatchKeys
from reid.tracking.detectors import open_detector
from reid.tracking.sources import CameraStatus, LiveSource, camera_name, now, without_password
from reid.training.signals import listen

_PATIENCE = 0.2  # seconds to wait for a frame before tracks that have ended are looked for


@dataclass(frozen=True)
class LiveResult:
    """Result of `run_live`.

    Attributes:
        run: name of the run, as in the events.
        events: number of events by kind.
        identities: number of identities.
        cameras: last status of each camera.
    """

    run: str
    events: dict[str, int]
    identities: int
    cameras: dict[str, CameraStatus]


def name_sources(sources: Sequence[str]) -> dict[str, str]:
    """Return the source of each camera: SOURCE is named by `camera_name`, NAME=SOURCE as it says.

    Raises:
        ConfigError: two cameras of one name.

    Example:
        >>> name_sources(["videos/door.mp4", "yard=rtsp://10.0.0.7/stream?profile=1", "0"])
        {'door': 'videos/door.mp4', 'yard': 'rtsp://10.0.0.7/stream?profile=1', 'webcam0': '0'}
    """
    found: dict[str, str] = {}
    for word in sources:
        name, equals, source = word.partition("=")
        if not equals or "/" in name or ":" in name:
            name, source = camera_name(word), word
        if name in found:
            raise ConfigError(
                f"Two cameras are called {name!r}: {without_password(found[name])} and {without_password(source)}. "
                "Pass NAME=SOURCE."
            )
        found[name] = source
    return found


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the sources and the `key=value` settings among the words of a command line.

    Raises:
        ConfigError: NAME=SOURCE whose source is nothing that can be read, as when a key is misspelled.
    """
    keys = [word for word in words if word.partition("=")[0].split(".")[0] in MatchKeys.model_fields and "=" in word]
    sources = [word for word in words if word not in keys]
    for word in sources:
        name, equals, source = word.partition("=")
        is_file = "/" in source or Path(source).exists() or Path(source).suffix.lower() in VIDEO_SUFFIXES
        if equals and "/" not in name and not is_file:
            hint = did_you_mean(name, MatchKeys.model_fields)
            raise ConfigError(f"{word!r} is neither a setting nor NAME=SOURCE with a file or URL.{hint}")
    return sources, keys


def run_live(
    sources: Mapping[str, str],
    outputs: Sequence[str] = ("-",),
    settings: LiveSettings | None = None,
    matching: MatchKeys | None = None,
) -> LiveResult:
    """Follow people through live cameras until all sources have ended, or until SIGINT or SIGTERM.

    Args:
        sources: by camera name: a video file, a folder of numbered images, a URL, a device, or the number of a webcam.
        outputs: where events go; see `open_output`.
        settings: None for the defaults.
        matching: of online matching.

    Raises:
        ReidError: a model or setting cannot be used, an output cannot be written, or no source can be read.
    """
    settings, matching = settings or LiveSettings(), matching or MatchKeys()
    if not sources:
        raise ConfigError("There is no source. Pass video files, URLs or numbers of webcams.")
    if matching.fmr is not None:
        raise ConfigError("fmr needs many tracks, which a live run does not have at first. Use threshold instead.")
    detector = open_detector(settings.detector, settings.device)
    embedder = Embedder(settings.model, settings.device, settings.runtime_for(), batch_size=settings.batch_size)
    cameras = None if settings.cameras is None else read_cameras(settings.cameras, list(sources))
    found = find_calibration(settings.calibration, [settings.model], embedder.describe()["model"])
    matcher = OnlineMatcher(
        stream=matching.stream,
        cameras=cameras,
        settings=matching.matching(),
        calibration=None if found is None else found.calibration,
    )
    with ExitStack() as stack:
        sinks = [stack.enter_context(closing(open_output(target))) for target in outputs]
        counts: dict[str, int] = {}

        def emit(event: Event) -> None:
            counts[event["event"]] = counts.get(event["event"], 0) + 1
            for sink in sinks:
                sink.send(event)

        engine = LiveEngine(detector, embedder, matcher, emit, settings, matching.stream, cameras)
        engine.begin(now())
        loop = _Loop(engine, emit, settings)
        stack.callback(loop.stop)
        for name, source in sources.items():
            loop.add(name, source)
        with listen("ending all tracks; press Ctrl-C again to stop at once") as received:
            while not received and loop.turn():
                pass
            loop.stop()
            engine.close()
    status = {name: source.status() for name, source in loop.sources.items()}
    if all(camera.state == "failed" for camera in status.values()):
        raise DataError(f"No source can be read. The first: {next(iter(status.values())).error}")
    return LiveResult(engine.run, counts, engine.identities, status)


class _Loop:
    """The sources of an engine, and what was last said about each."""

    def __init__(self, engine: LiveEngine, emit: Callable[[Event], None], settings: LiveSettings) -> None:
        self._engine, self._emit, self._settings = engine, emit, settings
        self._arrived = threading.Event()
        self._said: dict[str, str] = {}
        self.sources: dict[str, LiveSource] = {}

    def add(self, name: str, source: str) -> None:
        """Start to read a camera."""
        live = LiveSource(name, source, self._settings.rate, loop=self._settings.loop, arrived=self._arrived)
        self.sources[name] = live.start()

    def stop(self) -> None:
        """Stop reading."""
        for source in self.sources.values():
            source.stop()

    def turn(self) -> bool:
        """Process the newest frames; return whether there may be more."""
        self._arrived.wait(_PATIENCE)
        self._arrived.clear()
        over = True
        for name, source in self.sources.items():
            status = source.status()
            over &= status.state in ("ended", "failed")
            self._say(name, status)
        taken = {name: frame for name, source in self.sources.items() if (frame := source.take()) is not None}
        self._engine.step({name: LiveFrame(*frame) for name, frame in taken.items()}, now())
        return bool(taken) or not over

    def _say(self, name: str, status: CameraStatus) -> None:
        """Report a camera whose state has changed."""
        if self._said.get(name) == status.state:
            return
        self._said[name] = status.state
        moment = utc(now())
        event: dict[str, Any] = {"event": "camera", "run": self._engine.run, "camera": name, "state": status.state}
        self._emit(event | {"time": moment, "error": status.error or None})
        if status.error:
            warn(f"camera {name!r}: {status.error}")
        else:
            console.print(f"{moment} camera {name!r}: {status.state}")
