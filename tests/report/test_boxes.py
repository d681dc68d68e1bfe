"""Pictures with boxes around their digits, as figures and in characters."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from lstm_mnist_jax.report.boxes import COLUMNS, LINES, Mark, boxed_lines, draw_boxes
from lstm_mnist_jax.report.style import BLUE

MARKS = (
    Mark((0.2, 0.1, 0.5, 0.1), "7", 0.9999),
    Mark((0.3, 0.4, 0.4, 0.2), "2", 0.514, is_doubtful=True),
    Mark((0.3, 0.9, 0.4, 0.1), "1", 0.98),
)


def sheet(height, width, paper=0.9, ink=0.1):
    """Paper with a cross of ink in each of the boxes."""
    picture = np.full((height, width), paper)
    for (top, left, tall, wide), *_ in MARKS:
        rows = slice(round(top * height), round((top + tall) * height))
        columns = slice(round(left * width), round((left + wide) * width))
        picture[rows, columns] = ink
    return picture


def test_a_figure_has_a_box_and_a_text_for_each_digit():
    figure = draw_boxes(sheet(300, 400), MARKS, title="a sheet")
    [axes] = figure.axes
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [text.get_text() for text in axes.texts] == ["7 >99.9%", "2? 51.4%", "1 98.0%"]
    for mark, box in zip(MARKS, boxes, strict=True):
        top, left, tall, wide = np.array(mark.box) * [300, 400, 300, 400]
        x, y = box.get_xy()
        assert left - 8 < x < left
        assert top - 8 < y < top
        assert left + wide < x + box.get_width() < left + wide + 8
        assert top + tall < y + box.get_height() < top + tall + 8
        assert box.get_linestyle() == ("--" if mark.is_doubtful else "-")
        assert to_hex(box.get_edgecolor()) == BLUE
    assert draw_boxes(sheet(1000, 50), MARKS[:1]).get_figheight() < 12  # of a strip


@pytest.mark.parametrize("colours", [(0.9, 0.1), (0.1, 0.9)])
def test_characters_show_ink_and_boxes(colours):
    lines = boxed_lines(sheet(300, 400, *colours), MARKS)
    assert len(lines) == 30
    assert max(map(len, lines)) <= COLUMNS
    text = "\n".join(lines)
    ink = sum(round(80 * 30 * mark.box[2] * mark.box[3]) for mark in MARKS)
    assert text.count("█") == ink - 12  # the last column is under the side of a box
    assert "┌7 >99%──┐" in lines[5]
    assert "┌2? 51%╌╌╌╌╌╌╌╌╌╌┐" in lines[8]
    assert lines[8].endswith("┌1 98%──┐")  # at the border of the picture
    assert "│████████│" in lines[10]
    assert "╎████████████████╎" in lines[10]
    assert "└────────┘" in lines[21]


def test_characters_in_ascii_on_narrow_terminals():
    lines = boxed_lines(sheet(300, 400), MARKS, width=30, plain=True)
    assert max(map(len, lines)) == 30
    assert len(lines) == round(30 * 3 / 8)
    assert "\n".join(lines).isascii()
    assert "+7 >99%" in lines[1]  # longer than the box
    tall = boxed_lines(sheet(800, 100), MARKS[:1], width=30)
    assert len(tall) == LINES
