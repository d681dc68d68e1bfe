"""TensorFlow 1's checkpoints: against the logits and losses that TensorFlow computed with them."""

import importlib.util
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import tf1
from lstm_mnist_jax.interop.assembly import ignoring
from lstm_mnist_jax.interop.tf_checkpoint import read_checkpoint, write_checkpoint
from lstm_mnist_jax.rnn.weights import reorder_gates

ROOT = Path(__file__).parents[2]
TF1 = ROOT / "tests" / "fixtures" / "tf1"
EXPECTED = np.load(TF1 / "expected.npz")
NAMES = sorted({name.split("/")[0] for name in EXPECTED})
CELL = "rnn/multi_rnn_cell/cell_0/basic_lstm_cell"


def checkpoint(name):
    return TF1 / name / "model.ckpt"


def variables(name="tutorial"):
    return {name: np.asarray(array) for name, array in read_checkpoint(checkpoint(name)).items()}


@partial(jax.jit, static_argnames="config")
def logits_and_losses(params, images, one_hot, config):
    logits = model.apply(params, images, config)
    labels = one_hot, one_hot.argmax(axis=1)
    return logits, [model.softmax_cross_entropy(logits, each).mean() for each in labels]


@pytest.mark.parametrize("name", NAMES)
def test_the_logits_and_both_losses_are_tensorflows(name):
    imported = tf1.read(checkpoint(name))
    config, one_hot = ModelConfig(hidden_features=imported.weights.hidden_features), EXPECTED[f"{name}/labels"]
    logits, losses = logits_and_losses(imported.params, EXPECTED[f"{name}/images"], one_hot, config)
    np.testing.assert_allclose(logits, EXPECTED[f"{name}/logits"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(losses, EXPECTED[f"{name}/losses"], rtol=1e-6)


def test_layers_widths_and_adam_are_read_from_the_shapes():
    imported = tf1.read(checkpoint("three_layers"))
    assert imported.weights.hidden_features == (4, 2, 3)
    assert (imported.weights.in_features, imported.weights.num_classes) == (5, 3)
    assert imported.step == imported.adam.steps == 3
    assert imported.names == (*(CELL.replace("0", str(n)) for n in range(3)), "Variable")


def test_adams_slots_are_arranged_as_their_variables_are():
    found, adam = variables(), tf1.read(checkpoint("tutorial")).adam
    kernel = found[f"{CELL}/kernel/Adam"]
    i, j, f, o = np.split(kernel, 4, axis=1)
    np.testing.assert_array_equal(adam.mu.layers[0].forward.kernel, np.concatenate([i, f, j, o], axis=1)[:5])
    np.testing.assert_array_equal(adam.mu.layers[0].forward.recurrent_kernel, np.concatenate([i, f, j, o], axis=1)[5:])
    np.testing.assert_array_equal(adam.nu.dense[0].bias, found["Variable_1/Adam_1"])
    bias = found[f"{CELL}/bias/Adam"]
    np.testing.assert_array_equal(adam.mu.layers[0].forward.bias, reorder_gates(bias, "ijfo", "ifjo"))  # no forget bias


def test_checkpoints_round_trip(tmp_path):
    imported = tf1.read(checkpoint("tutorial"))
    tf1.write(tmp_path / "model.ckpt", imported.weights, imported.adam)
    found, expected = (read_checkpoint(path) for path in (tmp_path / "model.ckpt", checkpoint("tutorial")))
    assert found.keys() == expected.keys()
    for name in expected:  # a forget bias added and taken away again may cost a last bit
        np.testing.assert_allclose(np.asarray(found[name]), np.asarray(expected[name]), rtol=0, atol=1e-7)


def test_the_forget_bias_is_added_on_import_and_subtracted_on_export():
    found = variables()
    plain, moved = (tf1.from_variables(found, forget_bias=bias).weights.layers[0].forward.bias for bias in (0.0, 2.5))
    np.testing.assert_allclose(moved - plain, [0] * 4 + [2.5] * 4 + [0] * 8, rtol=1e-6, atol=1e-6)
    written = tf1.to_variables(tf1.from_variables(found, forget_bias=2.5).weights, forget_bias=2.5)
    np.testing.assert_allclose(written[f"{CELL}/bias"], found[f"{CELL}/bias"], atol=1e-6)


@pytest.mark.parametrize(("steps", "b1", "b2"), [(0, 0.9, 0.999), (3, 0.9, 0.999), (8590, 0.9, 0.999), (700, 0.5, 0.9)])
def test_the_number_of_steps_is_read_from_adams_powers(steps, b1, b2):
    """TensorFlow multiplies once a step, in float32, beginning with the decay itself."""
    powers = []
    for decay in np.float32([b1, b2]):
        power = decay
        for _ in range(steps):
            power = power * decay
        powers.append(power)
    found = variables() | dict(zip(["beta1_power", "beta2_power"], powers, strict=True))
    underflow = powers[1] < np.finfo(np.float32).tiny
    imported = tf1.from_variables(found, b1=b1, b2=b2)
    assert imported.adam.steps == steps or (underflow and imported.adam.steps > 500)
    back = tf1.to_variables(imported.weights, imported.adam, b1=b1, b2=b2)
    np.testing.assert_allclose([back["beta1_power"], back["beta2_power"]], powers, rtol=1e-6, atol=1e-37)


def test_powers_of_zero_give_a_large_number_of_steps():
    imported = tf1.from_variables(variables() | dict.fromkeys(["beta1_power", "beta2_power"], np.float32(0)))
    assert imported.adam.steps > 80_000


def test_the_step_is_that_of_global_step_of_adam_or_of_the_name(tmp_path):
    assert tf1.from_variables(variables() | {"global_step": np.int64(77)}).step == 77
    found = {name: array for name, array in variables().items() if "Adam" not in name and "power" not in name}
    assert tf1.from_variables(found).adam is None
    write_checkpoint(tmp_path / "model.ckpt-8590", found)
    assert tf1.read(tmp_path).step == 8590


def test_the_step_is_adams_unless_the_name_is_within_one_of_it(tmp_path):
    """Programs save with the number of an epoch, or before or after a step is counted."""
    for suffix, step, note in [
        (2, 2, None),
        (4, 4, None),
        (9, 3, "the step is 3, by Adam's powers; the name .*-9 has 9"),
    ]:
        write_checkpoint(tmp_path / str(suffix) / f"model.ckpt-{suffix}", variables())
        imported = tf1.read(tmp_path / str(suffix))
        assert imported.step == step
        assert imported.notes[1:] == () if note is None else re.search(note, imported.notes[1])
    found = variables() | {"global_step": np.int64(77)}
    assert "the step is global_step, 77; Adam's powers are those of step 3" in tf1.from_variables(found).notes[1]
    write_checkpoint(
        tmp_path / "weights-5", {name: a for name, a in variables().items() if a.shape and "Adam" not in name}
    )
    assert "the name weights-5, which may count epochs" in tf1.read(tmp_path / "weights-5").notes[1]


def test_other_scopes_other_optimizers_and_averages_do_not_matter():
    found = {f"my/model/{name}": array for name, array in variables().items()}
    for slot in ("Momentum", "ExponentialMovingAverage"):
        found[f"my/model/{CELL}/kernel/{slot}"] = np.zeros((9, 16), "f4")
    found["my/model/Variable_2"] = np.int64(3)
    imported = tf1.from_variables(found)
    assert imported.adam.steps == 3
    assert imported.names[0] == f"my/model/{CELL}"
    in_scope = {name: array for name, array in variables().items() if "Adam" not in name and "power" not in name}
    in_scope |= {f"train/{name}": array for name, array in variables().items() if "Adam" in name or "power" in name}
    assert tf1.from_variables(in_scope).adam.steps == 3


def test_lstm_cells_without_peepholes_are_the_same():
    found = {name.replace("basic_lstm_cell", "lstm_cell"): array for name, array in variables().items()}
    np.testing.assert_array_equal(tf1.from_variables(found).weights.dense[0].bias, found["Variable_1"])


def without(*names):
    return {name: array for name, array in variables().items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: without(f"{CELL}/bias"), rf"The cell {CELL} lacks its bias. Found: Variable \[7, 3\]"),
        (lambda: without("Variable_1"), "The output layer is missing, or its bias.* there is Variable. Found: "),
        (lambda: without("Variable"), "The output layer is missing.*there are Variable_1. Found: "),
        (lambda: variables() | {"extra/kernel": np.zeros((7, 3), "f4")}, "but besides.*extra/kernel.*--ignore NAME"),
        (lambda: variables() | {"Variable": np.zeros((6, 3), "f4")}, r"weights \[6, 3\].*gives 7 features. Found"),
        (lambda: variables() | {"Variable": np.zeros((7, 4), "f4")}, r"weights \[7, 4\] and biases \[3\]"),
        (
            lambda: variables() | {"Variable": np.full((7, 3), np.nan, "f4")},
            "Variable holds values that are not finite",
        ),
        (lambda: variables() | {f"{CELL}/kernel": np.zeros((9, 20), "f4")}, r"\[9, 20\].*not those of an LSTM cell"),
        (lambda: variables() | {f"{CELL}/kernel": np.zeros((4, 16), "f4")}, "leaves no rows for the inputs"),
        (lambda: variables() | {f"{CELL}/bias": np.zeros((4, 4), "f4")}, "not those of an LSTM cell"),
        (
            lambda: variables() | {f"b/{name}": array for name, array in variables().items()},
            "besides the LSTM layers there are Variable, Variable_1, b/V",
        ),
        (lambda: without("Variable/Adam"), "The state of Adam is incomplete: there is no Variable/Adam. .*--ignore"),
        (lambda: without("beta1_power"), "incomplete: there is no beta1_power"),
        (lambda: variables() | {"a/beta1_power": np.float32(1)}, "several variables called beta1_power"),
        (
            lambda: variables() | {"beta2_power": np.float32(0.5)},
            "beta1_power is .* the number from beta2_power.*--b1 and",
        ),
        (
            lambda: variables() | {"beta2_power": np.float32(0.9995)},
            "beta2_power is 0.999.*, which is no power of 0.999",
        ),
        (lambda: {"layer/cell/kernel/.ATTRIBUTES/VARIABLE_VALUE": np.zeros((3, 4), "f4")}, "of TensorFlow 2"),
        (dict, "There is no LSTM cell.*holds no arrays"),
    ],
)
def test_checkpoints_of_other_networks_are_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        tf1.from_variables(change())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("peepholes", "The cell rnn/lstm_cell has also w_f_diag, w_i_diag, w_o_diag: rnn/.*/w_f_diag of peepholes"),
        ("bidirectional", "part of a bidirectional layer"),
        ("gru", "no LSTM cell.*, but .* of a GRUCell.*Found: .*rnn/gru_cell/gates/kernel"),
    ],
)
def test_other_networks_that_tensorflow_wrote_are_refused(name, message):
    with pytest.raises(WeightsError, match=message):
        tf1.read(checkpoint(name))


