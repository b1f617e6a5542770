"""Settings of the documentation; ``python tests/run.py --docs`` builds it."""

import contextlib
import importlib
import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

with contextlib.suppress(ImportError):
    import mace  # noqa: F401 (before e3nn: MACE prepares its import)

import gaunt_plugin

project = "gaunt_plugin"
author = "gaunt_plugin contributors"
copyright = author
release = gaunt_plugin.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

# Pages that may be missing: table of contents entries are patterns.
suppress_warnings = ["toc.empty_glob"]

# The host that is not installed here is stood in for.
autodoc_mock_imports = [
    name for name in ("mace", "nequip") if importlib.util.find_spec(name) is None
]
autodoc_member_order = "bysource"
autodoc_typehints = "none"

html_theme = "furo"
html_title = "gaunt_plugin"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
