"""Settings of the documentation.

``python tests/run.py --docs`` builds it, in MACE's environment.
"""

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
