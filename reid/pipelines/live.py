"""Live cameras to events: read the newest frames, track, embed, match online."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid.config import Settings, load_settings
from reid.core.console import console, warn
from reid.core.errors import ConfigError, DataError, did_you_mean
from reid.data.videos import VIDEO_SUFFIXES
from reid.embedding.embedder import Embedder
from reid.gallery import Gallery
from reid.mtmc.cameras import read_cameras
from reid.mtmc.online import OnlineMatcher
from reid.pipelines.calibrate import find_calibration
from reid.pipelines.live_engine import Event, LiveEngine, LiveFrame, utc
from reid.pipelines.live_gallery import GalleryOutput
from reid.pipelines.live_outputs import open_output
from reid.pipelines.live_status import StatusPage
from reid.pipelines.settings import LiveSettings, MatchKeys
from reid.tracking.detectors import open_detector
from reid.tracking.sources import CameraStatus, LiveSource, camera_name, now, without_password
from reid.training.signals import listen

_PATIENCE = 0.2  # seconds to wait for a frame before tracks that have ended are looked for
_LAST = 2.0  # seconds to wait for all threads at the end
_LOOK = 1.0  # seconds between two looks at the file of sources, and between two notes of the status


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


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the sources and the `key=value` settings among the arguments of a command.

    Raises:
        ConfigError: NAME=SOURCE whose source is nothing that can be read, as when a key is misspelled.
    """
    keys = [text for text in arguments if "=" in text and re.split(r"[.=]", text)[0] in MatchKeys.model_fields]
    sources = [text for text in arguments if text not in keys]
    for word in sources:
        name, equals, source = word.partition("=")
        is_file = "/" in source or Path(source).exists() or Path(source).suffix.lower() in VIDEO_SUFFIXES
        if equals and "/" not in name and not is_file:
            hint = did_you_mean(name, MatchKeys.model_fields)
            raise ConfigError(f"{word!r} is neither a setting nor NAME=SOURCE with a file or URL.{hint}")
    return sources, keys


class SourcesFile(Settings):
    """Content of a file of sources."""

    cameras: dict[str, str | int]


def read_sources(path: str | Path) -> dict[str, str]:
    """Read the source of each camera from YAML, `cameras: {NAME: SOURCE}`.

    Raises:
        ConfigError: not such a file.
    """
    return {name: str(source) for name, source in load_settings(SourcesFile, path).cameras.items()}


def run_live(
    sources: Mapping[str, str],
    outputs: Sequence[str] = ("-",),
    settings: LiveSettings | None = None,
    matching: MatchKeys | None = None,
) -> LiveResult:
    """Follow people through live cameras until all sources have ended, or until SIGINT or SIGTERM.

    With `settings.sources` it does not end by itself: cameras can be added to that file, and removed from it, at any
    time.

    Args:
        sources: by camera name: a video file, a folder of numbered images, a URL, a device, or the number of a webcam.
        outputs: where events go; see `open_output`.
        settings: None for the defaults.
        matching: of online matching.

    Raises:
        ReidError: a model or setting cannot be used, an output cannot be written, or no source can be read.
    """
    settings, matching = settings or LiveSettings(), matching or MatchKeys()
    given = dict(sources)
    if settings.sources is not None:
        listed = read_sources(settings.sources)
        if twice := sorted(set(listed) & set(given)):
            raise ConfigError(f"Camera {twice[0]!r} is given and listed in {settings.sources}. Remove one of them.")
        given |= listed
    if not given and settings.sources is None:
        raise ConfigError("There is no source. Pass video files, URLs or numbers of webcams, or --sources FILE.")
    if matching.fmr is not None:
        raise ConfigError("fmr needs many tracks, which a live run does not have at first. Use threshold instead.")
    detector = open_detector(settings.detector, settings.device)
    embedder = Embedder(settings.model, settings.device, settings.runtime_for(), batch_size=settings.batch_size)
    gallery = None if settings.gallery is None else Gallery.open(settings.gallery)
    cameras = None if settings.cameras is None else read_cameras(settings.cameras, list(given))
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

        executor = stack.enter_context(ThreadPoolExecutor(1, "matching"))
        engine = LiveEngine(detector, embedder, matcher, emit, settings, matching.stream, cameras, executor)
        engine.begin(now())
        if gallery is not None:
            kept = stack.enter_context(closing(GalleryOutput(gallery, engine.run, embedder.describe())))
            engine.archive = kept.send
        loop = _Loop(engine, emit, settings, dict(sources))
        if settings.status is not None:
            page = StatusPage(settings.status, lambda: loop.seen | {"events": dict(counts)})
            stack.callback(page.close)
            console.print(f"status: {page.url}")
        stack.callback(loop.stop)
        loop.change(given)
        with listen("ending all tracks; press Ctrl-C again to stop immediately") as received:
            while not received and loop.turn():
                pass
            loop.stop()
            engine.close()
    status = {name: source.status() for name, source in loop.sources.items()}
    if status and all(camera.state == "failed" for camera in status.values()):
        raise DataError(f"No source can be read. The first: {next(iter(status.values())).error}")
    return LiveResult(engine.run, counts, engine.identities, status)


