"""Weights of bare layers from and to PyTorch and Keras: against their equations, and against both libraries."""

import inspect
import os
import re
from functools import partial

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import (
    BATCH,
    IN,
    TIME,
    assert_same,
    drawn,
    keras_weights,
    layer_of,
    params_of,
    torch_shapes,
    torch_state,
)
from flax import nnx
from numpy_lstm import sigmoid

from lstm_mnist_jax.rnn import (
    LSTM,
    RNN,
    GRUCell,
    ProjectedLSTMCell,
    load_keras,
    load_torch,
    to_keras,
    to_torch,
)

keras_is_noisy = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def outputs_over_time(step, inputs, width, output, backward):
    """What one direction gives, where `step` computes c and h from x, c and h."""
    c, h, hs = np.zeros((BATCH, width)), np.zeros((BATCH, output)), np.zeros((BATCH, TIME, output))
    for t in range(TIME)[:: -1 if backward else 1]:
        c, h = step(inputs[:, t], c, h)
        hs[:, t] = h
    return hs


def torch_outputs(kind, state_dict, inputs):
    """The outputs of torch.nn.LSTM and torch.nn.GRU (batch_first=True), from the equations of their documentation."""
    states = {name: np.asarray(array, np.float64) for name, array in state_dict.items()}
    outputs, number, gates = np.asarray(inputs, np.float64), 0, {"LSTM": 4, "GRU": 3}[kind]

    def step(end, x, c, h):
        x_gates = np.split(x @ states[f"weight_ih_{end}"].T + states.get(f"bias_ih_{end}", 0), gates, axis=-1)
        h_gates = np.split(h @ states[f"weight_hh_{end}"].T + states.get(f"bias_hh_{end}", 0), gates, axis=-1)
        if kind == "LSTM":
            i, f, g, o = (x_gate + h_gate for x_gate, h_gate in zip(x_gates, h_gates, strict=True))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            return c, h @ states[f"weight_hr_{end}"].T if f"weight_hr_{end}" in states else h
        r, z = sigmoid(x_gates[0] + h_gates[0]), sigmoid(x_gates[1] + h_gates[1])
        n = np.tanh(x_gates[2] + r * h_gates[2])
        return c, (1 - z) * n + z * h

    while f"weight_ih_l{number}" in states:
        both = []
        for end in (f"l{number}", f"l{number}_reverse"):
            if f"weight_hh_{end}" in states:
                rows, output = states[f"weight_hh_{end}"].shape
                backward = end.endswith("_reverse")
                both.append(outputs_over_time(partial(step, end), outputs, rows // gates, output, backward))
        outputs, number = np.concatenate(both, axis=-1), number + 1
    return outputs


def keras_outputs(kind, layers, inputs, bidirectional=False, bias=True, reset_after=True):
    """The outputs of Keras's LSTM and GRU (return_sequences=True), gates i, f, c, o and z, r, h."""

    def step(kernel, recurrent_kernel, biases, x, c, h):
        b, d = biases if biases.ndim == 2 else (biases, 0)
        if kind == "LSTM":
            i, f, candidate, o = np.split(x @ kernel + h @ recurrent_kernel + b, 4, axis=-1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
            return c, sigmoid(o) * np.tanh(c)
        x_z, x_r, x_h = np.split(x @ kernel + b, 3, axis=-1)
        inner_z, inner_r, inner_h = np.split(h @ recurrent_kernel + d, 3, axis=-1)
        z, r = sigmoid(x_z + inner_z), sigmoid(x_r + inner_r)
        inner_h = r * inner_h if reset_after else (r * h) @ np.split(recurrent_kernel, 3, axis=-1)[2]
        return c, z * h + (1 - z) * np.tanh(x_h + inner_h)

    outputs = np.asarray(inputs, np.float64)
    for weights in layers:
        both = []
        for backward, arrays in enumerate([weights[: 2 + bias], weights[2 + bias :]][: 1 + bidirectional]):
            kernel, recurrent_kernel, biases = (*arrays, np.zeros(1))[:3]
            cell = partial(step, *(array.astype(np.float64) for array in (kernel, recurrent_kernel, biases)))
            both.append(outputs_over_time(cell, outputs, *[len(recurrent_kernel)] * 2, backward))
        outputs = np.concatenate(both, axis=-1)
    return outputs


@nnx.jit
def outputs_of(layer, inputs):
    outputs = layer(inputs)
    return outputs[0] if isinstance(outputs, tuple) else outputs


def inputs_of(seed=1):
    return np.random.default_rng(seed).standard_normal((BATCH, TIME, IN)).astype(np.float32)


@nnx.jit
def with_gradient(layer, inputs, cotangent):
    """The outputs, and the layer with the gradient of (outputs * cotangent).sum() as its parameters."""

    def loss(layer, inputs):
        outputs, _ = layer(inputs)
        return (outputs * cotangent).sum(), outputs

    (_, outputs), gradient = nnx.value_and_grad(loss, has_aux=True)(layer, inputs)
    of_gradient = nnx.clone(layer)
    nnx.update(of_gradient, gradient)
    return outputs, of_gradient


def cotangent_for(widths, bidirectional):
    return np.random.default_rng(2).standard_normal((TIME, widths[-1] * (1 + bidirectional))).astype(np.float32)


TORCH_CASES = {
    "LSTM": ("LSTM", (5,), {}),
    "LSTM of 3 layers": ("LSTM", (5, 5, 5), {}),
    "LSTM of 2 layers in both directions": ("LSTM", (5, 5), {"bidirectional": True}),
    "LSTM with a projection of 2 layers in both directions": ("LSTM", (5, 5), {"projection": 2, "bidirectional": True}),
    "LSTM with a projection without biases": ("LSTM", (5,), {"projection": 2, "bias": False}),
    "LSTM of 2 layers without biases": ("LSTM", (5, 5), {"bias": False}),
    "GRU of 3 layers": ("GRU", (5, 5, 5), {}),
    "GRU of 2 layers in both directions": ("GRU", (5, 5), {"bidirectional": True}),
    "GRU without biases": ("GRU", (5,), {"bias": False}),
}


def own_options(options):
    names = {"projection": "projection_features", "bias": "use_bias"}
    return {names.get(name, name): value for name, value in options.items()}


@pytest.mark.parametrize("case", TORCH_CASES)
def test_the_equations_of_torch(case):
    kind, widths, options = TORCH_CASES[case]
    state_dict, inputs = torch_state(kind, widths, **options), inputs_of()
    layer = layer_of(kind, widths, **own_options(options))
    load_torch(layer, state_dict)
    np.testing.assert_allclose(outputs_of(layer, inputs), torch_outputs(kind, state_dict, inputs), atol=2e-6)
    exported = to_torch(layer)
    assert {name: array.shape for name, array in exported.items()} == torch_shapes(kind, widths, **options)
    assert list(exported) == list(state_dict)
    for name, array in exported.items():
        folded = kind == "LSTM" and "bias" in name
        other = state_dict[name.replace("_ih", "_hh")] if folded else 0
        expected = 0 * array if folded and "_hh" in name else state_dict[name] + other
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-7, err_msg=name)
    other = layer_of(kind, widths, **own_options(options))
    load_torch(other, exported)
    assert_same(params_of(other), params_of(layer))


KERAS_CASES = {
    "LSTM of 2 layers": ("LSTM", (5, 4), {}),
    "LSTM of 2 layers in both directions": ("LSTM", (5, 4), {"bidirectional": True}),
    "LSTM without biases": ("LSTM", (5,), {"bias": False}),
    "GRU of 2 layers": ("GRU", (5, 4), {}),
    "GRU of 2 layers in both directions": ("GRU", (5, 4), {"bidirectional": True}),
    "GRU without biases": ("GRU", (5,), {"bias": False}),
    "GRU with reset_after=False in both directions": ("GRU", (5,), {"reset_after": False, "bidirectional": True}),
    "GRU with reset_after=False without biases": ("GRU", (5,), {"reset_after": False, "bias": False}),
}


@pytest.mark.parametrize("case", KERAS_CASES)
def test_the_equations_of_keras(case):
    kind, widths, options = KERAS_CASES[case]
    layers, inputs = keras_weights(kind, widths, **options), inputs_of()
    layer = layer_of(kind, widths, **own_options(options))
    load_keras(layer, layers)
    outputs, _ = with_gradient(layer, inputs, cotangent_for(widths, options.get("bidirectional", False)))
    np.testing.assert_allclose(outputs, keras_outputs(kind, layers, inputs, **options), atol=2e-6)
    flat = [array for weights in layers for array in weights]
    assert_same(to_keras(layer), flat)
    other = layer_of(kind, widths, **own_options(options))
    load_keras(other, flat)
    assert_same(params_of(other), params_of(layer))


CELLS = [("LSTM", nnx.OptimizedLSTMCell), ("LSTM", ProjectedLSTMCell), ("GRU", nnx.GRUCell), ("GRU", GRUCell)]


@pytest.mark.parametrize(("kind", "cell"), CELLS)
def test_one_cell_in_rnn(kind, cell):
    state_dict, inputs, rnn = torch_state(kind), inputs_of(), RNN(cell(IN, 5, rngs=nnx.Rngs(0)))
    if cell is nnx.GRUCell:
        before = params_of(rnn)
        with pytest.raises(
            ValueError,
            match=r"bias \(bias_hh, bias\[1\]\) is not zero in the last gate \(n\).*Use GRU, or RNN\(GRUCell",
        ):
            load_torch(rnn, state_dict)
        with pytest.raises(ValueError, match=r"load_keras: the recurrent bias .* is not zero in the last gate \(n\)"):
            load_keras(rnn, keras_weights("GRU")[0])
        assert_same(params_of(rnn), before)
        state_dict["bias_hh_l0"][10:] = 0
    load_torch(rnn, state_dict)
    expected = torch_outputs(kind, state_dict, inputs)
    np.testing.assert_allclose(outputs_of(rnn, inputs), expected, atol=2e-6)
    layer = layer_of(kind)
    load_torch(layer, to_torch(rnn))
    np.testing.assert_allclose(outputs_of(layer, inputs), expected, atol=2e-6)
    load_keras(layer, to_keras(rnn))
    np.testing.assert_allclose(outputs_of(layer, inputs), expected, atol=2e-6)
    load_keras(rnn, to_keras(layer) if kind == "LSTM" else to_keras(rnn))
    np.testing.assert_allclose(outputs_of(rnn, inputs), expected, atol=2e-6)


def test_layers_of_different_widths_are_a_module_list_of_torch():
    lstm = layer_of("LSTM", (5, 4))
    state_dict = {
        f"rnn.{number}.{name}": array
        for number, (width, features) in enumerate([(5, IN), (4, 5)])
        for name, array in torch_state("LSTM", (width,), in_features=features).items()
    }
    for prefix in (None, "rnn", "rnn."):
        load_torch(lstm, state_dict, prefix=prefix)
        assert list(to_torch(lstm, prefix="rnn")) == list(state_dict)
        np.testing.assert_array_equal(lstm.layers[1].cell.dense_i.kernel, state_dict["rnn.1.weight_ih_l0"].T)
    apart = {name.replace("rnn.1.", "rnn.3."): array for name, array in state_dict.items()}
    load_torch(layer_of("LSTM", (5, 4)), apart)  # something else is number 1
    joined = {re.sub(r"rnn\.(\d)\.(.*)_l0", r"\2_l\1", name): array for name, array in state_dict.items()}
    other = layer_of("LSTM", (5, 4))
    load_torch(other, joined)
    assert_same(params_of(other), params_of(lstm))


def test_a_prefix_is_found_or_chosen():
    wanted, other = torch_state("LSTM"), torch_state("LSTM")
    other["weight_ih_l0"] = other["weight_ih_l0"] + 1
    model = {f"encoder.lstm.{name}": array for name, array in wanted.items()}
    lstm = layer_of("LSTM")
    load_torch(lstm, model)
    np.testing.assert_array_equal(lstm.layers[0].cell.dense_i.kernel, wanted["weight_ih_l0"].T)
    model["dense.weight"] = np.zeros((2, 5))
    with pytest.raises(ValueError, match=r"left over dense.weight.* prefix='encoder.lstm.' reads only the names that"):
        load_torch(lstm, model)
    load_torch(lstm, model, prefix="encoder.lstm")
    model |= {f"decoder.{name}": array for name, array in other.items()}
    with pytest.raises(ValueError, match=r"several modules: 'encoder.lstm.', 'decoder.'. Choose one: prefix='encoder"):
        load_torch(lstm, model)
    with pytest.raises(ValueError, match=r"no names that start with 'coder.'.*there are 'encoder.lstm.', 'decoder.'"):
        load_torch(lstm, model, prefix="coder")
    load_torch(lstm, model, prefix="decoder.")
    np.testing.assert_array_equal(lstm.layers[0].cell.dense_i.kernel, other["weight_ih_l0"].T)
    assert list(to_torch(lstm, prefix="decoder")) == [f"decoder.{name}" for name in wanted]
    with pytest.raises(ValueError, match=r"left over dense.weight. Leave out what is not of this layer"):
        load_torch(lstm, wanted | {"dense.weight": np.zeros(2)})


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64, np.float32], ids=lambda kind: kind.__name__)
def test_every_float_dtype_becomes_that_of_the_parameters(dtype):
    state_dict = drawn(torch_shapes("GRU"), dtype)
    weights = to_keras(layer_of("GRU"))
    for param_dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        gru = layer_of("GRU", param_dtype=param_dtype)
        load_torch(gru, jax.device_put(state_dict))
        load_torch(gru, state_dict)
        assert {param.dtype for param in params_of(gru)} == {jnp.dtype(param_dtype)}
        kernel = gru.layers[0].cell.dense_i.kernel[...]
        np.testing.assert_array_equal(kernel, state_dict["weight_ih_l0"].T.astype(param_dtype))
        exported = {array.dtype for array in [*to_torch(gru).values(), *to_keras(gru)]}
        assert exported == {np.dtype(np.float32 if param_dtype == jnp.bfloat16 else param_dtype)}
        load_keras(gru, [array.astype(dtype) for array in weights])
        assert {param.dtype for param in params_of(gru)} == {jnp.dtype(param_dtype)}


