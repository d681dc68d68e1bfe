"""How a run or a sweep begins, in every process that takes part, and how it ends in all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from jax.sharding import Mesh
from rich.console import Console

from lstm_mnist_jax.config import Config, Execution, Processes
from lstm_mnist_jax.data.sources import absolute_source
from lstm_mnist_jax.progress import say
from lstm_mnist_jax.training import processes
from lstm_mnist_jax.training.mesh import make_mesh


@contextmanager
def begun(
    trainings: str,
    config: Config,
    run_dir: Path | str,
    resume: bool,
    execution: Execution,
    together: Processes,
    console: Console | None,
    batch_size: int | None,
) -> Iterator[tuple[Config, Path, Mesh]]:
    """While entered, the processes have joined and agree on what is trained, where; none leaves before all have ended.

    Args:
      trainings: what is trained, besides the config, in words that must be the same in all processes.
      config, run_dir, resume, execution, together, console: see `train`.
      batch_size: examples that the devices must share evenly; None where they need not.

    Yields:
      The config with the data's place spelt out, the folder that process 0 has, and the devices.
    """
    run_dir = Path(run_dir).expanduser()
    config = replace(config, data=replace(config.data, source=absolute_source(config.data.source)))
    facts = {"trainings": trainings, "config": config, "execution": execution, "resume": resume}
    processes.join(together, facts)
    mesh = make_mesh(execution, batch_size)
    with processes.explain_process_failures():
        processes.compare(facts)
        told = Path(processes.told_by_first(str(run_dir)))
        if console is not None and told != run_dir:
            say(console, f"the run folder is {told}, as process 0 has it")
        yield config, told, mesh
        processes.wait_for_all()  # none leaves before all is written
