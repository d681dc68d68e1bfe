"""The tutorial in TensorFlow 1's own functions: a graph of `BasicLSTMCell`s, fed batch by batch in a session."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from typing import Any

import numpy as np
import tensorflow as tf

from lstm_mnist_jax.benchmark import prepared
from lstm_mnist_jax.benchmark.peers import CHECKED_STEPS, Job
from lstm_mnist_jax.benchmark.work import Epoch
from lstm_mnist_jax.data import load
from lstm_mnist_jax.interop.tf1 import to_variables


def epoch(work: Epoch, setting: str) -> Job:
    start, examples = prepared.read(work.prepared), load().train
    one_hot_labels = examples.one_hot_labels
    v1: Any = tf.compat.v1
    v1.disable_eager_execution()
    images, labels = v1.placeholder(tf.float32, [None, 28, 28]), v1.placeholder(tf.float32, [None, 10])
    cells = [v1.nn.rnn_cell.BasicLSTMCell(hidden) for hidden in work.hidden_features]
    outputs, _ = v1.nn.dynamic_rnn(v1.nn.rnn_cell.MultiRNNCell(cells), images, dtype=tf.float32)
    kernel = v1.Variable(np.zeros((work.hidden_features[-1], 10), np.float32))
    bias = v1.Variable(np.zeros(10, np.float32))
    logits = tf.matmul(outputs[:, -1], kernel) + bias
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    train = v1.train.AdamOptimizer(work.learning_rate).minimize(loss)
    session = v1.Session()
    session.run(v1.global_variables_initializer())
    values = to_variables(start.weights)
    for variable in v1.trainable_variables():
        variable.load(values[variable.name.removesuffix(":0")], session)

    def steps(count: int) -> list[float]:
        losses = []
        for batch in start.order[:count]:
            feed = {images: examples.images[batch].astype(np.float32) / 255, labels: one_hot_labels[batch]}
            losses.append(float(session.run([loss, train], feed)[0]))
        return losses

    return Job(lambda: steps(work.steps), lambda: steps(CHECKED_STEPS))
