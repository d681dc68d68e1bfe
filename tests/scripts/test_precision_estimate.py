"""scripts/precision.py: operands are rounded as NumPy rounds them, in every product, and logits are compared."""

import re
from pathlib import Path

import programs
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "precision.py"

ROUNDING = """
import jax, jax.numpy as jnp, numpy as np
import precision

def rounded(array, bits):
    # To the nearest, ties to even, of the numbers with so many bits after the leading one.
    unit = np.exp2(np.floor(np.log2(np.abs(array.astype(np.float64)))) - bits)
    return np.rint(array / unit) * unit

left, right = np.random.default_rng(0).standard_normal((2, 50), np.float32)
outer = lambda left, right: left[:, None] @ right[None]  # a sum of one term: it is exact
for name, bits in (("float32", 23), ("TF32", 10), ("bfloat16", 7)):
    precision.round_operands_to(name)
    expected = np.float32(np.outer(rounded(left, bits), rounded(right, bits)))
    np.testing.assert_array_equal(jax.jit(outer)(left, right), expected)
    gradient = jax.jit(jax.grad(lambda left: outer(left, right[:1]).sum()))(left)
    np.testing.assert_array_equal(gradient, np.full(50, rounded(right[:1], bits), np.float32))
precision.round_operands_to("3 x bfloat16")
found = np.asarray(jax.jit(outer)(left, right), np.float64)
error = np.abs(found / np.outer(left.astype(np.float64), right) - 1).max()
assert 1e-6 < error < 2.0**-14, error
"""


@pytest.mark.slow
def test_operands_are_rounded_as_by_numpy_and_logits_of_a_run_are_compared(tiny_run):
    done = programs.run(code=ROUNDING)
    assert done.returncode == 0, done.stderr
    done = programs.run([tiny_run], code=SCRIPT.read_text("utf-8"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{tiny_run}: 1,100 test images")
    largest = {line.split("largest")[0].strip(): float(re.search(r"difference ([\d.e+-]+),", line)[1])
               for line in lines[1:]}  # fmt: skip
    assert list(largest) == ["float32", "TF32", "bfloat16", "3 x bfloat16"]
    assert largest["float32"] == 0
    assert 0 < largest["3 x bfloat16"] < largest["TF32"] < largest["bfloat16"] < 1