def test_names_can_be_ignored(tmp_path):
    found = variables() | {f"b/{name}": array for name, array in variables().items()}
    write_checkpoint(tmp_path / "two.ckpt", found)
    assert tf1.read(tmp_path / "two.ckpt", ignore=["b/*"]).step == 3
    assert tf1.read(tmp_path / "two.ckpt", ignore=["b/*", "*/Adam", "*/Adam_1", "beta?_power"]).adam is None
    with pytest.raises(WeightsError, match=r"Nothing is called 'c/\*'"):
        tf1.read(tmp_path / "two.ckpt", ignore=["c/*"])


def test_a_checkpoint_is_written_under_the_names_of_another(tmp_path):
    """So that the program which wrote the other one restores it."""
    found = {f"my/model/{name}": array for name, array in variables("three_layers").items()}
    found |= {"global_step": np.int64(3), "unrelated": np.int32([1, 2])}
    write_checkpoint(tmp_path / "theirs.ckpt", found)
    imported = tf1.read(tmp_path / "theirs.ckpt")
    (dense,) = imported.weights.dense
    weights = imported.weights._replace(dense=(dense._replace(bias=dense.bias + 1),))
    adam = imported.adam._replace(steps=4)
    tf1.write(tmp_path / "ours.ckpt", weights, adam, like=tmp_path / "theirs.ckpt", step=4)
    written = {name: np.asarray(array) for name, array in read_checkpoint(tmp_path / "ours.ckpt").items()}
    assert written.keys() == found.keys()
    for name, array in found.items():
        moved = {"my/model/Variable_1": 1, "global_step": 1}.get(name, 0)
        if "power" in name:
            moved = array * {"1": -0.1, "2": -0.001}[name[-7]]
        np.testing.assert_allclose(written[name], array + moved, atol=1e-6)
        assert written[name].dtype == array.dtype
    with pytest.raises(WeightsError, match=r"has a state of Adam, in part or where there is none to write"):
        tf1.write(tmp_path / "none.ckpt", weights, like=tmp_path / "theirs.ckpt")


