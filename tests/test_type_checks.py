"""The suite's own check of types."""

import jaxtyping
import numpy as np
import pytest
import type_checks
from jaxtyping import Float


def outer(returns_row):
    @jaxtyping.jaxtyped(typechecker=type_checks.check)
    def inner(x: Float[np.ndarray, "rows columns"], n: int) -> Float[np.ndarray, " columns"]:
        return x[n] if returns_row else x

    return inner


def test_functions_within_a_function_are_checked_each_time_and_their_checks_compiled_once(monkeypatch):
    monkeypatch.setattr(type_checks, "_checked", {})
    x = np.ones((2, 3), np.float32)
    assert outer(True)(x, 1).shape == (3,)
    for _ in range(2):
        with pytest.raises(TypeError, match="checking parameter 'n'"):
            outer(True)(x, "1")
        with pytest.raises(TypeError, match="checking parameter 'x'"):
            outer(True)(x[0], 0)
        with pytest.raises(TypeError, match=r"the return value of .*inner"):
            outer(False)(x, 0)
    assert len(type_checks._checked) == 2  # of the arguments, and with the result
