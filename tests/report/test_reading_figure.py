"""The figure of one image, read step by step: shows the given arrays, for images and networks of all kinds."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lstm_mnist_jax.report.reading import draw_reading
from lstm_mnist_jax.report.style import file_bytes, shown, styled

NAMES = ("T-shirt/top", "Trouser", "$x$ <b>", "ankle boot, brown and worn", "数字")


def softmax(logits):
    return (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)


def drawn(rng, shape=(28, 28), steps=28, classes=5, widths=(4, 7), cells=True, **options):
    image = rng.uniform(size=shape).astype(np.float32)
    probabilities = softmax(rng.normal(size=(steps, classes)).cumsum(axis=0))
    states = [(rng.normal(size=(steps, n)), rng.normal(size=(steps, n)) if cells else None) for n in widths]
    names = NAMES if classes == 5 else tuple(f"class {n}" for n in range(classes))
    figure = draw_reading(image, probabilities, states, rng.normal(size=shape), names, **options)
    return figure, probabilities, states, names


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
def test_figure_shows_the_given_arrays(options, rng):
    figure, probabilities, states, names = drawn(rng, **options)
    assert isinstance(figure, Figure)
    assert all(file_bytes(figure, kind) for kind in ("png", "svg"))
    curves = next(axes for axes in figure.axes if axes.get_ylabel() == "probability")
    lines = [line.get_ydata() for line in curves.lines if len(line.get_ydata()) == len(probabilities)]
    for label in range(probabilities.shape[1]):
        assert any(np.array_equal(line, probabilities[:, label]) for line in lines)
    legend, by_name = curves.get_legend(), {line.get_label(): line.get_ydata() for line in curves.lines}
    labels = {shown(name, 10): label for label, name in enumerate(names)}
    named = [text.get_text() for text in legend.get_texts()]
    assert 1 <= len(named) <= 5
    for name in named:
        np.testing.assert_array_equal(by_name[name], probabilities[:, labels[name]])
    with styled():
        assert legend.get_window_extent().x1 <= figure.bbox.x1
    maps = [axes.images[0].get_array() for axes in figure.axes if axes.get_ylabel().startswith("layer")]
    expected = [values.T for pair in states for values in pair if values is not None]
    assert len(maps) == len(expected)
    for found, wanted in zip(maps, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    step_name = options.get("step_name", "step")
    assert [axes.get_xlabel() for axes in figure.axes].count(f"{step_name}s read") == 1


@pytest.mark.parametrize("true_label", [None, 0, 1])
def test_title_has_the_prediction(true_label, rng):
    probabilities = np.full((3, 2), 0.5, np.float32)
    probabilities[-1] = 0.25, 0.75
    states = [(rng.normal(size=(3, 2)), None)]
    figure = draw_reading(np.eye(3), probabilities, states, np.zeros((3, 3)), ("a", "b"), true_label=true_label)
    ending = {None: "", 0: "; it is a", 1: ", which is right"}[true_label]
    assert f"predicted b, probability 75.0%{ending}" in [text.get_text() for text in figure.texts]
