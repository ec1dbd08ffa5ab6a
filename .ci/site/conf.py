"""The course as a site: what Sphinx is told. `make site` builds it once in each language.

    BAIZE_LANG=zh sphinx-build -c .ci/site . runs/site/zh

Pages are the repository's own files where they lie, so links between them hold as they are; the
list of pages and their names in the sidebar are read from the README of each language. Nothing is
executed, and a page asks nothing of another host. `pages.py` holds what is not a setting.
"""

import os
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import pages  # noqa: E402

chinese = os.environ.get("BAIZE_LANG") == "zh"
repository = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]

project = "白泽课程" if chinese else "The Baize course"
author = "Baize course"
language = "zh_CN" if chinese else "en"
root_doc = pages.HOME["zh" if chinese else "en"]
include_patterns = pages.EDITIONS["zh" if chinese else "en"]
exclude_patterns = [".*", "runs", "data", "baize_lib", "tests", "figures", "**/.*"]
extensions = ["myst_nb", "pages"]
templates_path = ["templates"]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 4

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_use_index = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "repository_url": repository["Repository"],
    "repository_branch": "main",
    "use_repository_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "article_header_end": ["language.html", "article-header-buttons.html"],
    "navbar_persistent": [],
    "toc_title": "本页" if chinese else "On this page",
    "footer_content_items": [],
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
