"""Settings of Sphinx for the documentation site; `build.py` sets the language and the folders."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import normkit

# `build.py` gives the tag.
lang = "zh" if tags.has("zh") else "en"  # type: ignore[name-defined]  # noqa: F821

project = "normkit"
version = release = normkit.__version__
author = "the normkit authors"
html_title = "normkit"
html_short_title = "normkit"
language = {"en": "en", "zh": "zh_CN"}[lang]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "builder.extension"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
# A word in single backticks in a docstring is a name of the code, and a link where it has a page.
default_role = "py:obj"
nitpicky = False

myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 80
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_static_path = ["static"]
templates_path = ["templates"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_use_index = False
html_domain_indices = False
html_last_updated_fmt = None
html_theme_options = {"top_of_page_buttons": []}
html_context = {"lang": lang, "other": "zh" if lang == "en" else "en"}
html_favicon = "static/favicon.svg"
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "github-light"
pygments_dark_style = "github-dark"
