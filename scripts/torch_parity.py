"""Compares random classifiers of PyTorch with this package: logits of what is imported, and of what is exported.

    python scripts/torch_parity.py --models 240

Needs torch. Each model has LSTM or GRU layers, 1 to 3, of equal or different widths, in one direction or both, with or
without biases, one of six poolings, and up to two hidden dense layers. Its state_dict is saved and imported with what a
state_dict does not hold; a bidirectional one without the pooling must be refused. The parameters are exported again
and loaded into modules as `interop.torch.to_state_dict` describes them. The largest differences and counts are printed.
"""

import argparse
import contextlib
import itertools
import tempfile
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import torch
from torch import nn

from lstm_mnist_jax import model
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import formats
from lstm_mnist_jax.interop.torch import to_state_dict

IMAGE, CLASSES = (6, 5), 3
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "linear": nn.Identity}
POOLINGS = ("last", "last_step", "mean", "max", "all", "attention")


class Network(nn.Module):
    """A classifier of images [batch, rows, columns]; the arrangement of its modules is that of `to_state_dict`."""

    def __init__(self, cell: str, widths: list[int], both: bool, bias: bool, pooling: str, dense: list[int], act: str):
        super().__init__()
        kind, self.cell, self.pooling = (nn.LSTM if cell == "lstm" else nn.GRU), cell, pooling
        options = {"bidirectional": both, "bias": bias, "batch_first": True}
        if len(set(widths)) == 1:
            layers: nn.Module = kind(IMAGE[1], widths[0], len(widths), **options)
        else:
            sizes = [IMAGE[1], *((1 + both) * width for width in widths)]
            layers = nn.ModuleList(kind(*pair, **options) for pair in zip(sizes, widths, strict=False))
        setattr(self, cell, layers)
        features = widths[-1] * (1 + both)
        if pooling == "attention":
            self.attention = nn.Linear(features, 1, bias=False)
        sizes = [features * (IMAGE[0] if pooling == "all" else 1), *dense]
        if dense:
            self.dense_hidden = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))
        self.dense, self.activation = nn.Linear(sizes[-1], CLASSES), ACTIVATIONS[act]()

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        layers = getattr(self, self.cell)
        for layer in layers if isinstance(layers, nn.ModuleList) else [layers]:
            outputs, state = layer(outputs)
        h = state[0] if self.cell == "lstm" else state
        match self.pooling:
            case "last":
                outputs = torch.cat([h[-2], h[-1]], dim=-1) if layer.bidirectional else h[-1]
            case "last_step":
                outputs = outputs[:, -1]
            case "mean":
                outputs = outputs.mean(dim=1)
            case "max":
                outputs = outputs.amax(dim=1)
            case "all":
                outputs = outputs.flatten(1)
            case "attention":
                outputs = (outputs * torch.softmax(self.attention(outputs), dim=1)).sum(dim=1)
        for layer in getattr(self, "dense_hidden", []):
            outputs = self.activation(layer(outputs))
        return self.dense(outputs)


def try_one(rng: np.random.Generator, folder: Path) -> tuple[float, float, Counter[str]]:
    """The largest differences of the logits after import and after export, and what was seen."""
    cell, both, bias = str(rng.choice(["lstm", "gru"])), bool(rng.integers(2)), bool(rng.integers(4))
    depth = int(rng.integers(1, 4))
    widths = [int(rng.integers(2, 7))] * depth if rng.integers(2) else [int(n) for n in rng.integers(2, 7, depth)]
    pooling, act = str(rng.choice(POOLINGS)), str(rng.choice(list(ACTIVATIONS)))
    dense = [int(n) for n in rng.integers(3, 8, rng.integers(3))]
    network = Network(cell, widths, both, bias, pooling, dense, act)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(0, 0.5, tuple(parameter.shape))))
        if cell == "gru" and bias and not rng.integers(4):
            for name, parameter in network.named_parameters():
                if "bias_hh" in name:
                    parameter[-len(parameter) // 3 :] = 0
    images = rng.random((4, *IMAGE), np.float32)
    expected = network(torch.from_numpy(images)).detach().numpy()
    torch.save(network.state_dict(), folder / "model.pt")
    seen = Counter([cell, "both directions" if both else "one direction", f"pooling {pooling}", f"{depth} layers"])
    if both and pooling != "all":
        seen["refused without --pooling"] += 1
        with contextlib.suppress(WeightsError):
            formats.read("torch", folder / "model.pt", given=formats.Given(dense_activation=act if dense else None))
            raise AssertionError("imported without a pooling")
    given = formats.Given(pooling=pooling, dense_activation=act if dense else None)
    order = [*(f"{cell}.l{n}" if len(set(widths)) == 1 else f"{cell}.{n}.l0" for n in range(depth))]
    order += [*(f"dense_hidden.{n}" for n in range(len(dense))), "dense"]
    imported = formats.read("torch", folder / "model.pt", given=given)
    assert imported.names == tuple(order), (imported.names, order)
    seen["recurrent_bias"] += imported.config.recurrent_bias
    apply = jax.jit(model.apply, static_argnames="config")
    found = np.asarray(apply(imported.params, images, imported.config))
    exported = Network(cell, widths, both, True, pooling, dense, act)
    arrays = to_state_dict(imported.params)
    exported.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    back = exported(torch.from_numpy(images)).detach().numpy()
    return float(np.abs(found - expected).max()), float(np.abs(back - expected).max()), seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=240, help="the number of models")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    worst, seen = np.zeros(2), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.models):
            *differences, found = try_one(rng, Path(folder))
            worst, seen = np.maximum(worst, differences), seen + found
            if max(differences) > 1e-5:
                print(f"model {number}: {differences}, {dict(found)}")
    print(f"{options.models} models: logits differ by at most {worst[0]:.1e} after import, {worst[1]:.1e} after export")
    for what, count in sorted(seen.items()):
        print(f"  {what}: {count}")


if __name__ == "__main__":
    main()
