"""Parameters drawn by NumPy: to draw them with JAX compiles many small programs, anew for each shape."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig


def _draw(path: Any, leaf: Any) -> np.ndarray:
    """Values of which none is zero, so that no mistake hides. The name of the parameter decides what is drawn."""
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    deviation = 1.0 if name == "dense.kernel" else 0.4
    if len(leaf.shape) == 2 and name != "dense.kernel":
        deviation = leaf.shape[0] ** -0.5  # so that rounding errors do not grow from step to step
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.normal(float("scale" in name), deviation, leaf.shape).astype(leaf.dtype)


def drawn_module(make: Callable[[], Any]) -> Any:
    """The module that `make` makes, with drawn parameters. It may have no other arrays."""
    module = nnx.eval_shape(make)
    values = jax.tree_util.tree_map_with_path(_draw, nnx.state(module, nnx.Param))
    nnx.update(module, jax.device_put(values))  # `jnp.asarray` compiles a program for each shape
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(module)))
    return module


def drawn(config: ModelConfig, image_shape: tuple[int, ...] = (6, 5), num_classes: int = 3) -> model.Params:
    """Parameters of a classifier, as `model.init` gives them. The same at each call."""
    return jax.tree_util.tree_map_with_path(_draw, model.param_shapes(config, image_shape, num_classes))
