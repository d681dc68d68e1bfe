"""PyTorch under `torch.compile`. By default Dynamo does not trace `nn.LSTM` but calls it as it is; the other setting is
that it does trace it (`allow_rnn`), which unrolls the time steps."""

import torch

from benchmarks.libraries import Job
from benchmarks.libraries import torch as eager
from benchmarks.work import Epoch, Layer

TRACED = "nn.LSTM traced"

MAX_TRACED = 28
"""Time steps beyond which unrolling takes minutes."""


def settings(work: Epoch | Layer) -> list[str]:
    threads = eager.settings(work)
    short = isinstance(work, Epoch) or work.time <= MAX_TRACED
    return threads + [f"{threads[0]}, {TRACED}"] * short


def epoch(work: Epoch, setting: str) -> Job:
    _configure(setting)
    return eager.epoch(work, setting, torch.compile)


def layer(work: Layer, setting: str) -> Job:
    _configure(setting)
    return eager.layer(work, setting, torch.compile)


def _configure(setting: str) -> None:
    torch._dynamo.reset()  # settings share their code, and what was compiled with it
    torch._dynamo.config.allow_rnn = TRACED in setting
    torch.backends.mkldnn.enabled = TRACED not in setting  # Inductor has no oneDNN LSTM with gradients
