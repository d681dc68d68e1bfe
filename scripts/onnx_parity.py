"""Exports random classifiers to ONNX: compares onnxruntime's logits with ours, and what `import onnx` reads back.

    python scripts/onnx_parity.py --models 200

Needs onnx and onnxruntime. Each model has a random image shape, task, sequence length, cell, number of layers,
direction, pooling, activations and hidden dense layers. The outcomes are counted. "another description" has the same
bits of the parameters and of the logits, and a config that differs in how the task or the pooling is described.
"""

import argparse
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime  # type: ignore[import-untyped]

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import export, onnx

apply = jax.jit(model.apply, static_argnames="config")


def draw(rng: np.random.Generator) -> tuple[ModelConfig, tuple[int, ...]]:
    """A config, and the shape of one image."""

    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    def widths(count: int) -> tuple[int, ...]:
        return tuple(int(width) for width in rng.integers(1, 7, count))

    shape = (*(int(size) for size in rng.integers(2, 7, 2)), *pick((), (), (1,), (3,)))
    pixels = shape[0] * shape[1]
    cell, both = pick(*4 * ["lstm", "gru"], "ur_lstm", "layer_norm_lstm"), pick(False, True)
    fields: dict[str, Any] = {"recurrent_bias": pick(False, True)} if cell == "gru" else {}
    if cell == "lstm" and pick(False, True):
        hard = "hard_sigmoid_keras2", "hard_sigmoid_keras3"
        fields = {"activation": pick("tanh", "relu", "linear", *hard), "recurrent_activation": pick("sigmoid", *hard)}
    task = pick("rows", "columns", "pixels", "permuted")
    dense = widths(pick(0, 0, 1, 2))
    return ModelConfig(
        task=task,
        cell=cell,
        bidirectional=both,
        sequence_length=pick(None, None, *(n for n in range(1, pixels + 1) if pixels % n == 0)),
        permutation_seed=int(rng.integers(1000)) if task == "permuted" else 0,
        hidden_features=widths(pick(1, 2, 3)),
        pooling=pick("last", "mean", "max", "attention", "all", *["last_step"] * both),
        dense_features=dense,
        dense_activation=pick("relu", "tanh", "linear") if dense else "relu",
        **fields,
    ), shape


def try_one(rng: np.random.Generator, path: Path) -> tuple[str, float]:
    """The outcome, and the largest difference of the logits, relative to the largest logit where that is above 1."""
    config, shape = draw(rng)
    classes = int(rng.integers(2, 6))
    shapes = jax.eval_shape(partial(model.init, config, image_shape=shape, num_classes=classes), jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.uniform(-0.7, 0.7, leaf.shape).astype(np.float32), shapes)
    images = rng.integers(0, 256, (3, *shape)).astype(np.uint8)
    try:
        path.write_bytes(export.to_onnx(params, shape, (), config))
    except WeightsError as error:
        return f"refused: {str(error)[:70]}", 0.0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(["logits"], {"images": images})
    ours = np.asarray(apply(params, images, config))
    difference = float(np.abs(ours - theirs).max() / max(1, np.abs(ours).max()))
    if difference > 1e-5:
        return f"WRONG in onnxruntime: {shape}, {config}", difference
    imported = onnx.read(path)
    same = jax.tree.map(np.array_equal, imported.params, params)
    if not jax.tree.all(same) or not np.array_equal(apply(imported.params, images, imported.config), ours):
        return f"WRONG after import: {shape}, {config}", difference
    if config.sequence_length == model.task_of(replace(config, sequence_length=None)).shape(shape)[0]:
        config = replace(config, sequence_length=None)
    return ("the same config" if imported.config == config else "another description"), difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200, help="the number of models")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices")
    options = parser.parse_args()
    rng, outcomes, largest = np.random.default_rng(options.seed), Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.models):
            outcome, difference = try_one(rng, Path(folder) / "model.onnx")
            outcomes[outcome], largest = outcomes[outcome] + 1, max(largest, difference)
            jax.clear_caches()
    print(f"{options.models} models: logits differ by at most {largest:.1e}")
    for outcome, count in outcomes.most_common():
        print(f"  {outcome}: {count}")


if __name__ == "__main__":
    main()
