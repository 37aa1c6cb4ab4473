"""Installs `reid`. Nothing is compiled and nothing but setuptools is imported here."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (HERE / "reid/core/version.py").read_text("utf-8"), re.M)

DEV = [
    "duckdb>=1.0",
    "import-linter>=2.0",
    "motmetrics>=1.4",
    "mypy>=1.10",
    "nncf>=2.9",
    "onnx>=1.16",
    "onnxruntime>=1.17",
    "openvino>=2024.0",
    "pandas",
    "pre-commit",
    "pytest>=8",
    "pytorch-metric-learning>=2.5",
    "ruff>=0.6",
    "timm>=1.0",
    "trackeval>=1.3",
    "types-PyYAML",
]

setup(
    name="reid",
    version=VERSION.group(1) if VERSION else "0",
    description="Person re-identification: train, score and match people across cameras",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["reid", "reid.*"]),
    package_data={"reid": ["py.typed"], "reid.report": ["*.html", "*.css", "*.js"]},
    install_requires=[
        "click>=8.1",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "omegaconf>=2.3",
        "opencv-python>=4.9",
        "pillow>=10",
        "pyarrow>=15",
        "pydantic>=2.7",
        "pyyaml>=6",
        "rich>=13",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "tensorboard>=2.16",
        "threadpoolctl>=3.1",
        "torch>=2.4",
        "torchvision>=0.19",
    ],
    extras_require={
        "losses": ["pytorch-metric-learning>=2.5"],
        "timm": ["timm>=1.0"],
        "safetensors": ["safetensors>=0.4"],
        "onnx": ["onnx>=1.16", "onnxruntime>=1.17"],
        "openvino": ["onnx>=1.16", "openvino>=2024.0"],
        "int8": ["nncf>=2.9", "onnx>=1.16", "openvino>=2024.0"],
        "dev": DEV,
    },
    entry_points={"console_scripts": ["reid = reid.commands:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