def test_cudnn_cells_have_no_forget_bias():
    found = {name.replace("basic_lstm_cell", "cudnn_compatible_lstm_cell"): a for name, a in variables().items()}
    biases = [tf1.from_variables(v).weights.layers[0].forward.bias for v in (variables(), found)]
    np.testing.assert_allclose(biases[0] - biases[1], [0] * 4 + [1] * 4 + [0] * 8, atol=1e-6)
    imported = tf1.from_variables(found)
    back = tf1.to_variables(imported.weights, imported.adam, like=found)
    for name, array in found.items():
        np.testing.assert_allclose(back[name], array, rtol=1e-6)


@pytest.mark.parametrize(("kernel", "bias"), [("lstm_out/kernel", "lstm_out/bias"), ("lstm/weights", "lstm/biases")])
def test_an_output_layer_may_be_called_lstm(kernel, bias):
    scope = kernel.split("/")[0] if "weights" in kernel else ""
    found = {f"{scope}/{name}".strip("/"): array for name, array in variables().items() if "Variable" not in name}
    found = {name: array for name, array in found.items() if "Adam" not in name and "power" not in name}
    found |= {kernel: variables()["Variable"], bias: variables()["Variable_1"]}
    np.testing.assert_array_equal(tf1.from_variables(found).weights.dense[0].kernel, variables()["Variable"])


