"""The site: pages of this folder, the API and command references from the code, the notebooks."""

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate

from bayes_sd import __version__

project, version, release = "bayes_sd", __version__, __version__
language = "en"
extensions = ["myst_nb", "sphinx.ext.autosummary", "numpydoc", "sphinx_copybutton"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
highlight_language = "none"
# Names of the package that docstrings refer to must exist; types of others are left as they stand.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!bayes_sd\.).*")]

myst_enable_extensions = ["deflist", "dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
templates_path = ["_templates"]

html_theme = "furo"
html_title = "bayes_sd"
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_prompt_text = "$ "

GENERATED = {"cli": generate.commands, "run_table": generate.columns, "json": generate.replies}


def _fill(_: Any, page: str, text: list[str]) -> None:
    """Put what the code says in place of the marker of a page."""
    if page in GENERATED:
        text[0] = text[0].replace("<!-- generated -->", GENERATED[page]())


def _write(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        generate.write_schemas(Path(app.outdir))


def setup(app: Any) -> None:
    """Called by Sphinx before anything is read."""
    generate.copy_notebooks(HERE / "notebooks")
    app.connect("source-read", _fill)
    app.connect("build-finished", _write)
