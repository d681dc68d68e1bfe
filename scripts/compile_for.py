"""Compiles training and evaluation for GPUs and TPUs that this machine does not have: `python scripts/compile_for.py`.

XLA's own compilers for the devices run here, on the CPU (extra `aot`). What compiles has not run: the table says what
the compiled programs take and do, not how fast they are.
"""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from launches import Hlo, Launches, UnknownProgramError, launches_a_step

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "0",
    "LSTM_MNIST_JAX_NATIVE": "0",  # the compiled kernel is for CPUs
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # libtpu asks neither for a TPU of this machine nor for Google Cloud's description of it.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_LOG_DIR": "disabled",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""Environment variables that JAX and XLA read when they are imported."""

MIB, GIB = 1 << 20, 1 << 30

GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  registers_per_core_limit: 65536  registers_per_block_limit: 65536  shared_memory_per_block: 49152
  {numbers}
  runtime_version: "13.0.0"  driver_version: "13.0.0"  compile_time_toolkit_version: "13.0.0"  dnn_version: "9.12.0"
}}
platform_name: "CUDA"  dnn_version_info {{ major: 9 minor: 12 }}  device_description_str: "{name}"
"""
"""XLA's description of a GPU (GpuTargetConfigProto), with the libraries that jax[cuda13] brings."""

H100 = """
  cuda_compute_capability { major: 9 }  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  device_memory_size: 84929347584  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
"""
A100 = """
  cuda_compute_capability { major: 8 }  core_count: 108  fpus_per_core: 64  clock_rate_ghz: 1.41
  device_memory_size: 85100068864  memory_bandwidth: 2039040000000  l2_cache_size: 41943040
  shared_memory_per_core: 167936  shared_memory_per_block_optin: 166912
"""


@dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      platform: "cuda" or "tpu".
      count: the number of devices.
      device_bytes: the memory of a device that a program may take: of a GPU the 75 % that JAX reserves by default; of a
        v5e the 15.75 GiB that XLA leaves to programs.
      topology: the arguments of `jax.experimental.topologies.get_topology_desc`.
    """

    platform: str
    count: int
    device_bytes: float
    topology: dict[str, Any]

    def devices(self) -> Any:
        """The devices, which are described and not there."""
        from jax.experimental import topologies

        return topologies.get_topology_desc(platform=self.platform, **self.topology).devices


def gpus(count: int, name: str, numbers: str) -> Target:
    memory = float(numbers.split("device_memory_size: ")[1].split()[0])
    config = GPU.format(numbers=numbers, name=name)
    # Slices, hosts, GPUs of a host.
    topology = {"topology_name": "", "topology": f"1x1x{count}", "target_config": config}
    return Target("cuda", count, 0.75 * memory, topology)


def tpus(count: int, columns: int, rows: int) -> Target:
    topology = {"topology_name": f"v5e:{columns}x{rows}", "chips_per_host_bounds": (columns, rows, 1)}
    return Target("tpu", count, 15.75 * GIB, topology)


TARGETS = {
    "v5e-1": tpus(1, 1, 1),
    "v5e-8": tpus(8, 2, 4),
    "h100-1": gpus(1, "NVIDIA H100 80GB HBM3", H100),
    "h100-8": gpus(8, "NVIDIA H100 80GB HBM3", H100),
    "a100-1": gpus(1, "NVIDIA A100-SXM4-80GB", A100),
}
COMPILERS = {"tpu": ("libtpu", "libtpu"), "cuda": ("jax_plugins.xla_cuda13", "jax-cuda13-plugin and jax-cuda13-pjrt")}
"""The module that holds a platform's compiler, and what to call it."""

BEGIN, END = "<!-- compile_for -->\n", "<!-- end of compile_for -->\n"


@dataclass(frozen=True)
class Row:
    """A preset, compiled for a target.

    Attributes:
      preset, target, members: what was compiled: so many runs at once.
      streams: whether the training images stay with the host.
      seconds: to trace and compile training and evaluation.
      megabytes: MiB of a device: the data, the states and the largest program.
      limit: GiB of a device that a program may take.
      all_reduces: of a step.
      launches, kernels: of a step, see `launches.Launches`; None for TPUs, where the host launches the program once.
      unknown_loops: the loops in a step whose trip count is not known.
      donated: whether every array of the state takes the memory of the one before.
      error: what stopped it, or "".
    """

    preset: str
    target: str
    members: int
    streams: bool
    seconds: float = 0.0
    megabytes: float = 0.0
    limit: float = 0.0
    all_reduces: int = 0
    launches: int | None = None
    kernels: int | None = None
    unknown_loops: int = 0
    donated: bool = False
    error: str = ""

    @property
    def fits(self) -> bool:
        return not self.error and self.megabytes * MIB <= self.limit * GIB


