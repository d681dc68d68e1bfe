"""The parts of scripts/accelerator_check.py: generators of rows, which are dictionaries of columns."""

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.libraries import Unavailable
from benchmarks.parts import SIZES
from benchmarks.rounds import Workers, compare, differs
from benchmarks.work import Layer
from benchmarks.worker import Worker
from lstm_mnist_jax import PRESETS, Config
from lstm_mnist_jax.config import DataConfig, ModelConfig

__all__ = ["PARTS", "Failed", "Part", "Setting", "Unavailable", "device"]

Row = dict[str, Any]
ACCURACIES = (98, 99)
LAYERS = [
    Layer(*sizes, backward) for sizes in ((28, 64, 128), (784, 64, 128), (28, 256, 512)) for backward in (False, True)
]
SMALLEST = Config(epochs=3, batch_size=32, data=DataConfig(validation_examples=64, train_examples=256),
                  model=ModelConfig(hidden_features=(4,)), tensorboard=False)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What a part is given.

    Attributes:
      tiny: whether its sizes are those of a test.
      platform: where JAX computes: cpu, gpu or tpu.
      folder: for its files; the same for all its steps.
      seconds: the time that it has.
      done: the rows of the other parts.
    """

    tiny: bool
    platform: str
    folder: Path
    seconds: float
    done: dict[str, list[Row]]

    def config(self, preset: str) -> Config:
        return SMALLEST if self.tiny else PRESETS[preset]

    def layers(self, *usual: Layer) -> list[Layer]:
        return [Layer(5, 4, 8, True)] if self.tiny else [*usual]


class Failed(Exception):
    """What was checked is wrong; the message has the reason."""


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
      title, seconds: for people, and its time limit.
      steps: what it does, each in a process of its own.
      uses_jax: whether JAX runs in these processes themselves, so that the memory at its peak can be read there.
      flags: added to XLA_FLAGS.
    """

    title: str
    seconds: float
    steps: tuple[Callable[[Setting], Iterator[Row]], ...]
    uses_jax: bool = True
    flags: str = ""


def device(_: Setting) -> Iterator[Row]:
    import jax

    from lstm_mnist_jax import __version__

    first = jax.devices()[0]
    yield {"platform": first.platform, "device": first.device_kind, "devices": jax.device_count(),
           "jax": jax.__version__, "jaxlib": jax.lib.__version__, "version": __version__}  # fmt: skip


def tests(setting: Setting) -> Iterator[Row]:
    chosen = ["-n0", "--noconftest", "tests/scripts/test_launch_files.py"] if setting.tiny else ["-m", "not slow"]
    chosen += ["-n0"] if setting.platform == "tpu" else []  # which belongs to one process
    limit = max(1.0, setting.seconds - 10)
    with tempfile.TemporaryFile("w+") as output:
        words = [sys.executable, "-m", "pytest", "-v", "--tb=line", "-p", "no:cacheprovider", *chosen]
        try:
            code = subprocess.run(words, cwd=Path(__file__).parents[2], stdout=output, stderr=subprocess.STDOUT,
                                  timeout=limit, check=False).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = None
        output.seek(0)
        lines = output.read().splitlines()
    found = [re.search(r"(PASSED|FAILED|ERROR|SKIPPED) .*?(\S+::.+)|(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED)", line)
             for line in lines]  # fmt: skip
    outcomes = {match[2] or match[3]: match[1] or match[4] for match in found if match}
    yield {kind.lower(): [*outcomes.values()].count(kind) for kind in ("PASSED", "SKIPPED", "FAILED", "ERROR")}
    for test in [test for test, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")]:
        yield {"did not pass": test}
    if code != 0:
        how = f"was stopped after {limit:.0f} s" if code is None else f"ended with exit code {code}"
        raise Failed(": ".join([f"pytest {how}", *lines[-1:]]))


def preset(name: str, setting: Setting) -> Iterator[Row]:
    import jax

    from lstm_mnist_jax import Execution, train
    from lstm_mnist_jax.training.mesh import use_cpu_devices

    began, compiling = time.perf_counter(), list[float]()
    config = setting.config(name)

    def add(event: str, duration_secs: float, **_: str | int) -> None:
        compiling.append(duration_secs * event.startswith("/jax/core/compile/"))

    jax.monitoring.register_event_duration_secs_listener(add)
    use_cpu_devices(Execution(), config.batch_size)
    reached: dict[str, float | None] = {f"to {accuracy} %, s": None for accuracy in ACCURACIES}

    def note(metrics: Any, _: Path) -> None:
        for accuracy in ACCURACIES:
            if 100 * metrics.test_accuracy >= accuracy and reached[f"to {accuracy} %, s"] is None:
                reached[f"to {accuracy} %, s"] = time.perf_counter() - began

    result = train(config, setting.folder / name, on_epoch=note)
    yield {
        "an epoch, s (median)": statistics.median(metrics.seconds for metrics in result.epochs),
        "tracing and compiling, s": sum(compiling),
        **reached,
        "to the end, s": time.perf_counter() - began,
        "test accuracy, %": 100 * result.epochs[-1].test_accuracy,
    }


def interrupted(setting: Setting) -> Iterator[Row]:
    from lstm_mnist_jax import train

    def stop(metrics: Any, _: Path) -> None:
        if metrics.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    config = _resumable(setting)
    train(config, setting.folder / "whole")
    result = train(config, setting.folder / "stopped", on_epoch=stop)
    if result.stopped_by != signal.SIGTERM:
        raise Failed("the run ended before SIGTERM stopped it")
    yield from ()


def resumed(setting: Setting) -> Iterator[Row]:
    import jax
    import numpy as np

    from lstm_mnist_jax import load_run, train

    config = _resumable(setting)
    stopped = load_run(setting.folder / "stopped", "last").step
    train(config, setting.folder / "stopped", resume=True)
    whole, other = (load_run(setting.folder / name, "last") for name in ("whole", "stopped"))
    one, two = (b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((run.params, run.opt_state)))
                for run in (whole, other))  # fmt: skip
    differ = int((np.frombuffer(one, np.uint8) != np.frombuffer(two, np.uint8)).sum())
    yield {"stopped at step": stopped, "steps": other.step, "bytes": len(one), "bytes that differ": differ}
    if differ or whole.step != other.step:
        raise Failed("the resumed run is not that without interruption, bit for bit")


