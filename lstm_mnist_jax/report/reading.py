"""How a run read one image, drawn."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.report.reading_figure import draw_reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_reading_of(run: TrainedRun, image: np.ndarray, *, true_label: int | None = None, title: str = "") -> "Figure":
    """Draws how an image was read: its saliency, the probabilities step by step, the states of all layers.

    Args:
      run: of `lstm_mnist_jax.load_run`.
      image: one, [height, width] or [height, width, channels], else as for `TrainedRun.predict`.
      true_label: its class, if it is known.
      title: what it is called.

    Returns:
      The figure: `savefig` writes it, a notebook shows it.

    Raises:
      DataError: the image is of another shape or type.
    """
    images = np.asarray(image)[None]
    along = run.read_along(images)[0]
    levels = images[0].astype(np.float32)
    return draw_reading(
        levels / 255 if images.dtype == np.uint8 else levels,
        along,
        [jax.tree.map(lambda values: np.asarray(values[0]), tuple(layer)) for layer in run.states(images)],
        run.saliency(images)[0],
        run.class_names,
        true_label=true_label,
        title=title,
        step_name=run.step_name,
    )
