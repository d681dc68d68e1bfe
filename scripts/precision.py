"""What it does to a network when the operands of its matrix products are rounded, estimated on a CPU.

    python scripts/precision.py RUN_DIR ...            # logits of trained runs on their test images
    python scripts/precision.py --train smoke --seeds 8    # test accuracies of runs that were trained so

GPUs round float32 operands to TF32 by default, TPUs to bfloat16; sums are float32. Here every matrix product of a
program, forward and backward, rounds its operands to nearest before it multiplies. The loops over time are those of
XLA, as on accelerators.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["LSTM_MNIST_JAX_NATIVE"] = "0"  # whose products XLA does not see

import jax
import numpy as np
from jax.interpreters import mlir
from jaxlib.mlir.dialects import stablehlo

from lstm_mnist_jax import PRESETS, load_run, model, sweep
from lstm_mnist_jax.inference import load_data
from lstm_mnist_jax.sweeps import Space

MANTISSA_BITS = {"float32": 23, "TF32": 10, "bfloat16": 7, "3 x bfloat16": 7}
"""Bits of the operands, without the leading one. Three products of bfloat16 are what TPUs do for "high"."""

rounding = "float32"


def round_operands_to(name: str) -> None:
    """All programs that are compiled from now on round the operands of matrix products."""
    global rounding
    rounding = name
    jax.clear_caches()
    mlir.register_lowering(jax.lax.dot_general_p, _rounded_product, platform="cpu")


def _rounded_product(ctx: Any, left: Any, right: Any, *, dimension_numbers: Any, **_: Any) -> list[Any]:
    """The lowering of a matrix product."""
    (left_contracted, right_contracted), (left_batch, right_batch) = dimension_numbers
    numbers = stablehlo.DotDimensionNumbers.get(
        lhs_batching_dimensions=list(left_batch),
        rhs_batching_dimensions=list(right_batch),
        lhs_contracting_dimensions=list(left_contracted),
        rhs_contracting_dimensions=list(right_contracted),
    )
    type_ = mlir.aval_to_ir_type(ctx.module_context, ctx.avals_out[0])

    def rounded(operand: Any) -> Any:
        return stablehlo.reduce_precision(operand, 8, MANTISSA_BITS[rounding])

    def product(left: Any, right: Any) -> Any:
        return stablehlo.dot_general(type_, left, right, numbers)

    result = product(rounded(left), rounded(right))
    if rounding == "3 x bfloat16":
        rest_left, rest_right = (rounded(stablehlo.subtract(x, rounded(x))) for x in (left, right))
        smaller = stablehlo.add(product(rounded(left), rest_right), product(rest_left, rounded(right)))
        result = stablehlo.add(smaller, result)
    return [result]


def logits_of(run_dir: Path) -> None:
    """Prints by how much the logits of a run's test images change."""
    run = load_run(run_dir)
    test = load_data(run.folder).test
    found: dict[str, np.ndarray] = {}
    for name in MANTISSA_BITS:
        round_operands_to(name)
        apply = jax.jit(model.apply, static_argnames="config")
        parts = [test.images[start : start + 1000] for start in range(0, len(test), 1000)]
        found[name] = np.concatenate([apply(run.params, part, run.folder.config.model) for part in parts])
    reference = found["float32"]
    spread = np.sort(reference)[:, -1] - np.sort(reference)[:, -2]
    print(f"{run_dir}: {len(test):,} test images; the highest logit is {np.median(spread):.1f} above the next (median)")
    for name, logits in found.items():
        difference = np.abs(logits - reference)
        changed = int((logits.argmax(1) != reference.argmax(1)).sum())
        wrong = int((logits.argmax(1) != test.labels).sum())
        print(
            f"  {name:13} largest difference {difference.max():.1e}, median {np.median(difference):.1e}; "
            f"{changed} predictions change; {wrong} errors"
        )


def train(preset: str, seeds: int) -> None:
    """Prints the test accuracies of runs that are trained with rounded operands, and evaluated so."""
    for name in MANTISSA_BITS:
        round_operands_to(name)
        with tempfile.TemporaryDirectory() as folder:
            result = sweep(PRESETS[preset], Space(seeds=seeds), Path(folder) / "sweep")
        accuracies = 100 * np.array([member.history[-1].test_accuracy for member in result.members])
        spread = f", sd {accuracies.std(ddof=1):.2f}" if seeds > 1 else ""
        print(f"{preset}, {name:13} test accuracy {accuracies.mean():.2f} %{spread}, n = {seeds}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="*", type=Path, metavar="RUN_DIR", help="a trained run")
    parser.add_argument("--train", choices=PRESETS, help="train this preset instead")
    parser.add_argument("--seeds", type=int, default=1, help="with --train, the number of seeds")
    options = parser.parse_args()
    if jax.default_backend() != "cpu":
        parser.error("this estimate is for a CPU, whose own products are float32: set JAX_PLATFORMS=cpu")
    if not options.run_dirs and options.train is None:
        parser.error("give a RUN_DIR, or --train PRESET")
    for run_dir in options.run_dirs:
        logits_of(run_dir)
    if options.train is not None:
        train(options.train, options.seeds)


if __name__ == "__main__":
    main()
