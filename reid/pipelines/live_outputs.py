"""Where the events of `reid live` go: files and standard output, one JSON object a line, or an MQTT broker."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote, urlsplit

from reid.core.console import warn
from reid.core.errors import ConfigError, DataError

MOST_WAITING = 10_000
"""Messages that wait for a broker that cannot be reached; later ones are lost and counted."""
LAST_SECONDS = 5.0
"""Seconds for which the end of a run waits for the broker."""

_QUEUE_IS_FULL = 15  # paho's MQTT_ERR_QUEUE_SIZE


class Output(Protocol):
    """Takes events."""

    def send(self, event: dict[str, Any]) -> None:
        """Send an event."""
        ...

    def close(self) -> None:
        """Finish; nothing can be sent afterwards."""
        ...


class LinesOutput:
    """Append each event to a file as a line and flush it; "-" is standard output.

    Raises:
        DataError: the file cannot be opened or written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[str] = sys.stdout
        if path == "-":
            return
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"Cannot write {path}: {error.strerror}. Pass a file in a writable folder.") from error

    def send(self, event: dict[str, Any]) -> None:
        """Write a line."""
        try:
            self._file.write(_text(event) + "\n")
            self._file.flush()
        except BrokenPipeError as error:
            raise DataError("The program that reads the events has ended. Start both again.") from error
        except OSError as error:
            raise DataError(f"Cannot write events to {self._path}: {error.strerror}. Free some space.") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not sys.stdout:
            self._file.close()


class MqttOutput:
    """Publish each event to TOPIC/EVENT of an MQTT broker, at least once (QoS 1).

    The connection is made again when it is lost; meanwhile at most `MOST_WAITING` events wait.

    Args:
        address: `mqtt://[USER[:PASSWORD]@]HOST[:PORT]/TOPIC`, or `mqtts://…` for TLS.

    Raises:
        ConfigError: another form of address.
        DataError: paho-mqtt is not installed, or the broker does not answer at first.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._topic = unquote(parts.path.strip("/"))
        try:
            port = parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        except ValueError:
            port = 0
        if not parts.hostname or not port or not self._topic or any(mark in address for mark in "#?+"):
            raise ConfigError("The address of an MQTT broker must be mqtt://HOST[:PORT]/TOPIC. Correct --out.")
        self._where = f"{parts.hostname}:{port}"
        try:
            from paho.mqtt import client, enums
        except ImportError as error:
            raise DataError("Sending to MQTT needs paho-mqtt. Run: pip install 'reid-toolkit[mqtt]'") from error
        self._lost = self._waiting = 0
        self._taken = threading.Condition()
        self._client = client.Client(enums.CallbackAPIVersion.VERSION2)
        self._client.max_queued_messages_set(MOST_WAITING)
        self._client.on_publish = self._note_taken
        if parts.username:
            self._client.username_pw_set(unquote(parts.username), unquote(parts.password or "") or None)
        if parts.scheme == "mqtts":
            self._client.tls_set()
        try:
            self._client.connect(parts.hostname, port)
        except (OSError, ValueError) as error:
            raise DataError(
                f"The MQTT broker {self._where} does not answer: {error}. Start it, or correct --out."
            ) from error
        self._client.loop_start()

    def send(self, event: dict[str, Any]) -> None:
        """Publish an event, or let it wait."""
        with self._taken:
            self._waiting += 1
        sent = self._client.publish(f"{self._topic}/{event['event']}", _text(event), qos=1)
        if sent.rc == _QUEUE_IS_FULL:
            self._note_taken()
            if not self._lost:
                warn(f"the MQTT broker {self._where} is away; {MOST_WAITING:,} events wait, later ones are lost.")
            self._lost += 1

    def _note_taken(self, *_: Any) -> None:
        with self._taken:
            self._waiting -= 1
            self._taken.notify_all()

    def close(self) -> None:
        """Wait until the broker has all events, at most `LAST_SECONDS`, and disconnect."""
        with self._taken:
            if not self._taken.wait_for(lambda: self._waiting <= 0, LAST_SECONDS):
                warn(f"the MQTT broker {self._where} did not take the last {self._waiting:,} events.")
        if self._lost:
            warn(f"{self._lost:,} events for the MQTT broker {self._where} are lost.")
        self._client.disconnect()
        self._client.loop_stop()


def open_output(target: str) -> Output:
    """Open an output: a file, "-" for standard output, or the address of an MQTT broker (see `MqttOutput`).

    Raises:
        ConfigError: an address of another form.
        DataError: the file or broker cannot be opened.
    """
    return MqttOutput(target) if target.startswith(("mqtt://", "mqtts://")) else LinesOutput(target)


def _text(event: dict[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False, allow_nan=False)