def test_values_that_are_not_finite_are_kept():
    state_dict = torch_state("GRU")
    state_dict["bias_hh_l0"][[0, 14]] = np.nan, -np.inf
    gru = layer_of("GRU", param_dtype=jnp.float16)
    load_torch(gru, state_dict)
    np.testing.assert_array_equal(to_torch(gru)["bias_hh_l0"], state_dict["bias_hh_l0"].astype(np.float16))


def test_arrays_are_copies_both_ways():
    layer, weights = layer_of("LSTM"), keras_weights("LSTM")[0]
    load_keras(layer, weights)
    weights[0][:] = 7
    exported = to_keras(layer)
    exported[0][:] = 7  # writeable, and contiguous for torch.from_numpy
    assert exported[0].flags.c_contiguous
    assert not (to_torch(layer)["weight_ih_l0"] == 7).any()


def test_parameters_stay_on_their_devices():
    layer, devices = layer_of("LSTM"), jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("hidden",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "hidden"))
    kernel = layer.layers[0].cell.dense_i.kernel
    kernel.set_value(jax.device_put(kernel[...], sharding))
    load_torch(layer, torch_state("LSTM"))
    assert kernel[...].sharding == sharding
    assert not layer.layers[0].cell.dense_h.kernel[...].committed


def test_a_layer_without_values_is_loaded_but_not_exported():
    layer = nnx.eval_shape(lambda: LSTM(IN, (5,), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"at .layers\[0\].cell has no weights yet, but ShapeDtypeStructs. Load or"):
        to_torch(layer)
    state_dict, inputs = torch_state("LSTM"), inputs_of()
    load_torch(layer, state_dict)
    np.testing.assert_allclose(outputs_of(layer, inputs), torch_outputs("LSTM", state_dict, inputs), atol=2e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", TORCH_CASES)
def test_torch_itself_computes_the_same(case):
    torch = pytest.importorskip("torch")
    kind, widths, options = TORCH_CASES[case]
    theirs = {"projection": "proj_size"}
    module = getattr(torch.nn, kind)(
        IN,
        widths[0],
        len(widths),
        batch_first=True,
        **{theirs.get(name, name): value for name, value in options.items()},
    )
    with torch.no_grad():
        for parameter, array in zip(module.parameters(), torch_state(kind, widths, **options).values(), strict=True):
            parameter.copy_(torch.from_numpy(array))
    layer, inputs = layer_of(kind, widths, **own_options(options)), inputs_of()
    load_torch(layer, module.state_dict())
    expected, _ = module(torch.from_numpy(inputs))
    cotangent = np.random.default_rng(2).standard_normal(expected.shape).astype(np.float32)
    outputs, of_gradient = with_gradient(layer, inputs, cotangent)
    np.testing.assert_allclose(outputs, expected.detach().numpy(), atol=1e-5)
    (expected * torch.from_numpy(cotangent)).sum().backward()
    gradients = to_torch(of_gradient)
    for name, parameter in module.named_parameters():
        name = name.replace("bias_hh", "bias_ih") if kind == "LSTM" else name  # each bias has the gradient of the sum
        np.testing.assert_allclose(gradients[name], parameter.grad.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in to_torch(layer).items()})
    np.testing.assert_allclose(outputs, module(torch.from_numpy(inputs))[0].detach().numpy(), atol=1e-5)


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    module, lstm = torch.nn.LSTM(IN, 5), layer_of("LSTM")
    with pytest.raises(
        ValueError, match=r"cannot read weight_ih_l0 as a NumPy array: .*give tensor.detach\(\).cpu\(\)"
    ):
        load_torch(lstm, dict(module.named_parameters()))
    with pytest.raises(ValueError, match=r"in bfloat16 tensor.detach\(\).cpu\(\).float\(\)"):
        load_torch(lstm, module.bfloat16().state_dict())
    for changed in (module.half(), module.double()):
        load_torch(lstm, changed.state_dict())
        expected = changed.weight_ih_l0.detach().numpy().T.astype(np.float32)
        np.testing.assert_array_equal(lstm.layers[0].cell.dense_i.kernel, expected)
    with pytest.raises(ValueError, match=r"load_torch reads its state_dict\(\); got LSTM"):
        inspect.unwrap(load_torch)(lstm, module)


@pytest.mark.slow
@keras_is_noisy
@pytest.mark.parametrize("case", KERAS_CASES)
def test_keras_itself_computes_the_same(case):
    keras = pytest.importorskip("keras")
    kind, widths, options = KERAS_CASES[case]
    options = dict(options)
    bidirectional, bias = options.pop("bidirectional", False), options.pop("bias", True)
    undrawn = {"kernel_initializer": "zeros", "recurrent_initializer": "zeros"}  # to draw them compiles many programs
    made = partial(getattr(keras.layers, kind), return_sequences=True, use_bias=bias, **options, **undrawn)
    layers = [made(width) for width in widths]
    layers = [keras.layers.Bidirectional(layer) for layer in layers] if bidirectional else layers
    network = keras.Sequential([keras.Input((TIME, IN)), *layers])
    network.set_weights([array for part in keras_weights(kind, widths, **KERAS_CASES[case][2]) for array in part])
    layer, inputs = layer_of(kind, widths, use_bias=bias, bidirectional=bidirectional, **options), inputs_of()
    load_keras(layer, [part.get_weights() for part in layers])
    cotangent = cotangent_for(widths, bidirectional)
    outputs, of_gradient = with_gradient(layer, inputs, cotangent)

    def check():
        """Keras's outputs, and its gradients where it computes with JAX, which compiles them in one program."""
        if keras.backend.backend() != "jax":
            np.testing.assert_allclose(outputs, keras.ops.convert_to_numpy(network(inputs)), atol=1e-5)
            return
        variables = [variable.value for variable in network.trainable_variables]
        (_, expected), gradients = of_keras(variables)
        np.testing.assert_allclose(outputs, expected, atol=1e-5)
        for own, their in zip(to_keras(of_gradient), gradients, strict=True):
            np.testing.assert_allclose(own, their, atol=1e-5, rtol=1e-5)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def of_keras(variables):
        seeds = [variable.value for variable in network.non_trainable_variables]
        expected, _ = network.stateless_call(variables, seeds, inputs)
        return (expected * cotangent).sum(), expected

    check()
    network.set_weights(to_keras(layer))
    check()
    load_keras(layer, network.get_weights())
    assert_same(to_keras(layer), network.get_weights())
