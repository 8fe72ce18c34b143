"""How Sphinx builds these pages: `nox -s docs`."""

from __future__ import annotations

import sys
from pathlib import Path

import proptim

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "proptim"
author = "the authors of proptim"
copyright = f"2026, {author}"
release = version = proptim.__version__
html_title = f"proptim {release}"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    # docs/_ext
    "formulas",
    "registry_pages",
    "offline",
]
exclude_patterns = ["_build", "gallery"]
templates_path: list[str] = []
default_role = "py:obj"  # `name` in a docstring is a link where there is such a name
nitpick_ignore_regex = [("py:obj", r"[a-z_]+(\(\))?")]  # ... and an argument or a hyperparameter where there is none

# Docstrings
autodoc_typehints = "none"  # the sections of numpydoc have them
autodoc_member_order = "bysource"
autosummary_generate = False
maximum_signature_line_length = 60
add_module_names = False
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# Markdown
myst_heading_anchors = 3

# Gallery
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "reset_modules": ("gallery_style.reset",),
    "copyfile_regex": r"",
    "capture_repr": (),  # what is printed, and no matplotlib objects
    "show_memory": False,
    "min_reported_time": 10**6,
    "write_computation_times": False,  # their tables load scripts from elsewhere
    "show_signature": False,
    "download_all_examples": False,
    "within_subsection_order": "gallery_style.Order",
}

# Pages
html_theme = "furo"
html_math_renderer = "svg"
html_static_path = ["_static"]
html_css_files = ["proptim.css"]
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
