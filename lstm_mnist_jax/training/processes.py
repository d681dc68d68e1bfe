"""Distributed training: processes join, compare their settings, and notice when one of them has failed."""

import contextlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import jax
import jaxlib
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from lstm_mnist_jax import __version__
from lstm_mnist_jax.config import Config, Execution, Processes
from lstm_mnist_jax.data.sources import absolute_source
from lstm_mnist_jax.errors import ConfigError, RunError, UserError
from lstm_mnist_jax.progress import say
from lstm_mnist_jax.training.mesh import make_mesh
from lstm_mnist_jax.training.rendezvous import bind_address, refuse_difference, rendezvous

HEARTBEAT_SECONDS = 30
"""A process that sends nothing for so long counts as failed."""

VISIBLE_SECONDS = 60.0
"""How long a shared file system may take to show a new file."""

LEAVE_SECONDS = 2.0
"""How long a failed process stays after its message, so that the others can print theirs."""

XLA_FAILURE = re.compile(
    r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|UNAVAILABLE): "
    r"|[A-Z_]+: .*(Gloo [\w -]+ failed|NCCL|CoordinationService)",
    re.DOTALL,
)
"""How the messages of XLA's errors begin where another process failed: a status code, then what failed. Of the codes,
the first four occur in communication alone."""

ORBAX_FAILURE = re.compile("Timeout waiting at barrier .*CoordinationService", re.DOTALL)
"""How orbax words such an error of XLA, as a TimeoutError."""

MAX_REASON = 160
"""Characters of such an error that are printed."""


@contextlib.contextmanager
def distributed_session(
    kind: str,
    config: Config,
    run_dir: Path | str,
    resume: bool,
    execution: Execution,
    together: Processes,
    console: Console | None,
) -> Iterator[tuple[Config, Path, Mesh, Console]]:
    """While entered, the processes have joined and agree on what is trained and where; they leave together.

    Args:
      kind: "one" for a run, whose devices share its batches; or the space of a sweep. The same in all processes.
      config, run_dir, resume, execution, together, console: see `train`.

    Yields:
      The config with the absolute path of the data, the run folder of process 0, the devices, and the console, which
      prints in process 0 only.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"The config is {config!r}, expected a Config, such as PRESETS['smoke'].")
    if not isinstance(resume, bool):
        raise ConfigError(f"resume is {resume!r}, expected True or False: the folder to resume is run_dir.")
    run_dir = Path(run_dir).expanduser()
    config = replace(config, data=replace(config.data, source=absolute_source(config.data.source)))
    facts = {"kind": kind, "config": config, "execution": execution, "resume": resume}
    join(together, facts)
    mesh = make_mesh(execution, config.batch_size if kind == "one" else None)
    with explain_process_failures():
        compare(facts)
        first_dir = Path(gather_text(str(run_dir))[0])
        if console is not None and first_dir != run_dir:
            say(console, f"the run folder is {first_dir}, as process 0 has it")
        yield config, first_dir, mesh, console if console is not None and is_first() else Console(quiet=True)
        wait_for_all()  # until everything is written


def join(processes: Processes, facts: Mapping[str, Any]) -> None:
    """Joins the other processes of this run, if there are any. Comes before all other use of JAX.

    Args:
      processes: how many there are, and which of them this is.
      facts: what must be the same in all of them, by name: dataclasses and plain values.

    Raises:
      ConfigError: their settings differ, or they have not all joined in time.
    """
    if are_joined() or processes.num_processes == 1:
        return
    patience = max(1, int(processes.join_timeout))
    options: Any = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "initialization_timeout": patience}
    if processes.coordinator is not None:
        rendezvous(processes, _flat(facts))
        options |= {
            "coordinator_address": processes.coordinator,
            "num_processes": processes.num_processes,
            "process_id": processes.process_id,
            "cluster_detection_method": "deactivate",
            "coordinator_bind_address": bind_address(processes),  # JAX's default is every address of the machine
        }
    elif not environment_names_others() and importlib.util.find_spec("libtpu") is None:
        return
    # JAX's handler of SIGTERM would replace ours, which saves before a run ends.
    before = jax.config.values["jax_enable_preemption_service"]
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        if processes.coordinator is not None:
            raise
        if "coordinator_address should be defined" in str(error) and not environment_names_others():
            return  # the library for TPUs is there, but no TPU
        raise ConfigError(
            f"JAX could not join the other processes that the environment names: {error} Name them with "
            "--coordinator, --num-processes and --process-id, or train alone with --num-processes 1."
        ) from error
    finally:
        jax.config.update("jax_enable_preemption_service", before)


def compare(facts: Mapping[str, Any]) -> None:
    """Raises ConfigError where facts, as for `join`, or versions differ. All processes must call this."""
    own = _flat({"version": __version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__, **facts})
    own["matmul precision"] = str(jax.config.values["jax_default_matmul_precision"])
    first, *others = map(json.loads, gather_text(json.dumps(own)))
    for number, other in enumerate(others, start=1):
        refuse_difference(first, other, number)


def environment_names_others() -> bool:
    """Whether SLURM, Open MPI or Kubernetes started other processes too. (JAX itself finds those of TPUs.)

    Raises:
      ConfigError: a version of MPI did whose environment JAX cannot read.
    """
    if os.environ.get("SLURM_STEP_NODELIST"):
        return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1) > 1
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        if not os.environ.get("OMPI_MCA_orte_hnp_uri"):  # noqa: SIM112
            raise ConfigError(
                "Open MPI started several processes, but JAX finds their coordinator with version 4 alone. Give each "
                "--coordinator HOST:PORT --num-processes $OMPI_COMM_WORLD_SIZE --process-id $OMPI_COMM_WORLD_RANK, "
                "or --num-processes 1 to train alone."
            )
        return True
    return "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dataclasses and dictionaries as one dictionary of dotted names to values as text."""
    found: dict[str, str] = {}
    for name, value in values.items():
        inner = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        found |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {f"{prefix}{name}": str(inner)}
    return found


