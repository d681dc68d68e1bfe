"""PyTorch under `torch.compile`. By default Dynamo does not trace `nn.LSTM` but calls it as it is; tried as well is
that it does trace it (`allow_rnn`), which unrolls the time steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from lstm_mnist_jax.benchmark.peers import Job
from lstm_mnist_jax.benchmark.peers import torch as eager
from lstm_mnist_jax.benchmark.work import Epoch, Layer

TRACED = "nn.LSTM traced"

LONGEST_TRACED = 28
"""Time steps beyond which unrolling takes more minutes than anybody waits."""


def settings(work: Epoch | Layer) -> list[str]:
    threads = eager.settings(work)
    short = isinstance(work, Epoch) or work.time <= LONGEST_TRACED
    return threads + [f"{threads[0]}, {TRACED}"] * short


def epoch(work: Epoch, setting: str) -> Job:
    return _job(eager.epoch, work, setting)


def layer(work: Layer, setting: str) -> Job:
    return _job(eager.layer, work, setting)


def _job(function: Callable[..., Job], work: Any, setting: str) -> Job:
    _configure(setting)
    job = function(work, setting, torch.compile)

    def activate() -> None:
        _configure(setting)
        job.activate()
        job.check()  # compiles anew

    return replace(job, activate=activate)


def _configure(setting: str) -> None:
    torch._dynamo.reset()  # settings share their code, and what was compiled with it
    torch._dynamo.config.allow_rnn = TRACED in setting
    torch.backends.mkldnn.enabled = TRACED not in setting  # Inductor has no oneDNN LSTM with gradients
