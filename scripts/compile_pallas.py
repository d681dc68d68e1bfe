"""Compiles the Pallas kernels of the LSTM for a TPU v5e or an H100 that this machine does not have.

    python scripts/compile_pallas.py tpu      with libtpu
    python scripts/compile_pallas.py cuda     with jax-cuda13-plugin and jax-cuda13-pjrt

Prints one line of JSON for each dtype and size, of the gradient of `lstm` with resets: for each of the two kernels the
bytes of VMEM on a TPU or of shared memory a block on a GPU, and the seconds of compilation.
"""

import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from compile_for import TARGETS, check_compilers, prepare

TIME, FEATURES = 28, 28


@dataclass(frozen=True)
class Arguments:
    """Compile the Pallas kernels of the LSTM for a TPU v5e or an H100 without having one. Nothing is run."""

    platform: tyro.conf.Positional[Literal["tpu", "cuda"]]
    """A TPU v5e, or an H100."""
    hidden: tuple[int, ...] = (32, 64, 128, 256)
    """Hidden features."""
    batch: int = 64
    """Sequences."""


def main() -> None:
    """Compiles, and prints what the kernels take."""
    arguments = tyro.cli(Arguments, prog="compile_pallas.py")
    target = TARGETS["v5e-1" if arguments.platform == "tpu" else "h100-1"]
    check_compilers([target])
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), module="jit_loss")
        import jax

        sharding = jax.sharding.SingleDeviceSharding(target.devices()[0])
        for dtype in ("float32", "bfloat16"):
            for hidden in arguments.hidden:
                start = time.perf_counter()
                text = compiled_gradient(arguments.platform, dtype, hidden, arguments.batch, sharding)
                seconds = round(time.perf_counter() - start, 1)
                found = bytes_on_tpu(text) if arguments.platform == "tpu" else bytes_on_gpu(Path(folder))
                line = {"dtype": dtype, "hidden": hidden, "batch": arguments.batch, "bytes": found, "s": seconds}
                print(json.dumps(line), flush=True)


def compiled_gradient(platform: str, dtype: str, hidden: int, batch: int, sharding: Any) -> str:
    """The text of the compiled gradient."""
    import jax
    import jax.numpy as jnp

    from lstm_mnist_jax.rnn import lstm

    def loss(*arrays: Any) -> Any:
        *arguments, resets = arrays
        states = lstm(*arguments, resets=resets, backend="pallas")
        return states.h.astype(jnp.float32).sum() + states.last.c.sum()

    def array(*shape: int, dtype: str = dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    weights = array(FEATURES, 4 * hidden), array(hidden, 4 * hidden), array(4 * hidden)
    carry = (array(batch, hidden, dtype="float32"),) * 2
    arguments = array(TIME, batch, FEATURES), *weights, carry, array(TIME, batch, dtype="bool")
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4))).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).compile().as_text() or ""


def bytes_on_tpu(text: str) -> dict[str, int]:
    """Bytes of VMEM of each kernel, from the compiled program."""
    found = {}
    for line in re.findall(r"%lstm_.*custom-call\(.*", text):
        (name,) = re.findall("^%(lstm_[a-z]+)", line)
        (size,) = re.findall(r'used_scoped_memory_configs":\[{[^]]*"size":"(\d+)"', line)
        found[name] = int(size)
    return found


def bytes_on_gpu(folder: Path) -> dict[str, int]:
    """Bytes of shared memory a block of each kernel, from the texts that XLA has written; the newest are the last."""
    newest = max(folder.glob("*thunk_sequence.txt"), key=lambda path: path.stat().st_mtime_ns)
    found = re.findall(r"(lstm_[a-z]+) grid:.*shared_memory: (\d+)", newest.read_text("utf-8"))
    return {name: int(size) for name, size in found}


if __name__ == "__main__":
    main()
