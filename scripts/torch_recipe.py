"""A preset over rows in idiomatic PyTorch, for scripts/time_to_accuracy.py.

    python scripts/torch_recipe.py rows-fast [SEED]

It prints the lines of `lstm-mnist train`. A preset with more than this program does is refused.
"""

import copy
import itertools
import math
import sys
import time
from typing import Any

import torch
from torch.nn import functional

from lstm_mnist_jax import PRESETS, Config, load
from lstm_mnist_jax.config import AugmentationConfig, ModelConfig, OptimizerConfig
from lstm_mnist_jax.config.json import differences

HERE = {
    ModelConfig: ("hidden_features", "dense_stddev"),
    OptimizerConfig: ("learning_rate", "ema_decay", "clip_norm", "schedule", "warmup_epochs"),
    AugmentationConfig: ("rotation_degrees", "scaling", "shear", "shift_pixels"),
    Config: ("tensorboard", "epochs", "batch_size", "data"),
}
"""The fields in which a preset may differ from the defaults."""


class Classifier(torch.nn.Module):
    """LSTM layers over rows, the last output to a dense layer; initial weights as in this package."""

    def __init__(self, config: ModelConfig, width: int, classes: int) -> None:
        super().__init__()
        widths = (width, *config.hidden_features)
        self.layers = torch.nn.ModuleList([torch.nn.LSTM(*pair) for pair in itertools.pairwise(widths)])
        self.dense = torch.nn.Linear(widths[-1], classes)
        for lstm in self.layers:
            hidden = lstm.hidden_size
            bound = math.sqrt(6 / (lstm.input_size + 5 * hidden))
            for name, parameter in lstm.named_parameters():
                limit = bound if "weight" in name else 0.0
                torch.nn.init.uniform_(parameter, -limit, limit)
            torch.nn.init.constant_(lstm.bias_ih_l0[hidden : 2 * hidden], config.forget_bias)
        for parameter in self.dense.parameters():
            torch.nn.init.normal_(parameter, std=config.dense_stddev)

    def forward(self, images: torch.Tensor) -> Any:
        """Logits of uint8 images or floats from 0 to 1, [batch, height, width]."""
        outputs = (images if images.is_floating_point() else images.float() * (1 / 255)).transpose(0, 1)
        for layer in self.layers:
            outputs, _ = layer(outputs)
        return self.dense(outputs[-1])


def augment(images: torch.Tensor, config: AugmentationConfig) -> torch.Tensor:
    """Random affine maps of floats [batch, height, width], by PyTorch's own sampling."""
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


def require_supported(name: str, config: Config) -> None:
    """Exits where a preset has more than this program does."""
    parts = {"model": config.model, "optimizer": config.optimizer, "augmentation": config.augmentation}
    fields: dict[str, Any] = {key: getattr(config, key) for key in HERE[Config]}
    for key, part in parts.items():
        fields[key] = type(part)(**{name: getattr(part, name) for name in HERE[type(part)]})
    supported = Config(**fields)
    if config != supported:
        sys.exit(f"{name} has more than this program does: {', '.join(differences(supported, config))}")


@torch.inference_mode()
def accuracy(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The fraction of images that are classified correctly."""
    parts = zip(images.split(512), labels.split(512), strict=True)
    return float(sum((classifier(part).argmax(1) == true).sum() for part, true in parts)) / len(labels)


def main(preset: str, seed: int = 0) -> None:
    """Trains the preset, and prints a line an epoch."""
    config = PRESETS[preset]
    require_supported(preset, config)
    torch.manual_seed(seed)
    data, options, batch_size = load(**vars(config.data)), config.optimizer, config.batch_size
    splits = {name: (torch.tensor(part.images), torch.tensor(part.labels).long()) for name, part in data.splits.items()}
    images, labels = splits["train"]
    classifier = Classifier(config.model, images.shape[2], len(data.class_names))
    average = copy.deepcopy(classifier).requires_grad_(False)  # EMA of the weights
    optimizer = torch.optim.Adam(classifier.parameters(), lr=options.learning_rate, fused=True)
    per_epoch = len(labels) // batch_size
    warmup, total = round(options.warmup_epochs * per_epoch), config.epochs * per_epoch

    def fraction(step: int) -> float:
        """Of the peak learning rate."""
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, total - warmup)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[options.schedule]

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, fraction)
    for epoch in range(config.epochs):
        began, sum_loss = time.perf_counter(), torch.zeros(())
        for batch in torch.randperm(len(labels))[: per_epoch * batch_size].view(per_epoch, batch_size):
            inputs = images[batch]
            if config.augmentation != AugmentationConfig():
                inputs = augment(inputs.float() * (1 / 255), config.augmentation)
            loss = functional.cross_entropy(classifier(inputs), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            if options.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(classifier.parameters(), options.clip_norm)
            step = schedule.last_epoch
            optimizer.step()
            schedule.step()
            new = max(1 - options.ema_decay, 9 / (10 + step)) if options.ema_decay else 1.0
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(classifier.parameters()), new)
            sum_loss += loss.detach()
        seconds = time.perf_counter() - began
        shown = "  ".join(f"{name} {accuracy(average, *splits[name]):7.2%}" for name in ("validation", "test"))
        mean_loss = sum_loss / per_epoch
        print(f"epoch {epoch + 1}/{config.epochs}  loss {mean_loss:.4f}  {shown}  {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
