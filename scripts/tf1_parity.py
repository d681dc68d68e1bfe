"""The tutorial in TensorFlow 1's own functions and here, side by side: the same weights, the same batches.

    pip install tensorflow-cpu tf-keras
    python scripts/tf1_parity.py

trains both for 200 steps, imports TensorFlow's checkpoint and goes on from it, and lets TensorFlow restore ours. The
largest differences are printed as JSON; the program fails where one is above its bound.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # Keras 3 has no BasicLSTMCell
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorflow as tf

from lstm_mnist_jax import load, model
from lstm_mnist_jax.config import ModelConfig, OptimizerConfig
from lstm_mnist_jax.interop import tf1
from lstm_mnist_jax.interop.imported import Imported
from lstm_mnist_jax.interop.weights import Adam, from_params
from lstm_mnist_jax.training.optimizer import make_optimizer

BOUNDS = {
    "loss, first 50 steps, relative": 1e-4,
    "logits of TensorFlow's checkpoint, absolute": 1e-5,
    "loss, 20 steps on from that checkpoint, relative": 1e-4,
    "logits of our checkpoint in TensorFlow, absolute": 1e-5,
    "losses of one-hot and of integer labels, relative": 1e-6,
}


class Tutorial(NamedTuple):
    """The tensors and operations of the tutorial's graph."""

    images: Any
    labels: Any
    logits: Any
    loss: Any
    sparse_loss: Any
    train: Any


def build(
    hidden_features: tuple[int, ...] = (32, 64), image_shape: tuple[int, int] = (28, 28), classes: int = 10
) -> Tutorial:
    """Adds the tutorial's model to TensorFlow's default graph."""
    v1 = tf.compat.v1
    images = v1.placeholder(tf.float32, [None, *image_shape])
    labels = v1.placeholder(tf.float32, [None, classes])
    cells = [v1.nn.rnn_cell.BasicLSTMCell(hidden) for hidden in hidden_features]
    outputs, _ = v1.nn.dynamic_rnn(v1.nn.rnn_cell.MultiRNNCell(cells), images, dtype=tf.float32)
    kernel = v1.Variable(v1.random_normal([hidden_features[-1], classes]))
    bias = v1.Variable(v1.random_normal([classes]))
    logits = tf.matmul(outputs[:, -1], kernel) + bias
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    sparse_loss = tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.argmax(labels, 1), logits=logits)
    )
    return Tutorial(images, labels, logits, loss, sparse_loss, v1.train.AdamOptimizer(0.01).minimize(loss))


class Ours:
    """The same training in this package, from what was imported."""

    def __init__(self, imported: Imported) -> None:
        self.config = ModelConfig(hidden_features=imported.weights.hidden_features)
        self.params = jax.tree.map(jnp.asarray, imported.params)
        optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01))
        self.opt_state: Any = optimizer.init(self.params)
        if imported.adam is not None:
            self.opt_state = optax.tree.set(self.opt_state, **imported.adam.to_optax()._asdict())

        @jax.jit
        def step(params: Any, opt_state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any, jax.Array]:
            def mean_loss(params: Any) -> jax.Array:
                return model.softmax_cross_entropy(model.apply(params, images, self.config), labels).mean()

            loss, gradient = jax.value_and_grad(mean_loss)(params)
            updates, opt_state = optimizer.update(gradient, opt_state)
            return optax.apply_updates(params, updates), opt_state, loss

        self._step = step

    def train(self, images: np.ndarray, labels: np.ndarray) -> float:
        """One step; gives the loss before it."""
        self.params, self.opt_state, loss = self._step(self.params, self.opt_state, images, labels)
        return float(loss)

    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(model.apply(self.params, images, self.config))


def compare(steps: int, seed: int, folder: Path) -> dict[str, float]:
    """Trains both programs and gives the largest differences between them; writes checkpoints into the folder."""
    v1, data = tf.compat.v1, load()
    batches = np.random.default_rng(seed).permutation(len(data.train))[: (steps + 20) * 64].reshape(-1, 64)
    test_images = data.test.images[:1000].astype(np.float32) / 255
    with v1.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(seed)
        tutorial = build()
        saver = v1.train.Saver()
        session.run(v1.global_variables_initializer())
        ours = Ours(tf1.read(Path(saver.save(session, str(folder / "initial.ckpt")))))

        def train(ours: Ours, batch: np.ndarray) -> tuple[float, float]:
            images, labels = data.train.images[batch].astype(np.float32) / 255, data.train.one_hot_labels[batch]
            feed = {tutorial.images: images, tutorial.labels: labels}
            theirs = session.run([tutorial.loss, tutorial.train], feed)[0]
            return float(theirs), ours.train(images, labels)

        def their_logits() -> np.ndarray:
            return np.asarray(session.run(tutorial.logits, {tutorial.images: test_images}))

        losses = np.array([train(ours, batch) for batch in batches[:steps]])
        apart = np.abs(losses[:, 1] / losses[:, 0] - 1)
        found = {"loss, first 50 steps, relative": apart[:50].max(), f"loss, all {steps} steps, relative": apart.max()}

        theirs = Ours(tf1.read(Path(saver.save(session, str(folder / "rnn_mnist.ckpt"), global_step=steps))))
        found["logits of TensorFlow's checkpoint, absolute"] = np.abs(theirs.logits(test_images) - their_logits()).max()
        losses = np.array([train(theirs, batch) for batch in batches[steps:]])
        found["loss, 20 steps on from that checkpoint, relative"] = np.abs(losses[:, 1] / losses[:, 0] - 1).max()

        tf1.write(folder / "ours.ckpt", from_params(ours.params), Adam.from_optax(ours.opt_state))
        saver.restore(session, str(folder / "ours.ckpt"))
        found["logits of our checkpoint in TensorFlow, absolute"] = np.abs(
            ours.logits(test_images) - their_logits()
        ).max()
        feed = {tutorial.images: test_images, tutorial.labels: data.test.one_hot_labels[:1000]}
        one_hot, sparse = session.run([tutorial.loss, tutorial.sparse_loss], feed)
        logits = ours.logits(test_images)
        all_losses = [one_hot, sparse] + [
            float(model.softmax_cross_entropy(logits, labels[:1000]).mean())
            for labels in (data.test.one_hot_labels, data.test.labels)
        ]
        found["losses of one-hot and of integer labels, relative"] = np.ptp(all_losses) / one_hot
    return {name: float(value) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(arguments.steps, arguments.seed, Path(folder))
    print(json.dumps({"tensorflow": tf.__version__, "jax": jax.__version__, **found}, indent=2))
    above = [name for name, bound in BOUNDS.items() if not found[name] <= bound]
    if above:
        sys.exit(f"above its bound: {', '.join(above)}")


if __name__ == "__main__":
    main()
