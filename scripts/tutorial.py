"""The classic TensorFlow 1 tutorial with JAX, Flax, optax and orbax: a stacked LSTM reads MNIST row by row.

    python scripts/tutorial.py [CHECKPOINT_FOLDER]

The parts have the names and the order of the original. Placeholders are arguments here, variables are a tree of
parameters, and a session's `run` is a call of a compiled function. `lstm-mnist train tutorial` trains the same network
on the same batches, with everything around it: all devices, resuming, metrics, reports.
"""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from orbax.checkpoint import v1 as ocp

from lstm_mnist_jax import load
from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.training.optimizer import scale_by_adam_epsilon_hat

HIDDEN, CLASSES = (32, 64), 10
LEARNING_RATE, BATCH_SIZE, EPOCHS, SEED = 0.01, 64, 10, 0


class Network(nnx.Module):
    """The variables: two LSTM cells and a dense layer, drawn as TensorFlow 1 draws them."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.cells = nnx.List([_basic_lstm_cell(n, h, rngs) for n, h in zip((28, *HIDDEN), HIDDEN, strict=False)])
        normal = jax.nn.initializers.normal(1.0)
        self.dense = nnx.Linear(HIDDEN[-1], CLASSES, kernel_init=normal, bias_init=normal, rngs=rngs)


def _basic_lstm_cell(features: int, hidden: int, rngs: nnx.Rngs) -> nnx.OptimizedLSTMCell:
    """BasicLSTMCell: one Glorot-uniform kernel [features + hidden, 4 hidden]; forget bias 1 (gates are i, f, g, o)."""
    cell = nnx.OptimizedLSTMCell(features, hidden, rngs=rngs)
    kernel = jax.nn.initializers.glorot_uniform()(rngs.params(), (features + hidden, 4 * hidden))
    cell.dense_i.kernel = nnx.Param(kernel[:features])
    cell.dense_h.kernel = nnx.Param(kernel[features:])
    cell.dense_h.bias = nnx.Param(jnp.zeros(4 * hidden).at[hidden : 2 * hidden].set(1.0))
    return cell


def rnn_layer(network: Network, images: jax.Array) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """dynamic_rnn over MultiRNNCell: outputs [time, batch, 64], and of each layer the last state (c, h)."""

    def read_row(states: list, row: jax.Array) -> tuple[list, jax.Array]:
        new_states = []
        for cell, state in zip(network.cells, states, strict=True):
            state, row = cell(state, row)  # the output of a layer is the input of the next
            new_states.append(state)
        return new_states, row

    rows = jnp.swapaxes(images, 0, 1) / 255.0  # [28 time steps, batch, 28 features]
    states = [(jnp.zeros((len(images), h)), jnp.zeros((len(images), h))) for h in HIDDEN]
    states, outputs = jax.lax.scan(read_row, states, rows)
    return outputs, states


def output_layer(network: Network, outputs: jax.Array) -> jax.Array:
    """The logits [batch, 10], of the last output."""
    return network.dense(outputs[-1])


def loss_layer(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats; labels are classes [batch] or one-hot [batch, 10], which give the same."""
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return optax.softmax_cross_entropy(logits, labels).mean()


def train(data: Dataset, seed: int = SEED, epochs: int = EPOCHS) -> tuple[Network, list[float]]:
    """Trains, and prints a line an epoch. Returns the network after the last, and the loss of every step."""
    network_key, _ = jax.random.split(jax.random.key(seed))  # `lstm-mnist train` augments images with the other key
    graph, params = nnx.split(Network(nnx.Rngs(network_key)))  # what is computed, and the variables of it
    # AdamOptimizer. TensorFlow adds epsilon before the correction of v, `optax.adam` after it.
    optimizer = optax.chain(scale_by_adam_epsilon_hat(), optax.scale_by_learning_rate(LEARNING_RATE))
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params: nnx.State, opt_state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any, Any]:
        def loss_of(params: nnx.State) -> jax.Array:
            network = nnx.merge(graph, params)
            outputs, _ = rnn_layer(network, images)
            return loss_layer(output_layer(network, outputs), labels)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    @jax.jit
    def accuracy(params: nnx.State, images: jax.Array, labels: jax.Array) -> jax.Array:
        network = nnx.merge(graph, params)
        logits = output_layer(network, rnn_layer(network, images)[0])
        return jnp.mean(jnp.argmax(logits, axis=-1) == labels)

    # next_batch: one permutation of the training examples after another, cut into batches.
    examples, steps = len(data.train), len(data.train) // BATCH_SIZE
    passes = [np.random.RandomState((seed, n)).permutation(examples) for n in range(epochs)]
    batches = np.concatenate(passes)[: epochs * steps * BATCH_SIZE].reshape(epochs, steps, BATCH_SIZE)
    losses, best = [], (0.0, "")
    for epoch in range(epochs):
        began = time.perf_counter()
        for batch in batches[epoch]:
            images, labels = data.train.images[batch], data.train.labels[batch]
            params, opt_state, loss = train_step(params, opt_state, images, labels)
            losses.append(loss)
        mean_loss, seconds = np.mean(losses[-steps:]), time.perf_counter() - began
        validation, test = (float(accuracy(params, s.images, s.labels)) for s in (data.validation, data.test))
        accuracies = f"validation {validation:7.2%}  test {test:7.2%}"
        speed = f"{seconds:.1f} s  {steps * BATCH_SIZE / seconds:,.0f} images/s"
        print(f"epoch {epoch + 1:2d}/{epochs}  loss {mean_loss:.4f}  {accuracies}  {speed}")
        if validation > best[0]:
            best = validation, f"epoch {epoch + 1}, validation {validation:.2%}, test {test:.2%}"
    print(f"best on validation: {best[1]}")
    return nnx.merge(graph, params), list(map(float, losses))


def main(folder: Path, epochs: int = EPOCHS) -> None:
    data = load()
    network, _ = train(data, epochs=epochs)

    images, labels = jnp.asarray(data.test.images[:5]), jnp.asarray(data.test.labels[:5])
    outputs, states = rnn_layer(network, images)
    same_h = bool(jnp.all(states[-1][1] == outputs[-1]))  # of the last layer
    print(f"states[{len(HIDDEN) - 1}][1] == outputs[-1]:", same_h)
    logits = output_layer(network, outputs)
    of_integers, of_one_hot = loss_layer(logits, labels), loss_layer(logits, jax.nn.one_hot(labels, CLASSES))
    print(f"loss of integer labels {of_integers:.6f}, of one-hot labels {of_one_hot:.6f}")

    graph, params = nnx.split(network)
    ocp.save(folder.absolute(), params, overwrite=True)  # Saver.save
    restored = nnx.merge(graph, ocp.load(folder.absolute(), params))  # Saver.restore
    same = output_layer(restored, rnn_layer(restored, images)[0])
    print(f"restored from {folder}: the same logits: {bool(jnp.all(same == logits))}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoints/tutorial"))
