"""How a network reads one image, as a figure: image, saliency, the probabilities step by step, the states."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float

from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.report.style import FAINT, FONT_SIZE, INK, WIDTH, draw_image, series_style, shown, styled
from lstm_mnist_jax.report.terminal import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 5
"""At most so many classes are drawn by name:"""

MIN_PEAK = 0.2
"""those that reach this probability at some step."""

SIGNED = "PuOr"
"""Colours of values around 0: orange below, purple above, white between (ColorBrewer, safe for the colour-blind)."""

OUTLINE = "#4a4b4d"
"""The outline of the image on its saliency, which has a light ground in dark surroundings too: not ink."""

SIDE, LEFT, RIGHT = 1.75, 2.62, 5.95
"""Inches: the width of the image; from the left, where the time axes begin and end."""

TITLE, CURVES, MAP, GAP, AXIS = 0.62, 2.1, 0.8, 0.16, 0.45
"""Inches: the heights of the parts, from above."""

Along = Float[np.ndarray, "time _"]
"""The states of a layer after each step, of as many features as it has."""


def draw_reading_of(run: TrainedRun, image: np.ndarray, *, true_label: int | None = None, title: str = "") -> "Figure":
    """Draws how a run reads an image: its saliency, the probabilities step by step, the states of all layers.

    Args:
      run: of `lstm_mnist_jax.load_run`.
      image: one image, [height, width] or [height, width, channels], else as for `TrainedRun.predict`.
      true_label: its class, if it is known.
      title: a heading; the prediction is written below it.

    Returns:
      The figure: `savefig` writes it, a notebook shows it.

    Raises:
      DataError: the image has another shape or type.
    """
    images = np.asarray(image)[None]
    along = run.read_along(images)[0]
    return draw_reading(
        images[0].astype(np.float32) / (255 if images.dtype == np.uint8 else 1),
        along,
        [jax.tree.map(lambda values: np.asarray(values[0]), tuple(layer)) for layer in run.states(images)],
        run.saliency(images)[0],
        run.class_names,
        true_label=true_label,
        title=title,
        step_name=run.step_name,
    )


def draw_reading(
    image: Float[np.ndarray, "height width *channels"],
    probabilities: Float[np.ndarray, "time classes"],
    states: Sequence[tuple[Along, Along | None]],
    saliency: Float[np.ndarray, "height width *channels"],
    class_names: Sequence[str],
    *,
    true_label: int | None = None,
    title: str = "",
    step_name: str = "step",
) -> "Figure":
    """Draws how an image is read: `draw_reading_of`, from arrays.

    Args:
      image: the network's input, 0 to 1.
      probabilities: of all classes after each step.
      states: of each layer, the lowest first, the hidden states and the cell states (None where there are none).
      saliency: the gradient of the predicted class's log probability with respect to each pixel.
      class_names: a name for each class.
      true_label, title: see `draw_reading_of`.
      step_name: what a time step reads, such as "row".
    """
    from matplotlib.figure import Figure

    maps = [
        (f"layer {layer}\n{kind}", values)
        for layer, pair in enumerate(states, 1)
        for kind, values in zip(("hidden h", "cell c"), pair, strict=True)
        if values is not None
    ]
    predicted, above = int(probabilities[-1].argmax()), TITLE if title else TITLE - 0.22
    beside = above + CURVES + (GAP + MAP) * len(maps) + AXIS
    tall = SIDE * min(2, image.shape[0] / image.shape[1])
    height = max(beside, above + 2 * tall + 1.25)

    def place(figure: Any, left: float, right: float, top: float, tall: float) -> Any:
        """Axes between so many inches from the left, and so many from the top."""
        return figure.add_axes((left / WIDTH, 1 - (top + tall) / height, (right - left) / WIDTH, tall / height))

    with styled():
        figure = Figure(figsize=(WIDTH, height))
        name = shown(class_names[predicted])
        line = f"predicted {name}, probability {percent(float(probabilities[-1, predicted]), 1)}"
        if true_label is not None:
            line += ", which is right" if predicted == true_label else f"; it is {shown(class_names[true_label])}"
        figure.text(0.1 / WIDTH, 1 - 0.1 / height, shown(title, 70), weight="bold", va="top")
        figure.text(0.1 / WIDTH, 1 - (above - 0.3) / height, line, va="top")
        axes = place(figure, 0.1, 0.1 + SIDE, above, tall)
        draw_image(axes, image)
        axes.set_xlabel("input of the network", fontsize=FONT_SIZE - 2)
        _draw_saliency(place(figure, 0.1, 0.1 + SIDE, above + tall + 0.4, tall), image, saliency, name)
        axes = curves = place(figure, LEFT, RIGHT, above, CURVES)
        _draw_probabilities(curves, probabilities, class_names, true_label)
        for number, (name, values) in enumerate(maps):
            axes.tick_params(labelbottom=False)
            top = above + CURVES + GAP + number * (MAP + GAP)
            axes = place(figure, LEFT, RIGHT, top, MAP)
            _draw_map(figure, axes, place(figure, RIGHT + 0.06, RIGHT + 0.14, top, MAP), name, values)
            axes.sharex(curves)
        axes.set_xlabel(f"{step_name}s read")
    return figure


def _draw_saliency(axes: Any, image: np.ndarray, saliency: np.ndarray, name: str) -> None:
    signed, grey = (values if values.ndim == 2 else values.mean(axis=-1) for values in (saliency, image))
    most = float(np.abs(signed).max()) or 1.0
    axes.imshow(signed, cmap=SIGNED, vmin=-most, vmax=most)
    if min(grey.shape) > 1 and grey.min() < 0.5 < grey.max():
        axes.contour(grey, levels=[0.5], colors=OUTLINE, linewidths=0.8)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    label = f"saliency: a brighter pixel\nmakes {name} more probable\n(purple) or less (orange)"
    axes.set_xlabel(label, fontsize=FONT_SIZE - 2)


def _draw_probabilities(
    axes: Any, probabilities: np.ndarray, class_names: Sequence[str], true_label: int | None
) -> None:
    """A line for each class. The prediction, the true class and those with the highest peaks are drawn by name."""
    steps, peaks = np.arange(1, len(probabilities) + 1), probabilities.max(axis=0)
    likely = [label for label in np.argsort(-peaks, kind="stable") if peaks[label] >= MIN_PEAK]
    first = [probabilities[-1].argmax(), *([] if true_label is None else [true_label])]
    named = list(dict.fromkeys(map(int, [*first, *likely])))[:NAMED]
    for label in set(range(probabilities.shape[1])) - set(named):
        axes.plot(steps, probabilities[:, label], color=INK, alpha=0.3, linewidth=0.7)
    for number, label in reversed([*enumerate(named)]):  # the first is drawn on top
        style = series_style(number) if number < 4 else {"color": INK, "linestyle": (0, (4, 1, 1, 1, 1, 1))}
        axes.plot(steps, probabilities[:, label], label=shown(class_names[label], 10), **style)
    if probabilities.shape[1] > len(named):
        axes.set_title("grey: other classes", loc="right", fontsize=FONT_SIZE - 2, weight="normal", pad=2)
    half = max(0.5, len(steps) / 56)
    axes.set(ylabel="probability", ylim=(-0.02, 1.08), xlim=(1 - half, len(steps) + half))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(alpha=FAINT)
    spacing = {"handlelength": 1.6, "handletextpad": 0.4, "borderpad": 0.2}
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=FONT_SIZE - 2, reverse=True, **spacing)


def _draw_map(figure: Any, axes: Any, scale: Any, name: str, values: np.ndarray) -> None:
    """States over time: a column for each step, a row for each unit."""
    most, (steps, units) = float(np.abs(values).max()) or 1.0, values.shape
    extent = (0.5, steps + 0.5, units + 0.5, 0.5)
    image = axes.imshow(values.T, cmap=SIGNED, vmin=-most, vmax=most, aspect="auto", extent=extent)
    axes.set_ylabel(name, fontsize=FONT_SIZE - 2)
    axes.set_yticks([1, units] if units > 1 else [1])
    bar = figure.colorbar(image, cax=scale)
    bar.set_ticks([-most, 0, most], labels=[f"{value:.2g}" for value in (-most, 0, most)])
    bar.ax.tick_params(labelsize=FONT_SIZE - 2)
