"""Accessibility of a page, by axe."""

import pytest


def violations(page) -> str:
    """axe's report; empty if it finds nothing."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    found = axe.Axe().run(page)
    return found.generate_report() if found.violations_count else ""