@dataclass(frozen=True)
class Arguments:
    """Compile training and evaluation for GPUs and TPUs without having one. Nothing is run.

    Needs XLA's compilers for them: pip install -e '.[aot]' (no driver, no device). The exit code is 1 where a program
    does not compile or does not fit into the memory of a device.
    """

    presets: tyro.conf.Positional[tuple[str, ...]] = ("smoke", "tutorial")
    """The presets to compile."""
    targets: tuple[str, ...] = tuple(TARGETS)
    """The devices: v5e-1 and v5e-8 are 1 and 8 chips of a TPU v5e; h100-1, h100-8 and a100-1 are GPUs. Eight devices
    share each batch."""
    members: int = 1
    """The number of runs that are trained at once, as in a sweep."""
    stream: bool = False
    """Keep the training images with the host, as for data larger than a device."""
    output: Path | None = None
    """A file for all numbers, as JSON."""
    into: Path | None = None
    """A Markdown file with a table between the marks `<!-- compile_for -->` and `<!-- end of compile_for -->`. The rows
    of the same presets and targets are replaced; the others stay."""


def main() -> None:
    """Compiles, and prints and writes the table."""
    arguments = tyro.cli(Arguments, prog="compile_for.py")
    if not arguments.targets:
        refuse(f"--targets names no target; expected some of {', '.join(TARGETS)}.")
    for target in arguments.targets:
        if target not in TARGETS:
            refuse(f"unknown target {target!r}; expected one of {', '.join(TARGETS)}.")
    if arguments.members < 1:
        refuse(f"members is {arguments.members}, expected 1 or more.")
    if arguments.stream and arguments.members > 1:
        refuse("several members cannot stream: each reads the images in another order. Leave one of the two out.")
    if arguments.output is not None and not arguments.output.parent.is_dir():
        refuse(f"the folder of --output {arguments.output} does not exist.")
    if arguments.into is not None:
        parts_of(arguments.into)
    check_compilers(TARGETS[target] for target in arguments.targets)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), module="run_steps")
        from lstm_mnist_jax import PRESETS

        for preset in arguments.presets:
            if preset not in PRESETS:
                refuse(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}.")
        rows = []
        for preset in dict.fromkeys(arguments.presets):
            for target in dict.fromkeys(arguments.targets):
                rows.append(compile_for(preset, target, arguments.members, arguments.stream, Path(folder)))
                last = rows[-1]
                outcome = last.error or f"{last.seconds:.1f} s" + ("" if last.fits else ", does not fit")
                print(f"{preset} for {target}: {outcome}", file=sys.stderr, flush=True)
                # Now, because a compiler that fails may end the process.
                if arguments.output is not None:
                    write_json(arguments.output, rows)
                if arguments.into is not None:
                    write_into(arguments.into, rows)
    print(to_markdown(rows), end="")
    sys.exit(0 if all(row.fits for row in rows) else 1)


def refuse(reason: str) -> None:
    """Ends the program: the command line, or what is installed, is wrong."""
    print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr)
    sys.exit(2)


def check_compilers(targets: Iterable[Target]) -> None:
    """Ends the program where a compiler is not installed."""
    for platform in sorted({target.platform for target in targets}):
        module, name = COMPILERS[platform]
        if not is_installed(module):
            refuse(f"the compiler for {platform} is missing ({name}). Install it with: pip install -e '.[aot]'")


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


def prepare(folder: Path, module: str) -> None:
    """Sets the environment that JAX and XLA read when they are imported.

    XLA's texts of the modules whose name has `module` in it are written to the folder.
    """
    if "jax" in sys.modules:
        refuse("JAX was imported already, with other settings. Run this file as a program of its own.")
    flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re={module}"
    os.environ.update(ENVIRONMENT, XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip())


def compile_for(preset: str, target_name: str, members: int, streams: bool, folder: Path) -> Row:
    """Compiles a preset for a target.

    Args:
      preset, target_name, members, streams: see `Row`.
      folder: where XLA writes its texts; it is emptied.
    """
    from lstm_mnist_jax import PRESETS
    from lstm_mnist_jax.config import Execution
    from lstm_mnist_jax.training import make_program
    from lstm_mnist_jax.training.mesh import make_mesh

    target, config = TARGETS[target_name], PRESETS[preset]
    row = Row(preset, target_name, members, streams, limit=target.device_bytes / GIB)
    shutil.rmtree(folder)
    folder.mkdir()
    began = time.perf_counter()
    try:
        configs = [replace(config, seed=config.seed + number) for number in range(members)]
        together = None if members == 1 else members
        mesh = make_mesh(Execution(devices=target.count), config.batch_size, together, target.devices())
        dataset = empty_dataset(config.data)
        # Half of the images do not fit, so they stream.
        limit = dataset.train.images.nbytes / 2 / GIB if streams else Execution.device_data_limit
        program = make_program(configs, dataset, mesh, limit).compile()
        memory = program.device_bytes()  # once the evaluation is compiled, too
        seconds = time.perf_counter() - began
        hlo = Hlo(program.steps_text())
        found = launches_of(folder, hlo) if target.platform == "cuda" else None
        import jax

        return replace(
            row,
            seconds=seconds,
            megabytes=memory / MIB,
            all_reduces=hlo.all_reduces_a_step(),
            launches=None if found is None else found.launches,
            kernels=None if found is None else found.kernels,
            unknown_loops=len(hlo.loops_of_unknown_length()),
            donated=hlo.aliased == len(jax.tree.leaves(program.abstract_state)),
        )
    except Exception as error:  # whatever stops one, the others are compiled
        reason, *_ = f"{type(error).__name__}: {error}".splitlines()
        return replace(row, seconds=time.perf_counter() - began, error=reason)


