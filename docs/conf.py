"""Settings of the documentation.

``python tests/run.py --docs`` builds it, in MACE's environment.
"""

import re
from pathlib import Path

import mace  # noqa: F401 (before e3nn: MACE prepares its import)

from sphinx.ext.autodoc.mock import mock

import gaunt_plugin

# Our part for NequIP, which can't be here, is imported with a stand-in.
with mock(["nequip"]):
    import nequip

    nequip.__version__ = "0.19.1"
    import gaunt_plugin.nequip

project = "gaunt_plugin"
author = "gaunt_plugin contributors"
copyright = author
release = gaunt_plugin.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "accuracy/findings.md"]  # the latter is a part of accuracy.md
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"

html_theme = "furo"
html_title = "gaunt_plugin"
html_static_path = ["_static"]
html_css_files = ["tables.css"]


def leave_out_missing_pages(app, docname: str, source: list[str]) -> None:
    """The table of contents may name pages that are not written yet."""
    pages = {path.stem for path in Path(app.srcdir).glob("*.md")}
    if docname == "index":
        lines = source[0].splitlines()
        kept = [line for line in lines if not re.fullmatch(r"[\w-]+", line) or line in pages]
        source[0] = "\n".join(kept)


def setup(app) -> None:
    """What Sphinx calls first."""
    app.connect("source-read", leave_out_missing_pages)
