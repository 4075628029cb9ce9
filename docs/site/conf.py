"""How Sphinx makes the site of what ``pages.py`` has laid out; nothing is fetched, and no page fetches anything."""

from __future__ import annotations

project = "harness"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
html_theme = "furo"
html_title = "harness"
html_static_path = ["_static"]
html_css_files = ["extra.css"]
html_show_sourcelink = False
html_copy_source = False
html_baseurl = ""
myst_heading_anchors = 4
highlight_language = "none"
autodoc_mock_imports = ["torch", "transformers", "peft", "numpy"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
nitpicky = False
