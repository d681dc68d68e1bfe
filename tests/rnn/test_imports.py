"""What the recurrent layers need to be imported."""

import subprocess
import sys

PROGRAM = """
import sys
import flax.nnx, jax, numpy  # and what they import themselves

class Refuse:
    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        own = {"jax", "jaxlib", "scipy", "flax", "numpy"}  # JAX imports SciPy when it first needs it
        if top not in {"lstm_mnist_jax", *own, *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"{name} is refused")

assert "jaxtyping" not in sys.modules
sys.meta_path.insert(0, Refuse)
from lstm_mnist_jax.rnn import GRU, LSTM

outputs, carries = LSTM(3, (4, 5), rngs=flax.nnx.Rngs(0))(jax.numpy.ones((2, 7, 3)))
assert outputs.shape == (2, 7, 5), outputs.shape
parts = {name.split(".")[1] for name in sys.modules if name.startswith("lstm_mnist_jax.")}
assert parts <= {"rnn", "errors", "version"}, parts
"""


def test_the_layers_need_jax_flax_and_numpy_alone():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