def are_joined() -> bool:
    """Whether this process has joined others."""
    return bool(jax.distributed.is_initialized())


def is_first() -> bool:
    """Whether this is process 0, which writes the folder and the metrics, and prints."""
    return bool(jax.process_index() == 0)


def gather(values: np.ndarray) -> np.ndarray:
    """The values of all processes, [processes, ...]. All must call this, with arrays of one shape."""
    if jax.process_count() == 1:
        return values[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values))


def gather_text(text: str) -> list[str]:
    """The texts of all processes. All must call this."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = gather(np.array(data.size))
    texts = gather(np.pad(data, (0, int(lengths.max()) - data.size)))
    return [bytes(row[:length]).decode() for row, length in zip(texts, lengths, strict=True)]


def wait_for_all() -> None:
    """Returns when all processes have called it."""
    gather(np.array(0))


def wait_for_file(path: Path) -> None:
    """Waits until all processes see a file of process 0; RunError after a minute. All must call this."""
    wait_for_all()
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    unseen = np.flatnonzero(~gather(np.array(path.exists())))
    if unseen.size:
        raise RunError(
            f"Process {unseen[0]} does not see {path.absolute()}. The run folder must be in a file system that all "
            "processes share."
        )


@contextlib.contextmanager
def explain_process_failures() -> Iterator[None]:
    """While entered, errors that follow from the failure of another process become RunError."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError, TimeoutError) as error:
        if not is_process_failure(error):
            raise
        raise process_failure(error) from error


def is_process_failure(error: BaseException) -> bool:
    """Whether an error of XLA or of orbax follows from the failure of another process."""
    if jax.process_count() == 1 or isinstance(error, UserError):
        return False
    message = str(error).strip()
    if isinstance(error, TimeoutError):
        return ORBAX_FAILURE.match(message) is not None
    # Where results are fetched, XLA's errors come as ValueError.
    return isinstance(error, jax.errors.JaxRuntimeError | ValueError) and XLA_FAILURE.match(message) is not None


def process_failure(error: BaseException) -> RunError:
    """The error to raise in place of one that follows from the failure of another process."""
    reason = str(error).strip().partition("\n")[0]
    if len(reason) > MAX_REASON:
        reason = reason[:MAX_REASON] + " ..."
    return RunError(
        f"Another of the {jax.process_count()} processes ended, or cannot be reached any more ({reason}). Its own "
        "messages say why. Checkpoints are kept; start all processes again with --resume."
    )


def leave(code: int) -> NoReturn:
    """Ends this process after a failure, without JAX's exit handlers: they would wait for the other processes.

    JAX aborts the others once process 0 has gone, so it stays long enough for them to print the same error.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(LEAVE_SECONDS)
    os._exit(code)
