"""MkDocs refuses a config that lies in the folder of the pages, because the folder could then contain the built site.

Here the site is built elsewhere (`site_dir` in mkdocs.yml), and the top level of the repository is kept short: so that
check is turned off.

Docstrings have no emphasis: asterisks that became one, as in *.png without backticks, are missing from the page.
"""

import logging
import re

from mkdocs.config.config_options import Dir, DocsDir
from mkdocs.structure.pages import Page

DocsDir.post_validation = Dir.post_validation


def on_page_content(html: str, page: Page, **_: object) -> None:
    """Warns of emphasis in the API reference, which fails a strict build."""
    if page.file.src_uri.startswith("api/"):
        for text in re.findall("<em>.*?</em>", html, re.DOTALL):
            logging.getLogger("mkdocs.hooks").warning("%s: %s: put asterisks in backticks", page.file.src_uri, text)
