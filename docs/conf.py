"""Sphinx: the site is built from docs/ and specs/, with the top of the checkout as source directory.

    sphinx-build -c docs . docs/_build/html

so that a link between two pages is the same path here, on the web page of the repository and in an editor.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from functools import partialmethod
from pathlib import Path

from docutils import nodes
from nbclient import NotebookClient
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]

from ptycho_exec import __version__  # noqa: E402

# What the tutorials run is this environment's, under no settings of whoever builds the site.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
for name in [
    name for name in os.environ if name.startswith(("PTYCHO_", "SLURM_", "PL_", "MLFLOW_", "WANDB_"))
]:
    del os.environ[name]
os.environ.update(
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "2"), COLUMNS="100", PYTHONWARNINGS="ignore"
)


def sources_digest() -> str:
    """Return a hash of both packages: what the tutorials printed under other code is not shown."""
    digest = hashlib.sha256()
    for package in ("ptycho_exec", "ptycho_torch"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


project = "ptycho_exec + ptycho_torch"
author = "The ptycho_exec developers"
copyright = "2026, the ptycho_exec developers; BSD 3-Clause"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "commands",
    "drawings",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "specs/**", "CHANGELOG.md", "CONTRIBUTING.md", "README.md"]
exclude_patterns = [
    "docs/_*",
    ".*",
    "ptycho_*",
    "tests",
    "benchmarks",
    "demo_run*",
    "runs",
    "dist",
    "**/*.ipynb",
]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}
highlight_language = "none"
nitpicky = True
# Names of other packages have no target here; those of ours that are not public neither.
nitpick_ignore_regex = [(r"py:.*", r"(?!ptycho_(exec|torch)\.\w+$).*")]

# Pages
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
# DOCS_EXECUTE names the only pages that are executed, by a part of their path, or `none`; without it all are.
NOTEBOOKS = [
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if "{code-cell}" in path.read_text("utf-8")
]
only = os.environ.get("DOCS_EXECUTE", "").split()
nb_execution_mode = "cache"
nb_execution_excludepatterns = [page for page in NOTEBOOKS if only and not any(part in page for part in only)]
nb_execution_cache_path = os.environ.get("DOCS_CACHE") or str(ROOT / "docs/_build/cache" / sources_digest())
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
# What a command prints arrives in pieces; they are put together again.
NotebookClient.__init__ = partialmethod(NotebookClient.__init__, coalesce_streams=True)
nb_output_stderr = "show"
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp"

# Reference
default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": False}
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Looks
html_theme = "pydata_sphinx_theme"
html_title = "ptycho_exec + ptycho_torch"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/mark.svg"
html_context = {"default_mode": "auto"}
html_extra_path = ["_extra"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "logo": {"text": "ptycho", "image_light": "docs/_static/mark.svg", "image_dark": "docs/_static/mark.svg"},
    "show_nav_level": 1,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

# `make docs-linkcheck` asks the net; addresses of examples are no addresses.
linkcheck_ignore = [r"http://localhost.*", r"http://nowhere.*"]
linkcheck_anchors = False

# What outputs say of the machine that built the site.
PLACES = (
    (re.compile(re.escape(f"{ROOT}/")), ""),
    (re.compile(re.escape(str(ROOT))), "."),
    (re.compile(r"/tmp/tmp\w+"), "/work"),
    (re.compile(re.escape(f"{Path.home()}/")), "~/"),
)


def name_no_machine(_: Sphinx, doctree: nodes.document) -> None:
    """Shorten paths of the building machine in what tutorials printed."""
    for node in doctree.findall(lambda node: isinstance(node, (nodes.literal_block, nodes.raw))):
        text = node.astext()
        for pattern, name in PLACES:
            text = pattern.sub(name, text)
        if text != node.astext():
            node.rawsource, node.children = text, []
            node += nodes.Text(text)


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", name_no_machine)
