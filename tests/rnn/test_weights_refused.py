"""Weights that do not fit a layer, and layers that PyTorch or Keras does not have: refused in words."""

import inspect

import numpy as np
import pytest
from drawn_weights import IN, assert_same, keras_weights, layer_of, params_of, torch_state
from flax import nnx

from lstm_mnist_jax.rnn import RNN, LayerNormLSTMCell, StackedRNN, load_keras, load_torch, to_keras, to_torch


def without(state_dict, name):
    return {key: array for key, array in state_dict.items() if key != name}


STATE, TWO = torch_state("LSTM"), torch_state("LSTM", (5, 5))
BOTH_WAYS = torch_state("LSTM", (5, 5), bidirectional=True)
FLAT = [array for part in keras_weights("LSTM", (5, 5)) for array in part]
FLAT_BOTH_WAYS = [array for part in keras_weights("LSTM", (5, 5), bidirectional=True) for array in part]
ONE_LAYER = [
    (without(STATE, "weight_hh_l0"), r"LSTM \(hidden_features for 1 layer, bidirectional=False, use_bias=True, no "
                                     r"projection_features\): missing weight_hh_l0\.$"),
    (torch_state("LSTM", bias=False), r"missing bias_ih_l0, bias_hh_l0. It is of a layer with use_bias=False: use"),
    (TWO, r"left over weight_ih_l1, .* with hidden_features for 2 layers: use such a layer"),
    (torch_state("LSTM", bidirectional=True), r"left over weight_ih_l0_reverse, .* with bidirectional=True: use"),
    (torch_state("LSTM", projection=2), r"left over weight_hr_l0. It is of a layer with projection_features: use"),
    (torch_state("GRU"), r"weight_ih_l0 \[4 hidden, in\] of shape \(20, 3\), got \(15, 3\). 15 is 3 \* 5: .* of a GRU"),
    (torch_state("LSTM", (6,)), r"weight_ih_l0 \[4 hidden, in\] of .* got \(24, 3\).* hidden_features=6, not 5\.$"),
    (STATE | {"weight_ih_l0": np.zeros((20, 4))}, r"got \(20, 4\)\. It is of a cell with in_features=4, not 3\.$"),
    (STATE | {"bias_hh_l0": np.zeros((20, 1))}, r"bias_hh_l0 \[4 hidden\] of .* got \(20, 1\)"),
    (STATE | {"bias_hh_l0": np.zeros(20, int)}, "expected bias_hh_l0 to be floats, got int64"),
    (STATE | {"bias_hh_l0": "zero"}, "expected bias_hh_l0 to be floats, got <U4"),
    (STATE | {"bias_hh_l0": [[1.0], 2.0]}, "cannot read bias_hh_l0 as a NumPy array: .*detach"),
    (STATE | {"bias_hh_l0": np.full(20, 1e300)}, r"at .layers\[0\].cell .* 1e\+300, beyond .*float32"),
    ({"dense.weight": np.zeros((3, 3))}, "found no weight_ih_l0 in the state_dict, which has dense.weight"),
    ({}, "found no weight_ih_l0 in the state_dict, which has nothing"),
]  # fmt: skip
TWO_LAYERS = [
    (FLAT[:3], r"expected 6 arrays, of each layer and direction kernel, recurrent_kernel, bias; got 3, of shapes "
               r"\(3, 20\), \(5, 20\), \(20,\)\.$"),
    ([*FLAT, np.zeros((5, 2)), np.zeros(2)], r"got 8, .* Leave out the arrays of other layers, such as Dense"),
    ([*FLAT[:2], *FLAT[3:5]], r"got 4, .* Without biases, use LSTM or GRU with use_bias=False"),
    ([FLAT[:3]], r"expected 6 .*; got 3, of shapes \(3, 20\), \(5, 20\), \(20,\)\.$"),
    ([FLAT[:2], *FLAT[3:]], r"got 5, of shapes \(3, 20\), \(5, 20\), \(5, 20\), \(5, 20\), \(20,\)\.$"),
    ([FLAT[1], FLAT[0], *FLAT[2:]], r"kernel of the cell at .layers\[0\].cell \[in, 4 hidden\] of .*, got \(5, 20\)"),
    ([*FLAT[:5], np.zeros(20, bool)], r"expected bias of the cell at .layers\[1\].cell to be floats, got bool"),
]  # fmt: skip
TWO_LAYERS_BOTH_WAYS = [
    (BOTH_WAYS | {"bias_hh_l1_reverse": np.zeros(19)}, r"bias_hh_l1_reverse \[4 hidden\] of .*\(20,\), got \(19,\)"),
    (torch_state("LSTM", bidirectional=True), r"missing weight_ih_l1, .* with hidden_features for 1 layer: use"),
    (TWO, r"missing weight_ih_l0_reverse, .* with bidirectional=False: use"),
    (
        [*FLAT_BOTH_WAYS[:-1], np.zeros(19)],
        r"bias of the cell at .layers\[1\].backward_rnn.cell \[4 h.*\(19,",
    ),
]
WITHOUT_BIASES = [(STATE, r"left over bias_ih_l0, bias_hh_l0. .* with use_bias=True: use")]


