"""How a network read one image, as a picture: the image and its saliency, the guesses step by step, the states.

Plain arrays in, a matplotlib figure out; knows no run and no file.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from lstm_mnist_jax.report.style import FAINT, FONT_SIZE, INK, WIDTH, draw_image, series_style, shown, styled
from lstm_mnist_jax.report.terminal import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 5
"""How many classes are drawn by name, at most."""

SEEN = 0.2
"""The probability that a class must reach at some step to be one of them."""

NAME_LENGTH = 11
"""Letters of a class's name at its line: as many as there is room for beside the axes."""

SIGNED = "PuOr"
"""Colours of values around 0: orange below, purple above, white between (ColorBrewer, safe for the colour-blind)."""

OUTLINE = "#4a4b4d"
"""Of the image upon its saliency, whose ground is light in dark surroundings too: no ink."""

SIDE, LEFT, RIGHT = 1.75, 2.62, 6.05
"""Inches: of the image, and from the left where the axes of time begin and end."""

TITLE, CURVES, MAP, GAP, AXIS = 0.62, 2.1, 0.8, 0.16, 0.45
"""Inches: the heights of what stands one below the other."""

Along = Float[np.ndarray, "time _"]
"""The states of a layer after each step, of as many features as it has."""


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
    """Draws how an image was read.

    Args:
      image: as the network saw it, 0 to 1.
      probabilities: of all classes after each step.
      states: of each layer, the lowest first, the hidden states and the cell states (None where there are none).
      saliency: the gradient of the guess's log probability with respect to each pixel.
      class_names: a name for each class.
      true_label: the class that the image is of, if it is known.
      title: what the picture is called; the prediction stands below it.
      step_name: what a time step reads, such as "row".

    Returns:
      The figure: `savefig` writes it, a notebook shows it.
    """
    from matplotlib.figure import Figure

    maps = [
        (f"layer {layer}\n{kind}", values)
        for layer, pair in enumerate(states, 1)
        for kind, values in zip(("hidden h", "cell c"), pair, strict=True)
        if values is not None
    ]
    guess, above = int(probabilities[-1].argmax()), TITLE if title else TITLE - 0.22
    beside = above + CURVES + (GAP + MAP) * len(maps) + AXIS
    tall = SIDE * image.shape[0] / image.shape[1] if image.shape[0] <= 2 * image.shape[1] else 2 * SIDE
    height = max(beside, above + 2 * tall + 1.25)

    def place(figure: Any, left: float, right: float, top: float, tall: float) -> Any:
        """Axes between so many inches from the left, and so many from the top."""
        return figure.add_axes((left / WIDTH, 1 - (top + tall) / height, (right - left) / WIDTH, tall / height))

    with styled():
        figure = Figure(figsize=(WIDTH, height))
        told = f"read as {shown(class_names[guess])}, probability {percent(float(probabilities[-1, guess]), 1)}"
        if true_label is not None:
            told += ", which is right" if guess == true_label else f"; it is {shown(class_names[true_label])}"
        figure.text(0.1 / WIDTH, 1 - 0.1 / height, shown(title, 70), weight="bold", va="top")
        figure.text(0.1 / WIDTH, 1 - (above - 0.3) / height, told, va="top")
        seen = place(figure, 0.1, 0.1 + SIDE, above, tall)
        draw_image(seen, image)
        seen.set_xlabel("as the network sees it", fontsize=FONT_SIZE - 2)
        _draw_saliency(
            place(figure, 0.1, 0.1 + SIDE, above + tall + 0.4, tall), image, saliency, shown(class_names[guess])
        )
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


def _draw_saliency(axes: Any, image: np.ndarray, saliency: np.ndarray, guess: str) -> None:
    signed = saliency if saliency.ndim == 2 else saliency.sum(axis=-1)
    grey = image if image.ndim == 2 else image.mean(axis=-1)
    most = float(np.abs(signed).max()) or 1.0
    axes.imshow(signed, cmap=SIGNED, vmin=-most, vmax=most)
    if min(grey.shape) > 1 and grey.min() < 0.5 < grey.max():
        axes.contour(grey, levels=[0.5], colors=OUTLINE, linewidths=0.8)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    told = f"saliency: a brighter pixel\nmakes {guess} likelier\n(purple) or less likely (orange)"
    axes.set_xlabel(told, fontsize=FONT_SIZE - 2)


