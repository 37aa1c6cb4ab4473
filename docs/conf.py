"""Sphinx settings: `make docs` builds the site offline into build/docs, with warnings as errors."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from reid.core.version import __version__

project = "reid-toolkit"
author = "the reid-toolkit authors"
release = version = __version__
html_title = f"reid-toolkit {__version__}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
myst_enable_extensions = ["deflist", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["ref.python"]  # several classes have an attribute of the same name

default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}


def use_literals(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn the docstrings' Markdown into reStructuredText: `code`, |, and lists without a blank line before them."""
    text = re.sub(r"^( *\S.*:\n)(?= *(?:\d\.|-) )", r"\1\n", "\n".join(lines), flags=re.M)
    parts = re.split(r"(``[^`]+``|`[^`]+`)", text)
    for index, part in enumerate(parts):
        if part.startswith("`") and not part.startswith("``"):
            parts[index] = f"`{part}`"
        elif not part.startswith("`"):
            parts[index] = part.replace("|", "\\|")
    lines[:] = "".join(parts).split("\n")


def link_datasets(app: Any, page: str, source: list[str]) -> None:
    """Let links to datasets/README.md lead to its copy in the site."""
    source[0] = source[0].replace("../datasets/README.md", "datasets.md")


def setup(app: Any) -> None:
    """Register the two functions above."""
    app.connect("autodoc-process-docstring", use_literals, priority=100)
    app.connect("source-read", link_datasets)
