"""Figures as PNG and SVG files, and as SVG that takes its colours from the page around it."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.report.style import GROUND, INK, Picture, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

DARK_GREY = r"#([0-5][0-9a-f])\1\1"
"""Black and greys on which nothing dark would be seen: ink, too."""

DPI = 160
"""Of PNG files: sharp on a screen with two pixels a point, too."""


def write_pictures(pictures: Sequence[Picture], folder: Path) -> list[Path]:
    """Writes each picture as NAME.png and NAME.svg, on a light ground. The folder is made; others' files in it stay.

    Returns:
      The files.

    Raises:
      RunError: they cannot be written.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            for kind in ("png", "svg"):
                path = folder / f"{picture.name}.{kind}"
                path.write_bytes(file_bytes(picture.figure, kind))
                written.append(path)
    except FileExistsError as error:
        raise RunError(
            f"{error.filename} is a file, expected a folder for the pictures. Choose another --into."
        ) from error
    except OSError as error:
        raise RunError(
            f"{error.filename or folder} cannot be written to: {error.strerror or error}. Choose another "
            "folder with --into."
        ) from error
    return written


def file_bytes(figure: "Figure", kind: str) -> bytes:
    """A figure as the contents of a file, the same every time.

    Args:
      figure: of matplotlib.
      kind: png or svg.
    """
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    return _saved(figure, format=kind, dpi=DPI, facecolor=GROUND, metadata=metadata)


def themed_svg(figure: "Figure", prefix: str, label: str = "") -> str:
    """A figure as an <svg> element to be put into HTML, which decides its colours and its fonts.

    Its ground is transparent, and what is ink, black or dark grey is drawn in `currentColor`. It has a
    viewBox and no size of its own: it is as wide as its place. Text is text.

    Args:
      figure: of matplotlib, made within `styled`.
      prefix: begins all of its ids, so that several figures fit into one page; letters, digits and hyphens.
      label: what it shows, for those who do not see it. The element has no role without.
    """
    root = ElementTree.fromstring(_saved(figure, format="svg", transparent=True, metadata={"Date": None}))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style")]:
            parent.remove(child)
    # What the <style> says, of this element alone; and black, which matplotlib does not write as it is SVG's default.
    root.set("style", "stroke-linejoin: round; fill: currentColor")
    for element in root.iter():
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        for name, value in element.attrib.items():
            element.set(name, _themed(name, value, prefix))
    if label:
        root.set("role", "img")
        root.set("aria-label", label)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _themed(name: str, value: str, prefix: str) -> str:
    """An attribute's value as it is in a page."""
    if name == "id":
        return f"{prefix}-{value}"
    if name in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if name in ("d", "x", "y", "transform"):  # to a hundredth of a point: half the size
        return re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", " ".join(value.split()))
    value = re.sub(r"url\(#", f"url(#{prefix}-", value)
    if name in ("style", "fill", "stroke", "color"):
        value = re.sub(f"{INK}|{DARK_GREY}", "currentColor", value, flags=re.IGNORECASE)
        value = re.sub(r"font-family:[^;]*", "font-family: inherit", value)
        # The shorthand: "font: 10px 'DejaVu Sans', sans-serif" says the size, and resets all else.
        value = re.sub(r"(?<![-\w])font:\s*(?:(bold|\d+)\s+)?([\d.]+px)[^;]*", _font, value)
    return value


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}; font-family: inherit"


def _saved(figure: "Figure", **options: Any) -> bytes:
    import matplotlib

    stream = io.BytesIO()
    with styled():
        matplotlib.rcParams["svg.hashsalt"] = "lstm-mnist-jax"  # ids that do not change from one writing to the next
        figure.savefig(stream, **options)
    return stream.getvalue()