def test_the_suggested_patterns_leave_out_an_incomplete_adam():
    found = {name: array for name, array in variables().items() if not name.endswith("Adam_1")}
    found = {name.replace("beta", "train/beta") if "power" in name else name: array for name, array in found.items()}
    with pytest.raises(WeightsError, match="incomplete") as error:
        tf1.from_variables(found)
    patterns = re.findall(r"--ignore '(.*?)'", str(error.value))
    assert tf1.from_variables(ignoring(found, patterns)).adam is None


@pytest.mark.parametrize(
    "change",
    [
        {"beta1_power": np.float32("nan")},
        {"beta2_power": np.float32("nan")},
        {"Variable/Adam": np.full((7, 3), np.inf, "f4")},
    ],
)
def test_a_state_of_adam_that_is_not_finite_is_refused(change):
    with pytest.raises(
        WeightsError, match=r"nan, which is no power|Adam's state of Variable holds values that are not"
    ):
        tf1.from_variables(variables() | change)


def test_an_invalid_global_step_is_ignored():
    for step in (np.float32("inf"), np.int64(-1), np.float32("nan")):
        assert tf1.from_variables(variables() | {"global_step": step}).step == 3


def test_the_step_in_the_file_name_is_used_beyond_adams_powers(tmp_path):
    found = variables() | dict.fromkeys(["beta1_power", "beta2_power"], np.float32(0))
    write_checkpoint(tmp_path / "model.ckpt-200000", found)
    assert tf1.read(tmp_path).step == 200_000


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("tensorflow", "tf_keras")),
    reason="needs tensorflow-cpu and tf-keras",
)
def test_the_training_is_tensorflows_step_by_step():
    script = [sys.executable, str(ROOT / "scripts" / "tf1_parity.py")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["loss, first 50 steps, relative"] <= 1e-4
