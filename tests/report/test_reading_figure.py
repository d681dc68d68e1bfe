"""The picture of a reading: that it shows the numbers that it was given, of networks and images of all kinds."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lstm_mnist_jax.report.files import file_bytes
from lstm_mnist_jax.report.reading_figure import draw_reading
from lstm_mnist_jax.report.style import styled

NAMES = ("T-shirt/top", "Trouser", "$x$ <b>", "ankle boot, brown and worn", "数字")


def softmax(logits):
    return (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)


def drawn(rng, shape=(28, 28), steps=28, classes=5, widths=(4, 7), cells=True, **options):
    image = rng.uniform(size=shape).astype(np.float32)
    probabilities = softmax(rng.normal(size=(steps, classes)).cumsum(axis=0))
    states = [(rng.normal(size=(steps, n)), rng.normal(size=(steps, n)) if cells else None) for n in widths]
    names = NAMES if classes == 5 else tuple(f"class {n}" for n in range(classes))
    figure = draw_reading(image, probabilities, states, rng.normal(size=shape), names, **options)
    return figure, probabilities, states


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cells": False, "widths": (3,), "title": "scans/a.png", "step_name": "row"},
        {"shape": (32, 32, 3), "steps": 1024, "true_label": 3, "step_name": "pixel"},
        {"shape": (6, 5), "steps": 1, "classes": 2, "widths": (1,), "true_label": 0},
        {"shape": (60, 20), "steps": 3, "classes": 400, "true_label": 399, "title": "a" * 300},
        {"shape": (1, 9), "steps": 9},
    ],
)
def test_what_is_drawn_is_what_was_given(options, rng, tmp_path):
    figure, probabilities, states = drawn(rng, **options)
    assert isinstance(figure, Figure)
    for kind in ("png", "svg"):
        (tmp_path / f"a.{kind}").write_bytes(file_bytes(figure, kind))
    curves = next(axes for axes in figure.axes if axes.get_ylabel() == "probability")
    lines = [line.get_ydata() for line in curves.lines if len(line.get_ydata()) == len(probabilities)]
    for label in range(probabilities.shape[1]):
        assert any(np.array_equal(line, probabilities[:, label]) for line in lines)
    maps = [axes.images[0].get_array() for axes in figure.axes if axes.get_ylabel().startswith("layer")]
    expected = [values.T for pair in states for values in pair if values is not None]
    assert len(maps) == len(expected)
    for found, wanted in zip(maps, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    step_name = options.get("step_name", "step")
    assert [axes.get_xlabel() for axes in figure.axes].count(f"{step_name}s read") == 1


@pytest.mark.parametrize("true_label", [None, 0, 1])
def test_the_title_says_what_was_guessed(true_label, rng):
    probabilities = np.full((3, 2), 0.5, np.float32)
    probabilities[-1] = 0.25, 0.75
    states = [(rng.normal(size=(3, 2)), None)]
    figure = draw_reading(np.eye(3), probabilities, states, np.zeros((3, 3)), ("a", "b"), true_label=true_label)
    told = {None: "read as b, probability 75.0%", 0: "read as b, probability 75.0%; it is a"}
    expected = told.get(true_label, "read as b, probability 75.0%, which is right")
    assert expected in [text.get_text() for text in figure.texts]


@pytest.mark.slow
def test_names_stand_at_their_lines_and_clear_of_each_other(rng):
    for _ in range(20):
        figure, probabilities, _ = drawn(rng)
        with styled():
            figure.canvas.draw()
            curves = next(axes for axes in figure.axes if axes.get_ylabel() == "probability")
            boxes = [text.get_window_extent() for text in curves.texts]
        assert 1 <= len(boxes) <= 5
        for n, box in enumerate(boxes):
            assert not any(box.shrunk(0.9, 0.8).overlaps(other.shrunk(0.9, 0.8)) for other in boxes[:n])
            assert box.x1 <= figure.bbox.x1
        for text in curves.texts:
            step, height = text.xy
            assert height in probabilities[round(step) - 1]
