"""Every Python block of README and docs runs, page by page, in a folder with the files that the pages name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT, blocks

WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=[str(page.relative_to(ROOT)) for page in WITH_PYTHON])
def test_python_blocks_run(page: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    shutil.copytree(workspace, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("REID_CACHE", str(tmp_path / "cache"))
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        code = block.code.replace("/data/market1501", os.fspath(folder / "datasets/synthetic"))
        exec(compile("\n" * block.line + code, os.fspath(page), "exec"), namespace)
