"""A preset over rows in PyTorch, from the process's start to its last epoch, as somebody who knows PyTorch writes it:

    python -m lstm_mnist_jax.benchmark.peers.torch_recipe rows-fast [SEED]

Its lines are those of `lstm-mnist train`. What a preset has that this does not know is refused.
"""

import copy
import itertools
import math
import sys
import time
from typing import Any

import torch
from torch.nn import functional

from lstm_mnist_jax.config import PRESETS, AugmentationConfig, Config
from lstm_mnist_jax.config.json import differences
from lstm_mnist_jax.data import load

AFFINE = ("rotation_degrees", "scaling", "shear", "shift_pixels")


class Classifier(torch.nn.Module):
    """LSTM layers over rows, the last output to a dense layer; initial weights as in this package."""

    def __init__(self, config: Config, width: int, classes: int) -> None:
        super().__init__()
        model = config.model
        widths = (width, *model.hidden_features)
        self.layers = torch.nn.ModuleList([torch.nn.LSTM(*pair) for pair in itertools.pairwise(widths)])
        self.dense = torch.nn.Linear(widths[-1], classes)
        for lstm in self.layers:
            hidden = lstm.hidden_size
            bound = math.sqrt(6 / (lstm.input_size + 5 * hidden))
            for name, parameter in lstm.named_parameters():
                if "weight" in name:
                    torch.nn.init.uniform_(parameter, -bound, bound)
                else:
                    torch.nn.init.zeros_(parameter)
            torch.nn.init.constant_(lstm.bias_ih_l0[hidden : 2 * hidden], model.forget_bias)
        for parameter in self.dense.parameters():
            torch.nn.init.normal_(parameter, std=model.dense_stddev)

    def forward(self, images: torch.Tensor) -> Any:
        """Logits of images [batch, height, width] of floats."""
        outputs = images.transpose(0, 1)
        for layer in self.layers:
            outputs, _ = layer(outputs)
        return self.dense(outputs[-1])


def distort(images: torch.Tensor, config: AugmentationConfig) -> torch.Tensor:
    """Affine distortions of floats [batch, height, width], by PyTorch's own sampling."""
    batch, height, width = images.shape
    turn, stretch_y, stretch_x, slant, move_y, move_x = (2 * torch.rand(6, batch, 1) - 1).unbind()
    angle, log_scale = turn * math.radians(config.rotation_degrees), math.log1p(config.scaling)
    to_x, to_y = torch.cat([angle.cos(), -angle.sin()], 1), torch.cat([angle.sin(), angle.cos()], 1)
    to_x = (to_x - slant * config.shear * to_y) * (stretch_x * log_scale).exp()
    to_y = to_y * (stretch_y * log_scale).exp()
    moves = move_x * 2 * config.shift_pixels / width, move_y * 2 * config.shift_pixels / height
    theta = torch.stack([torch.cat([row, move], 1) for row, move in zip((to_x, to_y), moves, strict=True)], 1)
    grid = functional.affine_grid(theta, [batch, 1, height, width], align_corners=False)
    return functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def main(preset: str, seed: int = 0) -> None:
    """Trains the preset, and prints a line an epoch."""
    torch.manual_seed(seed)
    config, data = PRESETS[preset], load(**vars(PRESETS[preset].data))
    known = Config(
        tensorboard=config.tensorboard,
        epochs=config.epochs, batch_size=config.batch_size, label_smoothing=config.label_smoothing, data=config.data,
        optimizer=config.optimizer,
        model=type(config.model)(hidden_features=config.model.hidden_features, dense_stddev=config.model.dense_stddev),
        augmentation=AugmentationConfig(**{name: getattr(config.augmentation, name) for name in AFFINE}),
    )  # fmt: skip
    if config != known:
        sys.exit(f"{preset} has more than this program knows: {', '.join(differences(known, config))}")
    splits = {name: (torch.tensor(part.images), torch.tensor(part.labels).long()) for name, part in data.splits.items()}
    images, labels = splits["train"]
    options, batch_size = config.optimizer, config.batch_size
    classifier = Classifier(config, images.shape[2], len(data.class_names))
    averaged = copy.deepcopy(classifier).requires_grad_(False)
    decay = options.weight_decay
    groups = [
        {"params": [p for p in classifier.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in classifier.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(options.b1, options.b2), fused=True)
    per_epoch = len(labels) // batch_size
    warmup, total = round(options.warmup_epochs * per_epoch), config.epochs * per_epoch

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, total - warmup)
        falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[options.schedule]
        return options.final_share + (1 - options.final_share) * falling

    distorts = config.augmentation != AugmentationConfig()
    step = 0
    for epoch in range(config.epochs):
        began, sum_loss = time.perf_counter(), torch.zeros(())
        for batch in torch.randperm(len(labels))[: per_epoch * batch_size].view(per_epoch, batch_size):
            floats = images[batch].float() * (1 / 255)
            floats = distort(floats, config.augmentation) if distorts else floats
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * rate(step)
            loss = functional.cross_entropy(classifier(floats), labels[batch], label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if options.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(classifier.parameters(), options.clip_norm)
            optimizer.step()
            share = max(1 - options.ema_decay, 9 / (10 + step)) if options.ema_decay else 1.0
            with torch.no_grad():
                torch._foreach_lerp_(list(averaged.parameters()), list(classifier.parameters()), share)
            sum_loss += loss.detach()
            step += 1
        seconds = time.perf_counter() - began
        accuracies = {name: accuracy(averaged, *splits[name]) for name in ("validation", "test")}
        told = "  ".join(f"{name} {value:7.2%}" for name, value in accuracies.items())
        print(
            f"epoch {epoch + 1}/{config.epochs}  loss {sum_loss / per_epoch:.4f}  {told}  {seconds:.1f} s", flush=True
        )


@torch.inference_mode()
def accuracy(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images that are classified rightly."""
    parts = zip(images.split(512), labels.split(512), strict=True)
    right = sum((classifier(part.float() * (1 / 255)).argmax(1) == true).sum() for part, true in parts)
    return float(right) / len(labels)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