class _Loop:
    """The sources of an engine, and the last reported state of each; `always` are the sources outside the file."""

    def __init__(
        self, engine: LiveEngine, emit: Callable[[Event], None], settings: LiveSettings, always: dict[str, str]
    ) -> None:
        self._engine, self._emit, self._settings, self._always = engine, emit, settings, always
        self._arrived = threading.Event()
        self._said: dict[str, str] = {}
        self._file = _stamp(settings.sources)
        self._looked = now()
        self.sources: dict[str, LiveSource] = {}
        self.seen: dict[str, Any] = {}
        self._look()

    def change(self, wanted: Mapping[str, str]) -> None:
        """Start to read new cameras, and stop reading removed ones and ones with another source."""
        for name, source in list(self.sources.items()):
            if wanted.get(name) != source.source:
                source.stop()
                del self.sources[name]
                if name not in wanted:
                    self._engine.remove(name)
                    self._say(name, "removed", "")
        for name, text in wanted.items():
            if name not in self.sources:
                live = LiveSource(name, text, self._settings.rate, loop=self._settings.loop, arrived=self._arrived)
                self.sources[name] = live.start()

    def stop(self) -> None:
        """Stop reading; wait a little for the threads, but not until a blocked read returns."""
        for source in self.sources.values():
            source.stop()
        until = now() + _LAST
        for source in self.sources.values():
            source.stop(wait=max(until - now(), 0.01))

    def turn(self) -> bool:
        """Process the newest frames; return whether there may be more."""
        self._arrived.wait(_PATIENCE)
        self._arrived.clear()
        if now() >= self._looked + _LOOK:
            self._looked = now()
            self._reread()
            self._look()
        over = self._settings.sources is None
        for name, source in self.sources.items():
            status = source.status()
            over &= status.state in ("ended", "failed")
            self._say(name, status.state, status.error)
        taken = {name: frame for name, source in self.sources.items() if (frame := source.take()) is not None}
        self._engine.step({name: LiveFrame(*frame) for name, frame in taken.items()}, now())
        return bool(taken) or not over

    def _reread(self) -> None:
        """Read the file of sources again if it has changed; a file that cannot be read changes nothing."""
        stamp = _stamp(self._settings.sources)
        if stamp is None or stamp == self._file or self._settings.sources is None:
            return
        self._file = stamp
        try:
            self.change({**read_sources(self._settings.sources), **self._always})
        except ConfigError as error:
            warn(f"{error} No camera is changed.")

    def _look(self) -> None:
        """Note the status for the status page."""
        people, moment = self._engine.people(), now()
        cameras = []
        for name, source in self.sources.items():
            status = source.status()
            known = {"camera": name, "people": people.get(name, 0), **vars(status)}
            seen = None if status.last_seen is None else utc(status.last_seen)
            cameras.append(known | {"last_seen": seen, "error": status.error or None})
        self.seen = {
            "run": self._engine.run,
            "time": utc(moment),
            "identities": self._engine.identities,
            "delay": self._engine.delay,
            "cameras": cameras,
        }

    def _say(self, name: str, state: str, error: str) -> None:
        """Report a camera whose state has changed."""
        if self._said.get(name) == state:
            return
        self._said[name] = state
        moment = utc(now())
        event: dict[str, Any] = {"event": "camera", "run": self._engine.run, "camera": name, "state": state}
        self._emit(event | {"time": moment, "error": error or None})
        if error and state != "connecting":  # the error of the attempt before was reported
            warn(f"camera {name!r}: {error}")
        else:
            console.print(f"{moment} camera {name!r}: {state}")


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """Return what changes when a file is written; None without a file."""
    try:
        return None if path is None else (path.stat().st_mtime_ns, path.stat().st_size)
    except OSError:
        return None
