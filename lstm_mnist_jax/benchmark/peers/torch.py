"""PyTorch: `torch.nn.LSTM`, with all threads or with one, whichever is quicker; on the GPU where JAX has one.

Of its two biases one is zero and is not trained, so that it learns what the others learn.
"""

import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lstm_mnist_jax.benchmark import prepared
from lstm_mnist_jax.benchmark.peers import CHECKED_IMAGES, CHECKED_STEPS, Job, Unavailable
from lstm_mnist_jax.benchmark.work import Epoch, Inference, Layer, Product, Work
from lstm_mnist_jax.data import load
from lstm_mnist_jax.interop.weights import Weights

WHOLE, PARTS = "at once", "in parts of 500"

B2, EPSILON_HAT = 0.999, 1e-8
"""Adam's. PyTorch adds its epsilon to the corrected root; from step to step we choose the one that amounts to
epsilon hat, which TensorFlow, Keras and this package add to the uncorrected one."""


def settings(work: Work) -> list[str]:
    counts = sorted({1, torch.get_num_threads()}, reverse=True)
    threads = [f"{count} thread{'s' * (count > 1)}" for count in counts]
    if isinstance(work, Inference) and work.images > 500:
        return [f"{setting}, {how}" for setting in threads for how in (WHOLE, PARTS)]
    return threads


def _start(setting: str) -> torch.device:
    torch.set_num_threads(int(setting.split()[0]))
    if os.environ.get("LSTM_BENCHMARK_PLATFORM", "cpu") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Unavailable("JAX computes on an accelerator, and this PyTorch has none (torch.cuda.is_available()).")
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, in every peer
    return torch.device("cuda")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _lstm(kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray) -> torch.nn.LSTM:
    """One layer; PyTorch's gates are in the same order."""
    lstm = torch.nn.LSTM(*kernel.shape[:1], recurrent_kernel.shape[0])
    arrays = (kernel.T, recurrent_kernel.T, bias, np.zeros_like(bias))
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    lstm.load_state_dict({name: torch.tensor(array) for name, array in zip(names, arrays, strict=True)})
    lstm.bias_hh_l0.requires_grad_(False)
    return lstm


class Classifier(torch.nn.Module):
    """The tutorial's network with given weights."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([_lstm(*layer) for layer in weights.layers])
        self.dense = torch.nn.Linear(weights.hidden_features[-1], weights.num_classes)
        self.dense.load_state_dict(
            {"weight": torch.tensor(weights.dense_kernel.T), "bias": torch.tensor(weights.dense_bias)}
        )

    def forward(self, images: Any) -> Any:
        """Logits [batch, classes] of uint8 images [batch, height, width]."""
        outputs = (images.float() * (1 / 255)).transpose(0, 1)
        for layer in self.layers:
            outputs, _ = layer(outputs)
        return self.dense(outputs[-1])


def epoch(work: Epoch, setting: str, compiler: Callable[[Any], Any] = lambda function: function) -> Job:
    device = _start(setting)
    start, examples = prepared.read(work.prepared), load().train
    images, labels = torch.tensor(examples.images).to(device), torch.tensor(examples.labels).long().to(device)
    order = torch.tensor(start.order).long().to(device)
    classifier = Classifier(start.weights).to(device)
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=work.learning_rate, fused=True)

    def loss_of(images: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(classifier(images), labels)

    loss_of = compiler(loss_of)
    done = 0

    def train(steps: int) -> Any:
        nonlocal done
        losses = []
        for batch in order[:steps]:
            done += 1
            optimizer.param_groups[0]["eps"] = EPSILON_HAT / math.sqrt(1 - B2**done)
            optimizer.zero_grad()
            loss = loss_of(images[batch], labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).cpu()

    return Job(
        lambda: train(work.steps),
        lambda: train(CHECKED_STEPS).tolist(),
        setting=f"{device.type}, {setting}",
        activate=lambda: _start(setting),
    )


def layer(work: Layer, setting: str, compiler: Callable[[Any], Any] = lambda function: function) -> Job:
    device = _start(setting)
    inputs, *arrays = work.arrays()
    lstm = _lstm(*arrays).to(device)
    x = torch.from_numpy(inputs).to(device).requires_grad_(work.backward)
    sources = [x, *(parameter for parameter in lstm.parameters() if parameter.requires_grad)]
    forward = compiler(lambda x: lstm(x))

    def once() -> Any:
        if not work.backward:
            with torch.inference_mode():
                return forward(x)
        loss = forward(x)[0].square().mean()
        return loss.detach(), torch.autograd.grad(loss, sources)

    def run() -> None:
        once()
        _wait(device)

    def check() -> list[float]:
        first, second = once()
        if not work.backward:
            return [float(first.double().square().mean())]
        return [float(first), *sorted(float(gradient.double().norm()) for gradient in second)]

    return Job(run, check, setting=f"{device.type}, {setting}", activate=lambda: _start(setting))


def inference(work: Inference, setting: str) -> Job:
    device = _start(setting)
    images, labels = load().test.images, load().test.labels
    classifier = Classifier(prepared.read(work.prepared).weights).to(device).eval()
    size = 500 if PARTS in setting else work.images
    starts = itertools.cycle(range(0, len(images), work.images))

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            parts = [images[first : first + size] for first in range(0, len(images), size)]
            return np.concatenate(
                [torch.softmax(classifier(torch.from_numpy(part).to(device)), -1).cpu().numpy() for part in parts]
            )

    def run() -> None:
        first = next(starts)
        predict(images[first : first + work.images])

    def check() -> list[float]:
        probabilities = predict(images[:CHECKED_IMAGES])
        return (-np.log(probabilities[range(CHECKED_IMAGES), labels[:CHECKED_IMAGES]])).tolist()

    return Job(run, check, setting=f"{device.type}, {setting}", activate=lambda: _start(setting))


def product(work: Product, setting: str) -> Job:
    device = _start(setting)
    left, right = (torch.from_numpy(array).to(device) for array in work.arrays())

    def run() -> Any:
        with torch.inference_mode():
            result = left @ right
        _wait(device)
        return result

    return Job(run, lambda: [float(run()[0, 0])], setting=f"{device.type}, {setting}", activate=lambda: _start(setting))
