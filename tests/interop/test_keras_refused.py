"""Files of Keras with other models than this classifier, damaged files, and files that are not of Keras."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")


import json
import shutil
import zipfile
from pathlib import Path

import h5py
import keras_mutations as mutations
import numpy as np
import pytest
from stacks import FIXTURES

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import files, formats, keras

AGES = FIXTURES / "keras_ages"
WAYS = ("forward", "backward")

pytestmark = pytest.mark.usefixtures("keras_draws_by_numpy")

keras_is_noisy = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def test_configs_of_other_models_are_refused(tmp_path):
    def first(config):
        return config["config"][0]["config"]

    def nodes(config):
        return config["config"]["layers"][2]

    def backward(**settings):
        def change(config):
            layer = first(config)["layer"]
            first(config)["backward_layer"] = layer | {"config": layer["config"] | {"go_backwards": True} | settings}

        return change

    def one_way(config):
        config["config"][0] = first(config)["layer"]

    for name, change, message in [
        ("keras1_model", lambda c: first(c).update(inner_activation="softmax"), "inner_activation=softmax, expected"),
        ("keras1_model", lambda c: first(c).update(inner_activation="hard_sigmoid"), "differ in recurrent_activation"),
        ("keras2_model", lambda c: first(c).update(use_bias=False), "lacks its bias, or has one that its config"),
        ("keras2_no_bias", lambda c: first(c).update(use_bias=True), "The LSTM layer lstm_1 lacks its bias"),
        ("gru_model", lambda c: first(c).update(use_bias=False), "The GRU layer gru_2 lacks its bias"),
        ("gru_model", lambda c: first(c).pop("reset_after"), "reset_after=False, expected True: its reset gate"),
        ("gru_model", lambda c: first(c).update(recurrent_activation="hard_sigmoid"), "GRU only tanh and sigmoid"),
        ("gru_model", lambda c: [part.update(class_name="LSTM") for part in c["config"][:2]], "gru_2 is a LSTM with"),
        ("gru_model", lambda c: c["config"][0].update(class_name="CuDNNGRU"), "a CuDNNGRU, but its arrays are not"),
        ("gru_model", lambda c: c["config"][0].update(class_name="LSTM"), "gru_2 is a LSTM with weights"),
        ("bidirectional_keras1_model", lambda c: first(c).update(merge_mode="ave"), "merge_mode=ave, expected concat"),
        ("bidirectional_keras1_model", lambda c: first(c).update(merge_mode=None), "merge_mode=None, expected concat"),
        ("bidirectional_keras1_model", backward(activation="relu"), "The two directions of .* bidirectional_1 differ"),
        ("bidirectional_keras1_model", backward(go_backwards=False), "an LSTM or a GRU and the same backwards"),
        (
            "bidirectional_keras1_model",
            lambda c: first(c)["layer"].update(class_name="RNN"),
            "bidirectional_1 has a RNN",
        ),
        ("bidirectional_keras1_model", one_way, "The LSTM layer bidirectional_1 has the arrays U_c"),
        ("keras2_model", lambda c: first(c).update(return_state=True), "return_state=True, expected False"),
        ("keras2_model", lambda c: first(c).update(name="lstm_8"), "names the layers lstm_8, lstm_3, dense_1, but"),
        ("keras2_model", lambda c: c["config"].pop(0), "names the layers lstm_3, dense_1, but the file has the arrays"),
        ("keras2_model", lambda c: c["config"].pop(2), "Expected LSTM or GRU layers, then Dense"),
        ("keras2_model", lambda c: c.update(config=3), "not as Keras writes it"),
        ("cudnn_model", lambda c: first(c).update(go_backwards=True), "The CuDNNLSTM layer .* has go_backwards=True"),
        ("keras2_model", lambda c: c["config"][0].update(class_name="CuDNNLSTM"), "CuDNNLSTM, but its arrays are not"),
        ("keras2_functional", lambda c: nodes(c).update(inbound_nodes=[[["input_1", 0, 0, {}]]]), "is not in a chain"),
        ("keras2_functional", lambda c: nodes(c)["inbound_nodes"].append([["lstm_7", 0, 0, {}]]), "is not in a chain"),
        ("keras2_functional", lambda c: nodes(c).update(inbound_nodes=[]), "is not in a chain"),
        ("keras2_functional", lambda c: c["config"].update(output_layers=[["lstm_3", 0, 0]]), "outputs of the model"),
    ]:
        path = shutil.copy(AGES / f"{name}.h5", tmp_path / "model.h5")
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        with pytest.raises(WeightsError, match=message):
            formats.read("keras", Path(path))


def test_the_config_of_a_subclass_with_layers_counts(tmp_path):
    path = Path(shutil.copy(AGES / "keras2_functional.h5", tmp_path / "model.h5"))
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"]) | {"class_name": "Reader"}
        file.attrs["model_config"] = json.dumps(config)
    imported = formats.read("keras", path)
    assert imported.names == ("lstm_7", "lstm_3", "dense_1")
    assert imported.notes == ("the model is of the class Reader: it is assumed to compute what its layers say",)
    config["config"]["layers"][2]["config"]["recurrent_activation"] = "elu"
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(WeightsError, match="lstm_3 has recurrent_activation=elu"):
        formats.read("keras", path)


def test_arrays_of_other_recurrent_layers_are_refused(tmp_path):
    def write(**layers):
        with h5py.File(tmp_path / "weights.h5", "w") as file:
            file.attrs["layer_names"] = list(layers)
            for name, shapes in (layers | {"dense": {"kernel:0": (4, 3), "bias:0": (3,)}}).items():
                group = file.create_group(name)
                group.attrs["weight_names"] = list(shapes)
                for part, shape in shapes.items():
                    group[part] = np.zeros(shape, "f4")

    lstm = {"kernel:0": (5, 16), "recurrent_kernel:0": (4, 16), "bias:0": (16,)}
    dense = {"kernel:0": (4, 3), "bias:0": (3,)}
    for layers, message in [
        ({"gru": {"kernel:0": (5, 12), "recurrent_kernel:0": (4, 12), "bias:0": (12,)}}, "GRU with reset_after=False"),
        ({"gru": {"kernel:0": (5, 12), "recurrent_kernel:0": (4, 12)}}, "a GRU without biases, of which weights alone"),
        ({"gru": {"kernel:0": (5, 12), "recurrent_kernel:0": (4, 12), "bias:0": (3, 12)}}, "does not fit together"),
        ({"gru": {f"gru_{kind}_{gate}": (4, 4) for kind in "WU" for gate in "zrh"}}, "is a GRU of Keras 1: its reset"),
        ({"rnn": {"kernel:0": (5, 4), "recurrent_kernel:0": (4, 4), "bias:0": (4,)}}, "that of a simple RNN"),
        ({"lstm": lstm | {"peephole:0": (4,)}}, "has more than an LSTM or a GRU: peephole:0"),
        ({"rnn": {f"cell_{n}/{part}": shape for n in (1, 2) for part, shape in lstm.items()}}, "several layers in it"),
        ({"lstm": lstm, "one": {"kernel:0": (4, 3)}, "two": {"beta:0": (3,)}}, "there is more besides"),
        ({"both": {f"both/{way}_a/{part}": shape for way in WAYS for part, shape in lstm.items()}}, "gives 8 features"),
        ({"lstm": lstm, "hidden": dense}, "there is more besides the recurrent layers"),
    ]:
        write(**layers, dense=dense)
        with pytest.raises(WeightsError, match=message):
            formats.read("keras", tmp_path / "weights.h5")


def test_files_and_folders_of_tensorflow_are_named(tmp_path):
    for name, file, message in [
        ("saved", "saved/saved_model.pb", r"is a SavedModel, a folder.*load_model\(FOLDER\).*save\('model.keras'\)"),
        ("folder", "folder/readme", "is a folder; expected a file of Keras"),
        ("frozen.pb", "frozen.pb", "is a graph of TensorFlow"),
        ("weights", "weights.index", "is the prefix of a checkpoint of TensorFlow"),
    ]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
        with pytest.raises(WeightsError, match=message):
            formats.read("keras", tmp_path / name)
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(WeightsError, match=r"this zip archive has no model\.weights\.h5"):
        formats.read("keras", tmp_path / "model.keras")
    with h5py.File(tmp_path / "keras0.h5", "w") as file:
        file.attrs["nb_layers"] = 3
    with pytest.raises(WeightsError, match="Keras 0 wrote it: load it in Keras 1"):
        formats.read("keras", tmp_path / "keras0.h5")


def test_damaged_texts_are_refused_on_which_hdf5_does_not_return(tmp_path):
    """With h5py 3.16, the first kind of damage took gigabytes, the second never ended."""
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["layer_names"] = ["lstm", "dense"]  # of variable length
    data = (tmp_path / "model.h5").read_bytes()
    heap = data.index(b"GCOL")
    reference = data.index(heap.to_bytes(8, "little") + bytes([2, 0, 0, 0])) - 4  # length, address, number
    free = heap + 16 + 2 * 24
    assert (data[reference : reference + 4], data[free : free + 2]) == (b"\x04\0\0\0", b"\0\0")
    for place, new, message in [
        (reference, b"\xff\xff\xff\x7f", "the global heap at byte .* is damaged"),
        (reference + 12, b"\x09", "the global heap at byte .* is damaged"),
        (reference + 4, b"\xff" * 8, "it points to byte"),
        (heap + 24, bytes(2), "the global heap at byte .* is damaged"),
    ]:
        (tmp_path / "model.h5").write_bytes(data[:place] + new + data[place + len(new) :])
        with pytest.raises(WeightsError, match=message):
            formats.read("keras", tmp_path / "model.h5")
    (tmp_path / "model.h5").write_bytes(data[: free + 8] + bytes(8) + data[free + 16 :])
    with pytest.raises(WeightsError, match="it lists the layer lstm, which is not there"):
        formats.read("keras", tmp_path / "model.h5")


@pytest.mark.filterwarnings("ignore:warning. the file holds no activations:UserWarning")
def test_mutated_files_give_a_model_or_an_error_for_people(tmp_path):
    files = [*sorted(AGES.glob("*.h5")), *sorted((FIXTURES / "keras2").glob("model.*"))]
    assert mutations.run(files, tmp_path / "mutated", count=80, seed=0)["WeightsError"] > 30


@keras_is_noisy
def test_other_keras_models_are_refused(tmp_path):
    import keras as keras3

    layers = keras3.layers
    for layer, message in [
        (layers.LSTM(4, activation="elu"), "has activation=elu, expected tanh or relu or linear or hard_sigmoid: this"),
        (layers.LSTM(4, recurrent_activation="tanh"), "has recurrent_activation=tanh, expected sigmoid"),
        (layers.LSTM(4, go_backwards=True), "has go_backwards=True, expected False"),
        (layers.GRU(4, reset_after=False), "reset_after=False, expected True: its reset gate multiplies the state"),
        (layers.Bidirectional(layers.GRU(4), merge_mode="sum"), "bidirectional.* has merge_mode=sum, expected concat"),
        (layers.LSTM(4, return_sequences=True), "has return_sequences=True, expected False: the last output alone"),
        (
            keras3.Sequential([layers.LSTM(4), layers.Activation("softmax")]),
            "activation=softmax between the recurrent layers",
        ),
        (keras3.Sequential([layers.Masking(), layers.LSTM(4)]), "is a Masking.*skips the time steps"),
        (keras3.Sequential([layers.Reshape((30, 1)), layers.LSTM(4)]), "reads one number at a time, the pixels"),
        (keras3.Sequential([layers.LSTM(4), layers.Dense(3, "elu")]), "has activation=elu, expected relu or tanh"),
        (
            keras3.Sequential([layers.Dense(3, "relu"), layers.LSTM(4)]),
            "has activation=relu before the recurrent layers",
        ),
        (
            keras3.Sequential([layers.LSTM(4), layers.Dense(3, "relu"), layers.Dense(3, "tanh")]),
            "The hidden Dense layers have relu, tanh, expected one",
        ),
        (
            layers.Lambda(lambda outputs: outputs[:, -1]),
            "is a Lambda, .* of Bidirectional layers, with --pooling last_step",
        ),
        (layers.LayerNormalization(), "is a LayerNormalization, which this classifier does not have"),
    ]:
        first = layer.layers if isinstance(layer, keras3.Sequential) else [layer]
        network = keras3.Sequential([keras3.Input((6, 5)), *first, layers.Dense(3)])
        with pytest.raises(WeightsError, match=message):
            keras.from_model(network)
        for name in ("model.keras", "model.h5"):
            network.save(tmp_path / name)
            with pytest.raises(WeightsError, match=message):
                formats.read("keras", tmp_path / name)


def test_a_dense_layer_that_the_list_of_layers_has_between_recurrent_ones_is_refused():
    shapes = {"lstm": [(5, 16), (4, 16), (16,)], "dense": [(4, 4), (4,)], "lstm_1": [(4, 16), (4, 16), (16,)]}
    shapes["dense_1"] = [(4, 3), (3,)]
    parts = ["kernel", "recurrent_kernel", "bias"]
    layers, arrays = {}, {}
    for layer, own in shapes.items():
        layers[layer] = [f"{layer}/{part}:0" for part in (parts if len(own) == 3 else parts[::2])]
        arrays |= zip(layers[layer], map(np.zeros, own), strict=True)
    with pytest.raises(WeightsError, match=r"has dense between its recurrent layers: lstm, dense, lstm_1, dense_1"):
        keras.from_file(files.KerasFile(arrays, layers, version="2.4.0"))
    order = ["lstm", "lstm_1", "dense", "dense_1"]
    assert keras.from_file(files.KerasFile(arrays, layers, version="2.4.0"), order=order).names == tuple(order)


def test_hdf5_with_oversized_or_external_arrays_is_refused(tmp_path):
    for number, options in enumerate([{"shape": (1 << 30,), "chunks": (1 << 20,)}, {"data": h5py.Empty("f4")}]):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file.create_dataset("lstm/cell/vars/0", **options, dtype="f4")
    with h5py.File(tmp_path / "2.h5", "w") as file:
        file.create_dataset("a", (16,), "u1", external=[("/etc/hostname", 0, 16)])
    with pytest.raises(WeightsError, match="has 4294967296 bytes"):
        formats.list_arrays("keras", tmp_path / "0.h5")
    assert formats.list_arrays("keras", tmp_path / "1.h5") == {}
    with pytest.raises(WeightsError, match="which are not in the file"):
        formats.list_arrays("keras", tmp_path / "2.h5")
