"""Inputs of imported networks: folded into the first layer, and tried where the accuracy is low."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from parameters import drawn
from safetensors.numpy import save_file
from stacks import apply

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.data import Examples, load
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.inference import load_run
from lstm_mnist_jax.interop import formats, torch
from lstm_mnist_jax.interop.inputs import Inputs, likely_causes

KINDS = [
    Inputs(0.1307, 0.3081), Inputs(scale=1.0), Inputs(1.0, -1.0), Inputs(0.5, 2.0, 127.5), Inputs(),
]  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(hidden_features=(4, 3), bidirectional=True),
        ModelConfig(cell="gru", hidden_features=(4,)),
        ModelConfig(hidden_features=(4,), activation="relu", recurrent_activation="hard_sigmoid_keras2"),
    ],
)
def test_folded_networks_compute_what_the_networks_computed_of_their_inputs(config, rng):
    params, pixels = drawn(config), rng.integers(0, 256, (4, 6, 5)).astype(np.uint8)
    small = jax.tree.map(lambda leaf: leaf / 8, params)  # so that pixels up to 255 do not saturate every gate
    for inputs in KINDS:
        theirs = ((pixels / inputs.scale - inputs.mean) / inputs.std).astype(np.float32)
        expected = apply(small, theirs, config)
        np.testing.assert_allclose(apply(inputs.fold(small), pixels, config), expected, atol=2e-5)
    with pytest.raises(WeightsError, match="not those of LSTM or GRU layers"):
        Inputs(0.5).fold(drawn(ModelConfig(cell="layer_norm_lstm", hidden_features=(4,))))


def test_impossible_inputs_are_refused():
    for options, message in [
        ({"std": 0.0}, "--input-std is 0, expected a number, and not 0"),
        ({"scale": float("nan")}, "--input-scale is nan, expected a number, and not 0"),
        ({"mean": float("inf")}, "--input-mean is inf, expected a number"),
    ]:
        with pytest.raises(WeightsError, match=message):
            Inputs(**options)
    params = drawn(ModelConfig(hidden_features=(4,)))
    with pytest.raises(WeightsError, match="the first layer's weights become infinite"):
        Inputs(std=1e-40).fold(params)


def unfolded(params, inputs):
    """The parameters of a network of these inputs that computes the same, in NumPy."""
    cell = params["rnn"]["layers"][0]["cell"]
    kernel = np.asarray(cell["dense_i"]["kernel"], np.float64) * inputs.std * inputs.scale / 255
    bias = cell["dense_h"]["bias"] + inputs.mean / inputs.std * kernel.sum(axis=0)
    cell = {"dense_i": {"kernel": kernel.astype("f4")}, "dense_h": cell["dense_h"] | {"bias": bias.astype("f4")}}
    return params | {"rnn": {"layers": params["rnn"]["layers"] | {0: {"cell": cell}}}}


def test_normalized_inputs_are_found_and_folded(command_line, tiny_run, tmp_path):
    """A network of PyTorch that was trained on normalized inputs: what is printed, and what the run then is."""
    run, inputs = load_run(tiny_run), Inputs(0.1307, 0.3081)
    params = unfolded(run.params, inputs)
    save_file(torch.to_state_dict(params), tmp_path / "model.safetensors")
    right = run.evaluate()["validation"].accuracy
    examples = load(**vars(run.folder.config.data)).validation
    predictions, _ = run.predict(examples.images)
    lines = likely_causes(params, run.folder.config.model, examples)
    assert lines[0].endswith("Tried on 200 validation images:")
    assert lines[1] == f"  normalized inputs: {right:.2%}, with --input-mean 0.1307 --input-std 0.3081"
    assert [line.partition(":")[0].strip() for line in lines[2:6]] == [
        "inputs from -1 to 1", "columns for rows", "inverted pixels", "pixels from 0 to 255",
    ]  # fmt: skip
    assert lines[3].endswith("with --task columns")
    # The tiny run is no good classifier itself: of ten classes, few are right.
    assert right < 0.6
    assert "order of the classes" in lines[-1]
    few = Examples(examples.images[predictions == examples.labels], examples.labels[predictions == examples.labels], 10)
    assert likely_causes(params, run.folder.config.model, few)[-1] == (
        "most likely normalized inputs: import again, with --input-mean 0.1307 --input-std 0.3081"
    )

    columns = replace(run.folder.config.model, task="columns")
    both = likely_causes(params, columns, examples, Inputs(0.3))
    assert [line.partition(", with ")[2] for line in both[1:5]] == [
        "--task columns --input-mean 0.1307 --input-std 0.3081", "--task columns --input-mean 0.5 --input-std 0.5",
        "--task columns, no --input options", "--task rows --input-mean 0.3",
    ]  # fmt: skip

    options = ["--validation-examples", "200", "--train-examples", "1000", *inputs.options().split()]
    path = tmp_path / "model.safetensors"
    done = command_line("import", "torch", path, "--run-dir", tmp_path / "run", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "trained on inputs of (pixel / 255 - 0.1307) / 0.3081: folded into" in done.stdout
    assert f"validation {right:.2%}" in done.stdout
    imported = load_run(tmp_path / "run")
    assert imported.folder.initial_weights.endswith("; trained on inputs of (pixel / 255 - 0.1307) / 0.3081")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), imported.params, run.params)


def test_the_state_of_adam_is_left_out_where_inputs_are_folded(tmp_path):
    from stacks import FIXTURES

    path = FIXTURES / "tf1" / "tutorial" / "model.ckpt"
    plain, folded = (formats.read("tf1", path, inputs=inputs) for inputs in (Inputs(), Inputs(0.5)))
    assert plain.adam is not None
    assert folded.adam is None
    assert folded.step == plain.step
    assert "the state of Adam is left out: it belongs to the weights in the file" in folded.describe()
