from __future__ import annotations

import sys

import pytest

from benchmarks.long_runs import embed_call, measure, prepare


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("reopen", [False, True], ids=["one model", "model opened again"])
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_resources_stay_flat_over_many_calls(form: str, reopen: bool, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    models = prepare(tmp_path, () if form == "torch" else (form,))
    memory, files, threads, on_disk = zip(
        *measure(embed_call(tmp_path, models[form], reopen), 20, tmp_path), strict=True
    )
    for counts in (files, threads, on_disk):  # a thread that just ends may still be counted
        assert min(counts[-5:]) <= max(counts[:5])
    assert memory[-1] - memory[0] < 100  # MiB
