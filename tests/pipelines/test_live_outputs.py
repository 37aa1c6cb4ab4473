from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reid.core.errors import ConfigError, DataError
from reid.pipelines import live_outputs
from reid.pipelines.live_outputs import open_output

BROKER = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Callable[[], tuple[int, subprocess.Popen[bytes]]]]:
    """Starts the broker on a free port; a second call starts it again."""
    if BROKER is None:
        pytest.skip("mosquitto is not installed: the MQTT output is NOT tested. Install it: apt-get install mosquitto")
    port, running = free_port(), list[subprocess.Popen[bytes]]()
    (tmp_path / "broker.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")

    def start() -> tuple[int, subprocess.Popen[bytes]]:
        running.append(subprocess.Popen([str(BROKER), "-c", str(tmp_path / "broker.conf")], stderr=subprocess.DEVNULL))
        wait_for(lambda: answers(port))
        return port, running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def listen(port: int) -> tuple[list[tuple[str, dict[str, Any]]], Callable[[], None]]:
    from paho.mqtt import client, enums

    received: list[tuple[str, dict[str, Any]]] = []
    ready = threading.Event()
    listener = client.Client(enums.CallbackAPIVersion.VERSION2)
    listener.on_connect = lambda c, *rest: c.subscribe("shop/#", qos=1)
    listener.on_subscribe = lambda *rest: ready.set()
    listener.on_message = lambda c, data, message: received.append((message.topic, json.loads(message.payload)))
    listener.connect("127.0.0.1", port)
    listener.loop_start()
    assert ready.wait(30)
    return received, listener.loop_stop


@pytest.mark.slow
def test_events_reach_a_real_broker_also_after_it_was_away(broker: Callable[[], Any]) -> None:
    port, process = broker()
    output = open_output(f"mqtt://127.0.0.1:{port}/shop/floor%201")
    received, stop = listen(port)
    output.send({"event": "new", "camera": "Tür", "identity": None})
    wait_for(lambda: received)
    assert received == [("shop/floor 1/new", {"event": "new", "camera": "Tür", "identity": None})]
    stop()
    process.kill()
    process.wait()
    wait_for(lambda: not answers(port))
    output.send({"event": "end", "identity": 1})
    time.sleep(0.05)
    broker()
    received, stop = listen(port)
    output.send({"event": "end", "identity": 2})
    output.close()
    wait_for(lambda: ("shop/floor 1/end", {"event": "end", "identity": 2}) in received)
    assert {topic for topic, _ in received} == {"shop/floor 1/end"}
    stop()


@pytest.mark.slow
def test_events_for_a_broker_that_is_away_do_not_fill_the_memory(
    broker: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live_outputs, "MOST_WAITING", 5)
    monkeypatch.setattr(live_outputs, "LAST_SECONDS", 0.1)
    port, process = broker()
    output = open_output(f"mqtt://127.0.0.1:{port}/shop")
    process.kill()
    process.wait()
    for number in range(40):
        output.send({"event": "update", "track": number})
    output.close()
    shown = capsys.readouterr().out
    assert f"the MQTT broker 127.0.0.1:{port} is away; 5 events wait" in shown
    assert "did not take the last 5 events" in shown
    assert "events for the MQTT broker" in shown


def test_a_broker_that_does_not_answer_and_wrong_addresses_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"broker 127\.0\.0\.1:\d+ does not answer.*Start it"):
        open_output(f"mqtt://me:secret@127.0.0.1:{free_port()}/shop")
    for address in ("mqtt://host", "mqtt:///shop", "mqtt://host/shop/#", "mqtt://host:0x/shop", "mqtts://host/"):
        with pytest.raises(ConfigError, match="mqtt://HOST"):
            open_output(address)
    monkeypatch.setitem(sys.modules, "paho", None)
    monkeypatch.setitem(sys.modules, "paho.mqtt", None)
    with pytest.raises(DataError, match=r"reid-toolkit\[mqtt\]"):
        open_output("mqtt://127.0.0.1/shop")


def test_lines_are_appended_and_complete_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "events.jsonl"
    for number in (1, 2):
        output = open_output(str(path))
        output.send({"event": "new", "camera": "Tür"})
        assert path.read_text("utf-8") == '{"event": "new", "camera": "Tür"}\n' * number
        output.close()
    with pytest.raises(DataError, match=r"Cannot write .*\. Pass a file in a writable folder"):
        open_output(str(tmp_path / "a"))
    if Path("/dev/full").exists():
        with pytest.raises(DataError, match=r"Cannot write events to /dev/full.*Free some space"):
            open_output("/dev/full").send({"event": "new"})