@pytest.mark.parametrize(
    ("widths", "options", "refused"),
    [
        ((5,), {}, ONE_LAYER),
        ((5, 5), {}, TWO_LAYERS),
        ((5, 5), {"bidirectional": True}, TWO_LAYERS_BOTH_WAYS),
        ((5,), {"use_bias": False}, WITHOUT_BIASES),
    ],
)
def test_weights_that_do_not_fit_change_nothing(widths, options, refused):
    layer = layer_of("LSTM", widths, **options)
    before = params_of(layer)
    for weights, message in refused:
        with pytest.raises(ValueError, match=message):
            (load_torch if isinstance(weights, dict) else load_keras)(layer, weights)
        assert_same(params_of(layer), before)


def test_the_forms_of_the_gru_are_not_mixed_up():
    after, before = layer_of("GRU"), layer_of("GRU", reset_after=False)
    with pytest.raises(ValueError, match=r"\[2, 3 hidden\] of shape \(2, 15\), got \(15,\).* reset_after=False\)"):
        load_keras(after, to_keras(before))
    with pytest.raises(ValueError, match=r"\[3 hidden\] of shape \(15,\), got \(2, 15\).* reset_after=True\)"):
        load_keras(before, to_keras(after))
    with pytest.raises(ValueError, match=r"kernel of .* \[in, 3 hidden\] of .* 20 is 4 \* 5: .* of an LSTM"):
        load_keras(after, keras_weights("LSTM")[0])
    for function in (to_torch, lambda layer: load_torch(layer, torch_state("GRU"))):
        with pytest.raises(
            ValueError, match=r"reset_after=False: its reset gate multiplies h .*Use GRU\(reset_after=T"
        ):
            function(before)


def test_layers_that_the_other_library_does_not_have_are_refused():
    rngs = nnx.Rngs(0)
    relu = RNN(nnx.OptimizedLSTMCell(IN, 5, activation_fn=nnx.relu, rngs=rngs))
    with pytest.raises(ValueError, match=r"to_torch: the cell at .cell has a gate_fn or an activation_fn of its own"):
        to_torch(relu)
    load_keras(relu, keras_weights("LSTM")[0])  # of an LSTM(5, activation="relu")
    with pytest.raises(ValueError, match="projection_features, which Keras's LSTM does not have"):
        to_keras(layer_of("LSTM", projection_features=2))
    norm = StackedRNN(LayerNormLSTMCell, IN, 5, rngs=rngs)
    for function in (to_torch, to_keras):
        with pytest.raises(
            ValueError, match=r"no LayerNormLSTMCell, as the cell at .layers\[0\].cell is; expected nnx.Opt"
        ):
            function(norm)
        with pytest.raises(ValueError, match="got Linear: of a model, give the layer itself"):
            function(nnx.Linear(2, 3, rngs=rngs))
        with pytest.raises(ValueError, match=r"got GRUCell: give RNN\(cell\)"):
            function(nnx.GRUCell(2, 3, rngs=rngs))
    lstm = layer_of("LSTM")
    lstm.layers[0].cell.dense_i = nnx.LoRALinear(IN, 20, lora_rank=2, rngs=rngs)
    with pytest.raises(ValueError, match=r"expected dense_i of the cell at .*nnx.Linear with a matrix; got LoRALinear"):
        to_torch(lstm)


def test_a_whole_module_is_no_list_of_arrays():
    class Module:
        state_dict = get_weights = staticmethod(dict)

    with pytest.raises(ValueError, match=r"load_torch reads its state_dict\(\); got Module"):
        inspect.unwrap(load_torch)(layer_of("LSTM"), Module())
    with pytest.raises(ValueError, match=r"load_keras reads its get_weights\(\); got Module"):
        inspect.unwrap(load_keras)(layer_of("LSTM"), Module())
    with pytest.raises(ValueError, match="load_keras reads a list of arrays, as get_weights"):
        inspect.unwrap(load_keras)(layer_of("LSTM"), {})
