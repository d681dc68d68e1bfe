"""A trained run as the page's scripts know it: the network, its weights, and examples, as JSON and bytes."""

import base64
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.data import Examples
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.model import Params, task_of

MOST_EXAMPLES = 20
"""Classes of which an example is shown."""

MISREAD_EXAMPLES = 4
"""Further examples, that the network takes for another class."""

SEARCHED = 10_000
"""Images among which those are looked for."""


def network(run: TrainedRun) -> tuple[dict[str, Any], Float32[np.ndarray, " parameters"]]:
    """The network of a run for network.js, and its weights one after another.

    Raises:
      RunError: a weight is not finite.
    """
    spec, weights = describe(run.folder.config.model, run.params, run.folder.data.image_shape, run.class_names)
    if not np.isfinite(weights).all():
        raise RunError(
            f"The weights of {run.folder.path} are not finite numbers: its training diverged. Show another run, or "
            "another checkpoint of this one."
        )
    return spec, weights


def describe(
    config: ModelConfig, params: Params, image_shape: tuple[int, ...], class_names: tuple[str, ...]
) -> tuple[dict[str, Any], Float32[np.ndarray, " parameters"]]:
    """A network for network.js, and its weights one after another.

    Args:
      config, params: as for `model.apply`.
      image_shape: (height, width) or (height, width, channels).
      class_names: one name a class.
    """
    height, width, *channels = image_shape
    task = task_of(config)
    order = np.asarray(task.read(np.arange(height * width).reshape(1, height, width))).ravel()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = [(jax.tree_util.keystr(path, simple=True, separator="."), np.asarray(leaf)) for path, leaf in leaves]
    spec = {
        "cell": config.cell,
        "layers": len(config.hidden_features),
        "bidirectional": config.bidirectional,
        "pooling": config.pooling,
        "steps": task.shape(image_shape)[0],
        "order": None if (order == np.arange(order.size)).all() else order.tolist(),
        "channels": channels[0] if channels else 1,
        "classes": list(class_names),
        "parameters": [[name, array.size] for name, array in arrays],
    }
    return spec, np.concatenate([array.ravel() for _, array in arrays]).astype("<f4")


def step_names(run: TrainedRun) -> dict[str, Any]:
    """What a time step reads, for people, and whether the network reads from the left."""
    one = run.step_name
    return {"one": one, "many": f"{one}s", "sideways": run.folder.config.model.task == "columns"}


def choose_examples(run: TrainedRun, examples: Examples) -> list[dict[str, Any]]:
    """Examples for the page: of each class the first, of those read rightly if there are any, and a few misread.

    Returns:
      Of each its true label, the label that the network gives it, and its pixels: uint8, as base64.

    Raises:
      DataError: the images are not of the run's shape.
    """
    images, labels = examples.images[:SEARCHED], examples.labels[:SEARCHED]
    guesses, _ = run.predict(images)
    right_first = np.argsort(guesses != labels, kind="stable")
    _, firsts = np.unique(labels[right_first], return_index=True)
    firsts = right_first[firsts][:MOST_EXAMPLES]
    misread = np.flatnonzero(guesses != labels)
    misread = misread[~np.isin(misread, firsts)][:MISREAD_EXAMPLES]
    return [_example(images[n], int(labels[n]), int(guesses[n])) for n in [*firsts, *misread]]


def _example(image: np.ndarray, label: int, guess: int) -> dict[str, Any]:
    return {"label": label, "guess": guess, "pixels": base64.b64encode(image.tobytes()).decode()}
