"""PyTorch: against its own logits and gradients, live and from committed files."""

import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from stacks import FIXTURES, LABELS, assert_close, logits_and_gradient, state_dict

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import formats, torch


@pytest.mark.parametrize("stack", [(4,), (4, 7), (3, 3), (4, 2, 3)], ids=str)
def test_torchs_logits_and_gradients(stack):
    name, config = "-".join(map(str, stack)), ModelConfig(hidden_features=stack)
    params = torch.from_state_dict(load_file(FIXTURES / "torch" / f"{name}.safetensors"))
    expected = load_file(FIXTURES / "torch" / f"{name}.expected.safetensors")
    logits, gradient = logits_and_gradient(params, expected["images"], expected["labels"], config)
    assert_close(logits, expected["logits"])
    # Each of torch's two biases has the gradient of their sum.
    theirs = {
        name.removeprefix("gradient of "): np.zeros_like(array) if "bias_hh" in name else array
        for name, array in expected.items()
        if name.startswith("gradient of ")
    }
    assert_close(gradient, torch.from_state_dict(theirs))
    assert torch.to_state_dict(params).keys() == load_file(FIXTURES / "torch" / f"{name}.safetensors").keys()


def test_torch_itself_computes_the_same(params, config, images):
    pytorch = pytest.importorskip("torch")
    sys.path.insert(0, str(FIXTURES))
    from write_torch import Stack

    network = Stack(config.hidden_features)
    state_dict = {name: pytorch.from_numpy(array.copy()) for name, array in torch.to_state_dict(params).items()}
    network.load_state_dict(state_dict)
    logits, gradient = logits_and_gradient(params, images, LABELS, config)
    theirs = network(pytorch.from_numpy(images))
    assert_close(logits, theirs.detach().numpy())
    pytorch.nn.functional.cross_entropy(theirs, pytorch.from_numpy(LABELS)).backward()
    gradients = {name: p.grad * (0 if "bias_hh" in name else 1) for name, p in network.named_parameters()}
    assert_close(gradient, torch.from_state_dict(gradients))
    assert_close(torch.from_state_dict(dict(network.named_parameters())), params, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lstm.0.weight_ih_l0_reverse": np.zeros((16, 5))}, "layer lstm.0.l0 lacks its weight_hh"),
        ({"lstm.0.weight_hr_l0": np.zeros((2, 4))}, "projects its outputs"),
        ({"lstm.0.bias_hh_l0": None}, "layer lstm.0.l0 lacks its bias_hh. Found: lstm.0.weight_ih_l0"),
        ({"lstm.0.bias_hh_l0": np.zeros(3)}, r"lstm.0.l0 do not fit together: .*biases \[16\] and \[3\]"),
        ({"lstm.0.weight_hh_l0": np.zeros((16, 3))}, r"lstm.0.l0 does not fit together: .* \[3, 16\] for its state"),
        ({"lstm.1.weight_ih_l0": np.zeros((28, 5))}, "lstm.1.l0 takes 5 features, but the layer before gives 4"),
        ({"dense.weight": np.zeros((3, 4))}, "dense has weights .* gives 7 features"),
        ({"dense.weight": None}, "The output layer is missing"),
        ({"head.weight": np.zeros((3, 7))}, "more besides the recurrent layers: dense 7 -> 3, head 7 -> 3. If"),
        (
            {"norm.weight": np.ones(7), "norm.bias": np.ones(7)},
            "more besides the recurrent layers: norm.weight, norm.bias. If",
        ),
        ({"dense.weight": np.zeros((1, 7)), "dense.bias": np.zeros(1)}, "dense has one output, as for a number"),
        (
            {"embed.weight": np.ones((5, 9)), "embed.bias": np.ones(5)},
            "before its recurrent layers: embed. .* confirm this with --input-activation linear",
        ),
        (
            {"fc.weight": np.ones((7, 7)), "gc.weight": np.ones((7, 7))},
            "determine the order of the dense layers dense, fc, gc. .*--layer lstm.1.l0 --layer dense --layer fc",
        ),
        (
            {"dense.weight": None, "dense.parametrizations.weight.original": np.zeros((3, 7))},
            r"dense.parametrizations.weight.original is not a weight, .*remove_parametrizations",
        ),
        ({"scale": np.array(2.0)}, "more besides the recurrent layers: scale. If"),
        ({"dense.bias": np.array([1, np.inf, 0])}, "dense holds values that are not finite"),
        ({"dense.bias": np.array([1, 1e39, 0])}, "dense holds values that are not finite"),  # as float32
    ],
)
def test_state_dicts_of_other_networks_are_refused(changes, message):
    with pytest.raises(WeightsError, match=message):
        torch.from_state_dict(state_dict(**changes))
    with pytest.raises(WeightsError, match=r"There is no LSTM or GRU layer: no weight_ih. Found: conv"):
        torch.from_state_dict({"conv.weight": np.zeros((3, 3))})


