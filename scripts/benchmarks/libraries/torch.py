"""PyTorch: `torch.nn.LSTM` and `torch.nn.GRU`, with all threads and with one; on the GPU where JAX has one.

Of its two biases one is zero and is not trained, so that it learns what the others learn.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.libraries import CHECKED_STEPS, Job, Unavailable, inference_job
from benchmarks.work import Epoch, Inference, Layer, Product, Start, Work
from lstm_mnist_jax import load

PARTS = "in parts of 500"

B2, EPSILON_HAT = 0.999, 1e-8
"""Adam's. PyTorch adds its epsilon to the corrected root; from step to step we choose the one that amounts to
epsilon hat, which TensorFlow, Keras and this package add to the uncorrected one."""

Compiler = Callable[[Any], Any]


def settings(work: Work) -> list[str]:
    counts = sorted({1, torch.get_num_threads()}, reverse=True)
    threads = [f"{count} thread{'s' * (count > 1)}" for count in counts]
    if isinstance(work, Inference) and work.images > 500:
        return [f"{setting}{how}" for setting in threads for how in ("", f", {PARTS}")]
    return threads


def _start(setting: str) -> torch.device:
    torch.set_num_threads(int(setting.split()[0]))
    if os.environ.get("LSTM_BENCHMARK_PLATFORM", "cpu") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Unavailable("JAX computes on an accelerator, and this PyTorch has none (torch.cuda.is_available()).")
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, in every library
    return torch.device("cuda")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _rnn(kind: Any, kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray) -> Any:
    """One layer; PyTorch's gates are in the same order."""
    rnn = kind(kernel.shape[0], recurrent_kernel.shape[0])
    arrays = (kernel.T, recurrent_kernel.T, bias, np.zeros_like(bias))
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    rnn.load_state_dict({name: torch.tensor(array) for name, array in zip(names, arrays, strict=True)})
    rnn.bias_hh_l0.requires_grad_(False)
    return rnn


class Classifier(torch.nn.Module):
    """The tutorial's network with given weights."""

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([_rnn(torch.nn.LSTM, *layer) for layer in start.layers])
        self.dense = torch.nn.Linear(*start.dense_kernel.shape)
        kernel, bias = torch.tensor(start.dense_kernel.T), torch.tensor(start.dense_bias)
        self.dense.load_state_dict({"weight": kernel, "bias": bias})

    def forward(self, images: Any) -> Any:
        """Logits [batch, classes] of uint8 images [batch, height, width]."""
        outputs = (images.float() * (1 / 255)).transpose(0, 1)
        for layer in self.layers:
            outputs, _ = layer(outputs)
        return self.dense(outputs[-1])


def epoch(work: Epoch, setting: str, compiler: Compiler = lambda function: function) -> Job:
    device, examples = _start(setting), load().train
    images, labels = torch.tensor(examples.images).to(device), torch.tensor(examples.labels).long().to(device)
    order = torch.tensor(work.start.order).long().to(device)
    classifier = Classifier(work.start).to(device)
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=work.learning_rate, fused=True)
    loss_of = compiler(lambda images, labels: torch.nn.functional.cross_entropy(classifier(images), labels))
    done = 0

    def train(steps: int) -> list[float]:
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
        found: list[float] = torch.stack(losses).tolist()
        return found

    return Job(lambda: train(work.steps), lambda: train(CHECKED_STEPS), setting=f"{device.type}, {setting}")


def layer(work: Layer, setting: str, compiler: Compiler = lambda function: function) -> Job:
    device = _start(setting)
    inputs, *arrays = work.arrays()
    rnn = _rnn(torch.nn.GRU if work.cell == "gru" else torch.nn.LSTM, *arrays).to(device)
    x = torch.from_numpy(inputs).to(device).requires_grad_(work.backward)
    sources = [x, *(parameter for parameter in rnn.parameters() if parameter.requires_grad)]
    lengths = None if work.lengths() is None else torch.from_numpy(work.lengths())

    def ragged(x: Any) -> Any:
        outputs, carry = rnn(torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))
        return torch.nn.utils.rnn.pad_packed_sequence(outputs, total_length=work.time)[0], carry

    forward = compiler(rnn.__call__ if lengths is None else ragged)

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

    return Job(run, check, setting=f"{device.type}, {setting}")


def inference(work: Inference, setting: str) -> Job:
    device = _start(setting)
    classifier = Classifier(work.start).to(device).eval()
    size = 500 if PARTS in setting else work.images

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            parts = torch.from_numpy(images).split(size)
            return torch.cat([torch.softmax(classifier(part.to(device)), -1).cpu() for part in parts]).numpy()

    return inference_job(work, predict, f"{device.type}, {setting}")


def product(work: Product, setting: str) -> Job:
    device = _start(setting)
    left, right = (torch.from_numpy(array).to(device) for array in work.arrays())

    def run() -> Any:
        with torch.inference_mode():
            result = left @ right
        _wait(device)
        return result

    return Job(run, lambda: [float(run()[0, 0])], setting=f"PyTorch, {device.type}, {setting}")