def _resumable(setting: Setting) -> Config:
    """Its programs are kept, as `lstm-mnist train` does: on a GPU, one that is compiled again may be another."""
    import jax

    jax.config.update("jax_enable_compilation_cache", True)
    folder = jax.config.values["jax_compilation_cache_dir"] or str(setting.folder / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return setting.config("smoke") if setting.tiny else replace(setting.config("smoke"), epochs=6)


def steps(setting: Setting) -> Iterator[Row]:
    if setting.platform != "gpu":
        raise Unavailable("CUDA graphs are for NVIDIA GPUs")
    yield _trained([setting.config("tutorial")], 100)


def loops(backend: str, setting: Setting) -> Iterator[Row]:
    if setting.platform == "cpu" and backend == "pallas":
        raise Unavailable("the Pallas kernels are for GPUs and TPUs")
    import jax
    import numpy as np

    from benchmarks.libraries.in_jax import layer_job
    from lstm_mnist_jax.rnn import lstm, recurrence

    if backend not in recurrence.BACKENDS:
        raise Unavailable(f"this version has no backend {backend!r}")
    jax.config.update("jax_default_matmul_precision", "highest")
    for work in setting.layers(*[layer for layer in LAYERS if layer.backward]):
        inputs, *arrays = work.arrays()
        zeros = np.zeros((work.batch, work.hidden), np.float32)

        def forward(weights: Any, inputs: Any, zeros: Any = zeros) -> Any:
            kernel, recurrent_kernel, bias = weights
            options: Any = {"return_cell_states": False, "backend": backend}
            states = lstm(inputs, kernel, recurrent_kernel, bias, (zeros, zeros), **options)
            return states.h, states.last

        job = layer_job(work, forward, arrays, inputs)
        row = _sizes(work) | {"ms": _ms(job.run), "compile, s": job.compile_seconds, "check": [*job.check()]}
        others = [other for other in setting.done.get("loops-xla", []) if _sizes(work).items() <= other.items()]
        if others and (why := differs(others[0]["check"], row["check"])):
            raise Failed(f"T={work.time} H={work.hidden}: differs from XLA's loops: {why}")
        if backend != "xla":
            row["compared"] = "equal to XLA's loops" if others else "no: loops-xla has not run"
        yield row


def _sizes(work: Layer) -> Row:
    return {name: value for name, value in asdict(work).items() if value is not False}


def _ms(run: Callable[[], Any]) -> float:
    """The median time of a call in milliseconds, over half a second of calls and at least three."""
    run()
    times, end = list[float](), time.perf_counter() + 0.5
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def _compared(
    setting: Setting, works: list[Any] | Callable[[Worker], list[Any]], repeats: int | None = None
) -> Iterator[tuple[Any, Row]]:
    """The milliseconds of each library for each work. A TPU belongs to one process: there, one library at a time.

    `works` may be a function that asks this package's process for them.
    """
    names = ("ours",) if setting.tiny else ("ours", "flax", "torch", *(("cudnn",) if repeats is None else ()))
    for group in [(name,) for name in names] if setting.platform == "tpu" else [names]:
        with Workers(setting.platform) as workers:
            works = works(workers["ours", 0]) if callable(works) else works
            for work in works:
                problems: Row = {}

                def report(library: str, why: str, problems: Row = problems) -> None:
                    problems[f"{library}, ms"] = why

                found = compare(workers, work, group, 1 if setting.tiny else 3, report, repeats)
                yield work, problems | {f"{name}, ms": 1e3 * facts["median"] for name, facts in found.items()}


def epoch(setting: Setting) -> Iterator[Row]:
    size = SIZES["tiny" if setting.tiny else "quick"].epoch
    for work, row in _compared(setting, lambda ours: [replace(size, start=ours.call("start_of", size))], 1):
        yield {"steps": work.steps, "batch": work.batch_size} | row


def layers(setting: Setting) -> Iterator[Row]:
    more = (Layer(28, 64, 128, True, "gru"), Layer(28, 64, 128, True, ragged=True))
    for work, row in _compared(setting, setting.layers(*LAYERS, *more)):
        yield _sizes(work) | row


def _trained(configs: list[Config], steps: int) -> Row:
    """The time of a step of some runs at once, after as many steps to warm up."""
    import jax

    from lstm_mnist_jax import Execution, load
    from lstm_mnist_jax.training import make_program
    from lstm_mnist_jax.training.mesh import make_mesh

    mesh = make_mesh(Execution(), configs[0].batch_size, len(configs) if len(configs) > 1 else None)
    program = make_program(configs, load(**vars(configs[0].data)), mesh)
    began = time.perf_counter()
    program = program.compile()
    compiled = time.perf_counter()
    state = jax.block_until_ready(program.run_steps(program.init(), steps))
    warm = time.perf_counter()
    jax.block_until_ready(program.run_steps(state, steps))
    seconds = (time.perf_counter() - warm) / steps
    return {"a step, ms": 1e3 * seconds, "an epoch, s": seconds * program.steps_per_epoch,
            "compile, s": compiled - began, "needed, MiB": program.device_bytes() / 2**20}  # fmt: skip


def sweeps(setting: Setting) -> Iterator[Row]:
    config = setting.config("tutorial")
    torch = [row["torch, ms"] for row in setting.done.get("epoch", []) if isinstance(row.get("torch, ms"), float)]
    for members in (2,) if setting.tiny else (1, 64, 512, 2048):
        configs = [replace(config, seed=seed) for seed in range(members)]
        row = {"runs at once": members} | _trained(configs, 2 if setting.tiny else 50)
        if torch:
            row["times the runs of PyTorch in the same time"] = torch[0] / 1e3 * members / row["an epoch, s"]
        yield row


def precision(setting: Setting) -> Iterator[Row]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    size = 64 if setting.tiny else 4096
    left, right = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    exact, arrays = left.astype(np.float64) @ right, (jnp.asarray(left), jnp.asarray(right))
    names: Any = ("high",) if setting.tiny else ("default", "high", "highest")
    for name in names:
        multiply = jax.jit(partial(jnp.matmul, precision=name))

        def run(multiply: Any = multiply) -> Any:
            return multiply(*arrays).block_until_ready()

        error, ms = np.linalg.norm(run() - exact) / np.linalg.norm(exact), _ms(run)
        row = {"precision": name, "relative error of a product": float(error), "TFLOP/s": 2e-9 * size**3 / ms}
        for preset in ("tutorial",) if setting.tiny else ("tutorial", "rows"):
            config = setting.config(preset)
            config = replace(config, model=replace(config.model, precision=name))
            row[f"{preset}: a step, ms"] = _trained([config], 2 if setting.tiny else 100)["a step, ms"]
        yield row


LAYER, STEP = "An LSTM layer, forward+backward, in", "A step of the tutorial on a GPU,"
GRAPHS = {
    "no-graphs": (f"{STEP} without CUDA graphs", "--xla_gpu_enable_command_buffer="),
    "usual-graphs": (f"{STEP} with CUDA graphs as XLA has them", "--xla_gpu_command_buffer_unroll_loops=false"),
}
PARTS = {
    "tutorial": Part("Training: tutorial", 60, (partial(preset, "tutorial"),)),
    "rows-fast": Part("Training: rows-fast", 60, (partial(preset, "rows-fast"),)),
    "resume": Part("Resumed after SIGTERM, compared bit for bit", 60, (interrupted, resumed)),
    "loops-xla": Part(f"{LAYER} XLA's loops", 40, (partial(loops, "xla"),)),
    "loops-pallas": Part(f"{LAYER} Pallas kernels", 40, (partial(loops, "pallas"),)),
    "epoch": Part("An epoch of the tutorial, beside other libraries", 60, (epoch,), uses_jax=False),
    "sweeps": Part("Runs of the tutorial at once", 90, (sweeps,)),
    **{name: Part(title, 40, (steps,), flags=flags) for name, (title, flags) in GRAPHS.items()},
    "precision": Part("Precision of matrix products", 60, (precision,)),
    "layers": Part("Single layers, beside other libraries", 150, (layers,), uses_jax=False),
    "tests": Part("The quick tier of the tests", 240, (tests,), uses_jax=False),
}
"""By name, in the order in which they run."""