def test_half_precision_is_read_and_other_types_are_named(tmp_path):
    pytorch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    arrays = state_dict()
    for dtype in (pytorch.float16, pytorch.bfloat16, pytorch.float64):
        tensors = {name: pytorch.from_numpy(array.copy()).to(dtype) for name, array in arrays.items()}
        save_file(tensors, tmp_path / "model.safetensors")
        found = formats.read("torch", tmp_path / "model.safetensors").params
        assert_close(found, torch.from_state_dict(arrays), atol=1e-2)
        assert found["dense"]["kernel"].dtype == np.float32
    save_file({"a": pytorch.zeros(2, dtype=pytorch.float8_e5m2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="holds numbers of the type 'F8_E5M2'; expected floats"):
        formats.read("torch", tmp_path / "model.safetensors")


def named(widths):
    """A state_dict of one-layer LSTMs of these names and widths, the first of 5 features."""
    rng, arrays, features = np.random.default_rng(0), {}, 5
    for name, width in widths.items():
        shapes = {"weight_ih": (4 * width, features), "weight_hh": (4 * width, width), "bias_ih": 4 * width}
        shapes["bias_hh"] = shapes["bias_ih"]
        arrays |= {f"{name}.{kind}_l0": rng.standard_normal(shape, "f4") for kind, shape in shapes.items()}
        features = width
    head = {"head.weight": rng.standard_normal((3, features), "f4"), "head.bias": np.zeros(3, "f4")}
    return arrays | head


def test_an_undetermined_order_of_layers_is_refused(tmp_path):
    by_width = named({"rnn": 4, "middle": 6, "last": 3})
    assert torch.from_arrays(dict(sorted(by_width.items()))).names[:3] == ("rnn.l0", "middle.l0", "last.l0")
    by_number = named({f"lstm{number}": 5 for number in range(1, 12)})
    assert torch.from_arrays(dict(sorted(by_number.items()))).names[9:11] == ("lstm10.l0", "lstm11.l0")
    for names in (["lstm", "lstm2"], ["lstm", "lstm_2"], ["a.rnn", "a2.rnn"]):
        equal = torch.from_arrays(dict(sorted(named(dict.fromkeys(names, 5)).items())))
        assert equal.names[:2] == tuple(f"{name}.l0" for name in names)
    open_ = named({"lower": 5, "higher": 5})
    live = torch.from_state_dict(open_)["rnn"]["layers"][0]["cell"]["dense_i"]["kernel"]
    np.testing.assert_array_equal(live, open_["lower.weight_ih_l0"].T)
    path = tmp_path / "model.safetensors"
    save_file(open_, path)
    with pytest.raises(WeightsError, match=r"names nor widths determine.*--layer higher.l0 --layer lower.l0"):
        formats.read("torch", path)
    assert formats.read("torch", path, layers=["lower.l0", "higher.l0"]).names[0] == "lower.l0"
    with pytest.raises(WeightsError, match=r"--layer names lower.l0; the recurrent layers are higher.l0, lower.l0"):
        formats.read("torch", path, layers=["lower.l0"])


def test_the_order_of_many_layers_is_not_searched():
    """Twenty layers have more orders than can be tried."""
    with pytest.raises(WeightsError, match="names nor widths determine"):
        torch.from_arrays(named({f"layer_{letter}": 5 for letter in "qwertzuiopasdfghjkly"}))
