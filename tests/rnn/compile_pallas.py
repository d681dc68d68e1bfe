"""Compiles `lstm` with `backend="pallas"` for a TPU v5e and an H100, and prints what the kernels take. Needs neither.

    python tests/rnn/compile_pallas.py tpu      with libtpu
    python tests/rnn/compile_pallas.py cuda     with jax-cuda13-plugin and jax-cuda13-pjrt

One line of JSON for each dtype and size, of the gradient with resets: the names of the kernels, bytes of VMEM of the
two on a TPU, of shared memory a block on a GPU, and seconds of compilation.
"""

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TPU = {
    "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_LOG_DIR": "disabled", "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost",
}  # fmt: skip
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584 cuda_compute_capability { major: 9 minor: 0 }
  driver_version: "13.0.0" runtime_version: "13.0.0"
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
TIME, FEATURES = 28, 28


def device_of(platform: str) -> Any:
    from jax.experimental import topologies

    if platform == "tpu":
        options: Any = {"topology_name": "v5e:1x1", "chips_per_host_bounds": (1, 1, 1)}
    else:
        options = {"topology_name": "h100", "topology": "1x1x1", "target_config": H100}
    return topologies.get_topology_desc(platform=platform, **options).devices[0]


def main(platform: str, sizes: list[int], batch: int, dump: Path) -> None:
    os.environ.update(TPU | {"XLA_FLAGS": f"--xla_dump_to={dump}", "LSTM_MNIST_JAX_NATIVE": "0"})
    import jax
    import jax.numpy as jnp

    from lstm_mnist_jax.rnn import lstm

    sharding = jax.sharding.SingleDeviceSharding(device_of(platform))

    def loss(*arrays: Any) -> Any:
        *arguments, resets = arrays
        states = lstm(*arguments, resets=resets, backend="pallas")
        return states.h.astype(jnp.float32).sum() + states.last.c.sum()

    for dtype in ("float32", "bfloat16"):
        for hidden in sizes:

            def array(*shape: int, dtype: str = dtype) -> Any:
                return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

            weights = array(FEATURES, 4 * hidden), array(hidden, 4 * hidden), array(4 * hidden)
            carry = (array(batch, hidden, dtype="float32"),) * 2
            resets = array(TIME, batch, dtype="bool")
            start = time.perf_counter()
            program = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4))).trace(
                array(TIME, batch, FEATURES), *weights, carry, resets
            )
            text = program.lower(lowering_platforms=(platform,)).compile().as_text()
            seconds = time.perf_counter() - start
            found: dict[str, int] = {}
            if platform == "tpu":
                for line in re.findall(r"%lstm_.*custom-call\(.*", text):
                    (name,) = re.findall("^%(lstm_[a-z]+)", line)
                    (size,) = re.findall(r'used_scoped_memory_configs":\[{[^]]*"size":"(\d+)"', line)
                    found[name] = int(size)
            else:
                newest = max(dump.glob("*thunk_sequence.txt"), key=lambda path: path.stat().st_mtime)
                for name, size in re.findall(r"(lstm_[a-z]+) grid:.*shared_memory: (\d+)", newest.read_text()):
                    found[name] = int(size)
            print(
                json.dumps({"dtype": dtype, "hidden": hidden, "batch": batch, "bytes": found, "s": round(seconds, 1)})
            )


if __name__ == "__main__":
    platform, *more = sys.argv[1:]
    sizes = [int(word) for word in (more or ["32,64,128,256"])[0].split(",")]
    with tempfile.TemporaryDirectory() as folder:
        main(platform, sizes, int(more[1]) if len(more) > 1 else 64, Path(folder))
