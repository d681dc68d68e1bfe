"""Keras 3 on any backend: `model.fit`, its own loop over the batches, with its own choice of how to compile."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from benchmarks.libraries import CHECKED_STEPS, Job
from benchmarks.work import Epoch
from lstm_mnist_jax import load
from lstm_mnist_jax.interop.keras import to_model
from lstm_mnist_jax.interop.weights import to_params


def epoch(work: Epoch, setting: str) -> Job:
    order, examples, model = work.start.order, load().train, to_model(to_params(work.start.weights))
    optimizer = keras.optimizers.Adam(work.learning_rate, epsilon=1e-8)  # the form with epsilon hat, as ours
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def batches(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = order.reshape(-1)
        return examples.images[chosen].astype(np.float32) * np.float32(1 / 255), examples.labels[chosen]

    def run() -> None:
        images, labels = batches(order)
        model.fit(images, labels, batch_size=work.batch_size, epochs=1, shuffle=False, verbose=0)

    def check() -> list[float]:
        losses = []
        for batch in order[:CHECKED_STEPS]:
            model.reset_metrics()  # else the loss is a mean over all batches so far
            losses.append(float(model.train_on_batch(*batches(batch))))
        return losses

    return Job(run, check, setting=keras.backend.backend())