def _draw_probabilities(
    axes: Any, probabilities: np.ndarray, class_names: Sequence[str], true_label: int | None
) -> None:
    steps = np.arange(1, len(probabilities) + 1)
    named = _named(probabilities, true_label)
    for label in set(range(probabilities.shape[1])) - set(named):
        axes.plot(steps, probabilities[:, label], color=INK, alpha=0.3, linewidth=0.7)
    for number, label in reversed([*enumerate(named)]):  # the first lies on top
        axes.plot(steps, probabilities[:, label], **_line(number))
    if probabilities.shape[1] > len(named):
        axes.set_title("grey: other classes", loc="right", fontsize=FONT_SIZE - 2, weight="normal", pad=2)
    half = max(0.5, len(steps) / 56)
    axes.set(ylabel="probability", ylim=(-0.02, 1.08), xlim=(1 - half, len(steps) + half))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(alpha=FAINT)
    for number, (label, step, lift) in enumerate(_label_places(probabilities, named, class_names)):
        at = (step + 1, float(probabilities[step, label]))
        axes.plot(*at, "o", markersize=4.5, color=_line(number)["color"], clip_on=False)
        is_end = step == len(steps) - 1
        axes.annotate(
            shown(class_names[label], NAME_LENGTH),
            at,
            xytext=(6, 72 * lift) if is_end else (0, 3),
            textcoords="offset points",
            ha="left" if is_end else "center",
            va="center" if is_end else "bottom",
            fontsize=FONT_SIZE - 1,
            weight="bold",
            annotation_clip=False,
        )


def _line(number: int) -> dict[str, Any]:
    """Colour and dashes of the n-th named class: the four of a series, and ink."""
    return series_style(number) if number < 4 else {"color": INK, "linestyle": (0, (4, 1, 1, 1, 1, 1))}


def _named(probabilities: np.ndarray, true_label: int | None) -> list[int]:
    """The classes that matter: the guess, the right one, and those that were ever likely, the likeliest first."""
    peaks = probabilities.max(axis=0)
    first = [int(probabilities[-1].argmax())]
    if true_label is not None and true_label not in first:
        first.append(true_label)
    others = [int(label) for label in np.argsort(-peaks, kind="stable") if peaks[label] >= SEEN]
    return (first + [label for label in others if label not in first])[:NAMED]


def _label_places(
    probabilities: np.ndarray, named: list[int], class_names: Sequence[str]
) -> list[tuple[int, int, float]]:
    """Which class is named at which step, by how many inches raised: at its end if it is likely there, else where it
    is highest of the places that keep clear of the names before it and, if there are any, of the other lines."""
    steps, tall = len(probabilities), 0.11  # the height of a name, in probability
    places: list[tuple[int, int, float]] = []
    ends: list[float] = []
    inches = {name: 0.04 * len(shown(class_names[name], NAME_LENGTH)) + 0.03 for name in named}  # half a name's width
    reach = {name: max(1, round(half / (RIGHT - LEFT) * steps)) for name, half in inches.items()}
    for label in named:
        line, near = probabilities[:, label], reach[label]
        if line[-1] >= SEEN or label == named[0]:
            height = float(line[-1])
            while any(abs(height - other) < tall - 1e-9 for other in ends):
                height -= tall
            ends.append(height)
            places.append((label, steps - 1, (height - float(line[-1])) * CURVES / 1.1))
            continue

        def is_free(step: int, line: np.ndarray = line, near: int = near) -> bool:
            heights = [(near + reach[name], other, float(probabilities[other, name])) for name, other, _ in places]
            return all(abs(step - other) >= apart or abs(line[step] - y) > tall for apart, other, y in heights)

        def is_clear(step: int, line: np.ndarray = line, near: int = near, label: int = label) -> bool:
            others = np.delete(probabilities, label, axis=1)[max(0, step - near + 1) : step + near]
            return not ((others > line[step] + 0.02) & (others < line[step] + tall)).any()

        order = [int(step) for step in np.argsort(-line, kind="stable") if near <= step < steps - near] or [0]
        free = list(filter(is_free, order)) or order
        high = [step for step in free if line[step] > 0.7 * line[free[0]]]
        places.append((label, next(filter(is_clear, high), free[0]), 0.0))
    return places


def _draw_map(figure: Any, axes: Any, scale: Any, name: str, values: np.ndarray) -> None:
    """States over time: a column a step, a line a unit."""
    most = float(np.abs(values).max()) or 1.0
    steps, units = values.shape
    shown = axes.imshow(
        values.T,
        cmap=SIGNED,
        vmin=-most,
        vmax=most,
        aspect="auto",
        extent=(0.5, steps + 0.5, units + 0.5, 0.5),
    )
    axes.set_ylabel(name, fontsize=FONT_SIZE - 2)
    axes.set_yticks([1, units] if units > 1 else [1])
    bar = figure.colorbar(shown, cax=scale)
    bar.set_ticks([-most, 0, most], labels=[f"{value:.2g}" for value in (-most, 0, most)])
    bar.ax.tick_params(labelsize=FONT_SIZE - 2)
