"""Settings of the documentation; ``python tests/run.py --docs`` builds it."""

import contextlib
import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

with contextlib.suppress(ImportError):
    import mace  # noqa: F401 (before e3nn: MACE prepares its import)

from sphinx.ext.autodoc.mock import mock

import gaunt_plugin

project = "gaunt_plugin"
author = "gaunt_plugin contributors"
copyright = author
release = gaunt_plugin.__version__

# Our part for the host that is not installed here is imported with a stand-in for that host.
if importlib.util.find_spec("nequip") is None:
    with mock(["nequip"]):
        import nequip

        nequip.__version__ = "0.19.1"
        import gaunt_plugin.nequip

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"

html_theme = "furo"
html_title = "gaunt_plugin"
html_static_path = ["_static"]
html_css_files = ["tables.css"]


def setup(app) -> None:
    app.connect("source-read", leave_out_missing_pages)


def leave_out_missing_pages(app, docname: str, source: list[str]) -> None:
    """The table of contents may name pages that are not written yet."""
    if docname == "index":
        source[0] = "\n".join(
            line
            for line in source[0].splitlines()
            if not re.fullmatch(r"[\w-]+", line) or (ROOT / "docs" / f"{line}.md").exists()
        )
