"""Copies configs/ into the package; everything else is declared in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Adds configs/*.yaml to the built package, as reid/configs/."""

    def run(self) -> None:
        """Build the package and copy the files."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib, "reid/configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
