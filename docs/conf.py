"""How the documents are built."""

from importlib.metadata import version as installed

project = "lima2py"
author = copyright = "The lima2py developers"
version = release = installed("lima2py")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib.mermaid",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "changes"]
html_theme = "furo"
html_title = "lima2py"
default_role = "code"  # docstrings quote names with single backticks
napoleon_use_ivar = True  # attributes stand in the text of their class
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other packages; links between pages are checked