def empty_dataset(data: Any) -> Any:
    """Black images, as many as MNIST has: what is compiled depends on their number and size alone."""
    import numpy as np

    from lstm_mnist_jax.data import Dataset, Examples
    from lstm_mnist_jax.data.splits import usual_validation_examples

    def examples(count: int) -> Examples:
        return Examples(np.zeros((count, 28, 28), np.uint8), np.zeros(count, np.int32), 10)

    validation = data.validation_examples or usual_validation_examples(60_000, data.train_examples)
    train = data.train_examples or 60_000 - validation
    names = tuple(map(str, range(10)))
    return Dataset(examples(train), examples(validation), examples(10_000), names, "no data")


def launches_of(folder: Path, hlo: Hlo) -> Launches:
    """The launches of a step, from the texts that XLA has written."""
    # XLA's passes over thunks write nothing where they change nothing.
    sequences = [*folder.glob("*.thunk_sequence_after_thunk_passes.txt")] or [*folder.glob("*.thunk_sequence.txt")]
    metadata = [*folder.glob("*.thunk_metadata.txt")]
    if len(sequences) != 1 or len(metadata) != 1:
        counts = f"{len(sequences)} texts of thunks and {len(metadata)} of their metadata"
        raise UnknownProgramError(f"XLA wrote {counts}, expected one of each, as jaxlib 0.10 to 0.12 does.")
    return launches_a_step(sequences[0].read_text("utf-8"), metadata[0].read_text("utf-8"), hlo)


COLUMNS = (
    "preset", "compiles for", "seconds", "memory", "all-reduces a step", "launches a step", "kernels a step",
    "loops of unknown length", "state donated",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a row under `COLUMNS`."""
    members = f", {row.members} at once" if row.members > 1 else ""
    preset = row.preset + members + (", streamed" if row.streams else "")
    if row.error:
        return (preset, f"no: {row.target}", f"{row.seconds:.0f}", row.error.replace("|", "\\|"), *["-"] * 5)
    counts = ["-" if count is None else f"{count:,}" for count in (row.launches, row.kernels)]
    return (
        preset,
        row.target if row.fits else f"no: {row.target}",
        f"{row.seconds:.0f}",
        f"{row.megabytes:,.0f} MiB of {row.limit:.1f} GiB",
        str(row.all_reduces),
        *counts,
        str(row.unknown_loops),
        "yes" if row.donated else "no",
    )


def to_markdown(rows: list[Row], old: dict[tuple[str, str], str] | None = None) -> str:
    """The rows as a table; `old` are lines by preset and target, of which those of the same are replaced."""
    lines = dict(old or {})
    for row in rows:
        preset, _, *_ = line = cells(row)
        lines[preset, row.target] = _line(line)
    return _line(COLUMNS) + _line(("---",) * len(COLUMNS)) + "".join(lines.values())


def _line(texts: tuple[str, ...]) -> str:
    return f"| {' | '.join(texts)} |\n"


def write_json(path: Path, rows: list[Row]) -> None:
    """Writes the rows, and the versions that compiled them."""
    versions = {name: version_of(name) for name in ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")}
    found = {"versions": versions, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def parts_of(path: Path) -> tuple[str, str, str]:
    """A Markdown file before, between and after the marks."""
    if not path.is_file():
        refuse(f"the file of --into {path} does not exist.")
    before, begin, rest = path.read_text("utf-8").partition(BEGIN)
    table, end, after = rest.partition(END)
    if not begin or not end:
        refuse(f"{path} has no place for the table: a line {BEGIN.strip()} and one {END.strip()}.")
    return before, table, after


def write_into(path: Path, rows: list[Row]) -> None:
    """Writes the rows into the table between the marks of a Markdown file."""
    before, table, after = parts_of(path)
    old = {}
    for line in table.strip().splitlines()[2:]:
        preset, target, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        old[preset, target.removeprefix("no: ")] = f"{line}\n"
    path.write_text(f"{before}{BEGIN}\n{to_markdown(rows, old)}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
