"""MkDocs refuses a config that lies in the folder of the pages, because the folder could then contain the built site.

Here the site is built elsewhere (`site_dir` in mkdocs.yml), and the top level of the repository is kept short: so that
check is turned off.
"""

from mkdocs.config.config_options import Dir, DocsDir

DocsDir.post_validation = Dir.post_validation
