"""Settings that several pipelines share."""

from __future__ import annotations

from pathlib import Path

import pytest

from reid.pipelines.settings import EmbedSettings, MatchFiles, TestSettings


@pytest.mark.parametrize("settings", [EmbedSettings, TestSettings, MatchFiles])
def test_trust_consents_to_torchscript_and_leaves_other_runtimes(settings: type) -> None:
    given = {"tracks": Path("tracks")} if settings is MatchFiles else {}
    trusting = settings(trust=True, **given)
    assert [trusting.runtime_for(name) for name in ("auto", "torch", "onnx")] == ["torchscript", "torchscript", "onnx"]
    assert settings(**given).runtime_for("torch") == "torch"
