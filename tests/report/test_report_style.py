"""The look of figures: contrast on light and dark, reproducible files, SVG with the colours of the page."""

import itertools
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.report.page.build import themed_svg
from lstm_mnist_jax.report.style import (
    GROUND,
    INK,
    SERIES,
    Picture,
    error_axis,
    file_bytes,
    new_figure,
    series_style,
    shown,
    styled,
    write_pictures,
)

DARK = "#1a1c20"
"""As light as the ground of a dark page may be."""


def luminance(color):
    """WCAG 2.2's relative luminance."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def seen_by(color, matrix):
    """A colour as dichromats see it (Viénot et al. 1999, in linear RGB)."""
    linear = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]) ** 2.2
    return np.clip(np.array(matrix) @ linear, 0, 1) ** (1 / 2.2)


def draw():
    with new_figure(2.0, 3.0) as figure:
        left, right = figure.subplots(1, 2)
        left.plot([1, 2], [3, 4], label="a & b", **series_style(0))
        left.scatter([1, 2], [3, 4], color="black")
        left.legend()
        left.grid()
        left.set_title("what is 5 < 6 and $x$?")
        right.imshow(np.eye(4))
    return figure


@pytest.mark.parametrize("ground", [GROUND, DARK])
def test_colours_stand_out_on_light_and_on_dark(ground):
    for color in SERIES:
        assert contrast(color, ground) >= 3, color
    assert contrast(INK, GROUND) >= 7


def test_dichromats_distinguish_the_colours():
    deuteranopia = [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]
    protanopia = [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]
    for matrix in (np.eye(3), deuteranopia, protanopia):
        for one, other in itertools.combinations(SERIES[:3], 2):
            assert np.linalg.norm(seen_by(one, matrix) - seen_by(other, matrix)) > 0.15, (one, other)
    looks = [tuple(series_style(number).values()) for number in range(16)]
    assert len(set(looks)) == 16


def test_svg_for_a_page_takes_text_colour_and_font_from_it():
    svg = themed_svg(draw(), "one", "two lines & a point")
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "two lines & a point"
    assert root.get("viewBox") == "0 0 216 144"
    assert root.get("width") is None
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "what is 5 < 6 and $x$?"} <= set(texts)
    colors = set(re.findall(r"#[0-9a-fA-F]{6}\b", svg))
    assert colors <= {SERIES[0], *(c for c in colors if luminance(c) > 0.1)}, colors
    assert "currentColor" in svg
    assert set(re.findall(r"font-family: ?([^;\"]*)", svg)) == {"inherit"}
    assert "<style" not in svg
    assert "<metadata" not in svg


def test_ids_in_svg_are_unique_and_all_references_resolve():
    ids, wanted = [], []
    for prefix in ("one", "two"):
        svg = themed_svg(draw(), prefix)
        root = ElementTree.fromstring(svg)
        ids += [element.get("id") for element in root.iter() if element.get("id")]
        wanted += re.findall(r"url\(#([^)]*)\)", svg) + re.findall(r'href="#([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert wanted
    assert set(wanted) <= set(ids)


def test_files_have_a_light_ground_and_are_reproducible():
    figure = draw()
    for kind in ("png", "svg"):
        assert file_bytes(figure, kind) == file_bytes(draw(), kind)
    assert f"fill: {GROUND}" in file_bytes(figure, "svg").decode()
    themed_svg(figure, "one")  # does not change the figure
    assert file_bytes(figure, "png") == file_bytes(draw(), "png")


def test_matplotlib_settings_of_the_caller_have_no_effect_and_are_restored():
    expected = file_bytes(draw(), "png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "text.usetex": True}):
        assert file_bytes(draw(), "png") == expected
        assert matplotlib.rcParams["font.size"] == 30
        assert matplotlib.rcParams["text.usetex"]


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    written = write_pictures([Picture("a-picture", "A picture", "Of nothing.", draw())], tmp_path)
    assert written == [tmp_path / "a-picture.png", tmp_path / "a-picture.svg"]
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "a-picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RunError, match=r"cannot be written to: Not a directory\. Choose another folder with --into"):
        write_pictures([Picture("a-picture", "A picture", "Of nothing.", draw())], tmp_path / "mine.txt" / "in")


@pytest.mark.parametrize("errors", [[0.4, 1.2, 2.0], [0.0, 0.0], [0.5], [3.0, 88.0], [float("nan")]])
def test_tick_labels_of_the_accuracy_axis(errors):
    with styled():
        figure = Figure()
        axes = figure.subplots()
        axes.plot(range(len(errors)), errors)
        error_axis(axes, errors)
        figure.draw_without_rendering()
    right = figure.axes[1]
    assert axes.get_ylim() == right.get_ylim()
    bottom, top = axes.get_ylim()
    assert bottom > top  # few errors are above
    assert all(top <= error <= bottom for error in errors if not np.isnan(error))
    for side, meaning in ((axes, lambda number: 100 - number), (right, lambda number: number)):
        labels = [float(label.get_text()) for label in side.get_yticklabels()]
        np.testing.assert_allclose([meaning(number) for number in labels], side.get_yticks())
        assert len(labels) >= 2


def test_names_are_shortened_to_printable_characters():
    assert shown("a\x07b\n") == "a b"
    assert shown("x" * 18) == "x" * 18
    assert shown("x" * 40, 10) == "x" * 9 + "…"
