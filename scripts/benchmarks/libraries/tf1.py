"""The tutorial in TensorFlow 1's own functions: a graph of `BasicLSTMCell`s, fed batch by batch in a session.

The graph is that of scripts/tf1_parity.py, which also runs it step by step beside this package.
"""

import numpy as np

import tf1_parity
from benchmarks.libraries import CHECKED_STEPS, Job
from benchmarks.work import Epoch
from lstm_mnist_jax import load
from lstm_mnist_jax.interop.tf1 import to_variables


def epoch(work: Epoch, setting: str) -> Job:
    v1 = tf1_parity.tf.compat.v1
    v1.disable_eager_execution()
    examples, tutorial, session = load().train, tf1_parity.build(work.hidden_features), v1.Session()
    session.run(v1.global_variables_initializer())
    values = to_variables(work.start.weights)
    for variable in v1.trainable_variables():
        variable.load(values[variable.name.removesuffix(":0")], session)
    one_hot_labels = examples.one_hot_labels

    def steps(count: int) -> list[float]:
        losses = []
        for batch in work.start.order[:count]:
            images = examples.images[batch].astype(np.float32) / 255
            feed = {tutorial.images: images, tutorial.labels: one_hot_labels[batch]}
            losses.append(float(session.run([tutorial.loss, tutorial.train], feed)[0]))
        return losses

    return Job(lambda: steps(work.steps), lambda: steps(CHECKED_STEPS))
