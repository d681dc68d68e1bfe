"""Folders in the style of the Hugging Face Hub: back to the bit, the programs and the metadata of the card, damage."""

import json
import random
import re
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml
from parameters import drawn
from rewriting import rewrite
from runs import FIRST_OF_MNIST, TINY
from safetensors.numpy import load_file, save_file
from stacks import apply, assert_close

from lstm_mnist_jax import PRESETS, load_run
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import export, formats, huggingface
from lstm_mnist_jax.statistics import Share

NETWORKS = {
    "rows": ModelConfig(hidden_features=(4, 7)),
    "both": ModelConfig(hidden_features=(3, 4), bidirectional=True, task="columns"),
    "gru": ModelConfig(cell="gru", hidden_features=(5,), pooling="max", sequence_length=3),
    "gru, both": ModelConfig(
        cell="gru",
        recurrent_bias=True,
        hidden_features=(4,),
        bidirectional=True,
        pooling="last_step",
        dense_features=(5,),
    ),
    "all": ModelConfig(hidden_features=(4,), pooling="all", dense_features=(5,), dense_activation="tanh"),
    "attention": ModelConfig("permuted", permutation_seed=7, hidden_features=(4,), pooling="attention"),
    "mean": ModelConfig("pixels", hidden_features=(4,), pooling="mean"),
    "ur": ModelConfig(cell="ur_lstm", hidden_features=(4,)),
    "norm": ModelConfig(cell="layer_norm_lstm", hidden_features=(4,), dropout_rate=0.5),
}
COUNTS = {"test": (9, 10), "validation": (0, 5)}


def write(folder, config, image_shape=(6, 5), **options):
    params = drawn(config, image_shape)
    huggingface.write(folder, params, config, image_shape, ("one", "two", "three"), **options)
    return params


def programs(folder):
    return re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_every_network_comes_back_to_the_bit(tmp_path):
    for name, config in NETWORKS.items():
        training = replace(PRESETS["rows"], model=config)
        params = write(tmp_path / name, config, training=training, step=12)
        imported = formats.read("huggingface", tmp_path / name)
        assert_close(imported.params, params, atol=0)
        assert (imported.config, imported.training, imported.step) == (config, training, 12)
        assert (
            formats.list_arrays("huggingface", tmp_path / name).keys()
            == load_file(tmp_path / name / "model.safetensors").keys()
        )


def test_the_programs_of_the_card_compute_the_logits(tmp_path, monkeypatch, rng):
    images = rng.integers(0, 256, (7, 6, 5)).astype(np.uint8)
    for name, config in NETWORKS.items():
        folder = tmp_path / name
        onnx = export.to_onnx(drawn(config), (6, 5)) if name == "rows" else None
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"of another model")
        params = write(folder, config, onnx=onnx)
        np.save(folder / "images.npy", images)
        monkeypatch.chdir(folder)
        expected = np.asarray(apply(params, images, config))
        found = programs(folder)
        assert (folder / "model.onnx").exists() == (onnx is not None)
        assert len(found) == (1 if name in ("ur", "norm") else 3 if name == "rows" else 2)
        for program in found:
            if "import torch" in program:
                continue  # see below
            values = {}
            exec(program, values)
            np.testing.assert_allclose(values["logits"], expected, rtol=0, atol=1e-5, err_msg=f"{name}\n{program}")


def test_the_pytorch_program_of_the_card_computes_the_logits(tmp_path, monkeypatch, rng):
    pytest.importorskip("torch")
    for name, config in NETWORKS.items():
        if name in ("ur", "norm"):
            continue
        for shape in ((6, 5), (6, 5, 3)):
            images = rng.integers(0, 256, (7, *shape)).astype(np.uint8)
            folder = tmp_path / f"{name}{len(shape)}"
            params = write(folder, config, shape)
            np.save(folder / "images.npy", images)
            monkeypatch.chdir(folder)
            values = {}
            exec(next(program for program in programs(folder) if "import torch" in program), values)
            expected = np.asarray(apply(params, images, config))
            np.testing.assert_allclose(values["logits"], expected, rtol=0, atol=1e-5, err_msg=folder.name)


def test_the_metadata_of_the_card_are_yaml_with_metrics_and_their_intervals(tmp_path):
    for source, data_dir, written in [
        ("/home/me/mnist/", "C:\\me\\tfds", ("./mnist", "./tfds")),
        ("fashion-mnist", None, ("fashion-mnist", None)),
        ("tfds:a/b", "/", ("tfds:a/b", "/")),
    ]:
        data = replace(TINY.data, source=source, data_dir=data_dir)
        write(tmp_path / "elsewhere", NETWORKS["rows"], training=replace(TINY, data=data))
        data = huggingface.read(tmp_path / "elsewhere").training.data
        assert (data.source, data.data_dir) == written
        assert not re.search(r"\bme\b", (tmp_path / "elsewhere" / "README.md").read_text())
    mnist = replace(TINY, data=replace(TINY.data, source="mnist"))
    write(tmp_path / 'a "b": c', NETWORKS["rows"], training=mnist, counts=COUNTS)
    card = (tmp_path / 'a "b": c' / "README.md").read_text()
    assert card.startswith("---\n")
    front = yaml.safe_load(card.split("---\n")[1])
    assert "license" not in front
    assert front["pipeline_tag"] == "image-classification"
    assert front["datasets"] == ["mnist"]
    assert front["library_name"] == "lstm-mnist-jax"
    (model,) = front["model-index"]
    assert model["name"] == 'a "b": c'
    for result, (split, (correct, count)) in zip(model["results"], COUNTS.items(), strict=True):
        (metric,) = result["metrics"]
        assert result["dataset"]["split"] == split
        assert metric["value"] == correct / count
        assert metric["args"]["confidence_interval_95"] == pytest.approx(Share(correct, count).interval)
    assert "| test | 10 | 90.00% | 59.58% to 98.21% |" in card
    assert json.loads(re.search(r"```json\n(.*?)```", card, re.DOTALL)[1])["epochs"] == TINY.epochs
    write(tmp_path / "bare", NETWORKS["rows"])
    assert "Not evaluated" in (tmp_path / "bare" / "README.md").read_text()


@pytest.mark.slow
def test_a_run_goes_out_and_comes_back(command_line, tiny_run, tmp_path):
    run = load_run(tiny_run, "last")
    folder, again = tmp_path / "model", tmp_path / "again"
    run.export("huggingface", folder)
    evaluation = run.evaluate()["test"]
    assert f"{evaluation.accuracy:.2%}" in (folder / "README.md").read_text()
    with pytest.raises(WeightsError, match=r"exists already.*--overwrite"):
        run.export("huggingface", folder)
    run.export("huggingface", folder, overwrite=True)
    text = (folder / "config.json").read_text()
    assert text.count('"learning_rate": 0.01') == text.count('"seed": 0') == 1
    text = text.replace('"learning_rate": 0.01', '"learning_rate": 0.125').replace('"seed": 0', '"seed": 3')
    text = text.replace(f"./{FIRST_OF_MNIST.name}", "mnist")
    (folder / "config.json").write_text(text)
    # An option that is given counts where it is the default, too.
    done = command_line("import", "huggingface", folder, "--run-dir", tmp_path / "run", "--learning-rate", "0.01")
    assert (done.returncode, done.stderr) == (0, "")
    back = load_run(tmp_path / "run")
    assert_close(back.params, run.params, atol=0)
    assert back.folder.config == replace(run.folder.config, seed=3, data=replace(TINY.data, source="mnist"))
    assert back.step == run.step
    for change, words, message in [
        (("28,\n    28", "14,\n    28"), (), "trained on images of 14x28 pixels, but those of .* have 28x28"),
        (('"0": "0"', '"0": "zero"'), (), "Class 0 of the model is 'zero', but that of .* is '0'; name the data"),
        (("", ""), ("--task", "columns"), "--task is columns, but the network of the file reads rows. Leave it out"),
        (('"source": "mnist"', '"source": "./digits"'), (), r"'\./digits'.*; give their place with --source"),
    ]:
        shutil.copytree(folder, tmp_path / "other", dirs_exist_ok=True)
        (tmp_path / "other" / "config.json").write_text(text.replace(*change))
        done = command_line("import", "huggingface", tmp_path / "other", "--run-dir", tmp_path / "none", *words)
        assert done.returncode == 2
        assert re.search(message, done.stderr), done.stderr
    back.export("huggingface", again)
    assert_close(*(load_file(place / "model.safetensors") for place in (again, folder)), atol=0)
    configs = [json.loads((place / "config.json").read_text()) for place in (folder, again)]
    assert configs[1].pop("training") == configs[0].pop("training") | {"optimizer": asdict(run.folder.config.optimizer)}
    assert configs[0] == configs[1]


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").mkdir()
    for onnx, message in ((None, "cannot be removed: Is a directory"), (b"graph", "cannot be written: Is a directory")):
        with pytest.raises(WeightsError, match=f"model.onnx {message}"):
            write(tmp_path, NETWORKS["rows"], onnx=onnx)
        assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


def test_folders_of_other_models_are_refused(tmp_path):
    folder, config = tmp_path / "model", NETWORKS["rows"]
    with pytest.raises(WeightsError, match=r"no config\.json; it is not a folder"):
        huggingface.read(folder)
    write(folder, config)
    contents = json.loads((folder / "config.json").read_text())
    short = {name: value for name, value in contents["model"].items() if name != "cell"}
    for change, message in [
        ({"model_type": "vit"}, "is of a model of the type 'vit', expected 'lstm-mnist-jax'"),
        ({"model_type": None}, "is without a model_type"),
        ({"format": 2, "version": "9.9"}, "has the format 2, expected 1. It is of another version .*9.9"),
        ({"image_shape": [6, -5]}, r"image_shape \[6, -5\], expected \[height, width\]"),
        ({"image_shape": [6, 4]}, "does not fit config.json: .*dense_i.kernel is"),
        ({"id2label": {"0": "a"}}, r"does not fit config.json: dense.bias is \(3,\), expected \(1,\)"),
        ({"step": -1}, "has the step -1"),
        ({"model": short}, "config.json: model lacks cell"),
        ({"model": contents["model"] | {"cell": "gru"}}, "does not fit config.json"),
        ({"model": contents["model"] | {"hidden_features": [4] * 10**4}}, "says 10,000 layers"),
        ({"model": contents["model"] | {"dense_features": [4] * 600}}, "config.json says 60[12] layers"),
        ({"training": {"seed": 0}}, "config.json: training lacks"),
    ]:
        (folder / "config.json").write_text(json.dumps(contents | change))
        with pytest.raises(WeightsError, match=message):
            huggingface.read(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="cannot be read as JSON"):
        huggingface.read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"no config.json; there is README.md, model.safetensors"):
        huggingface.read(folder)
    (folder / "config.json").write_text(json.dumps(contents))
    arrays = load_file(folder / "model.safetensors")
    for change, message in [
        ({"dense.bias": np.full(3, np.nan, "f4")}, "dense.bias holds values that are not finite"),
        ({"dense.bias": np.zeros(3, "f2")}, "dense.bias in float16, expected float32"),
        ({"dense.bias.more": np.zeros(3, "f4")}, r"dense.bias.more is \(3,\), expected none"),
        ({"other": np.zeros(3, "f4")}, "does not fit config.json"),
    ]:
        save_file(arrays | change, folder / "model.safetensors")
        with pytest.raises(WeightsError, match=message):
            huggingface.read(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read: No such file"):
        huggingface.read(folder)


def try_mutations(count, folder, seed):
    """The mutations of config.json or of the weights that are read, and those that are refused."""
    generator, read, refused = random.Random(seed), 0, 0
    write(folder / "whole", NETWORKS["rows"], training=TINY)
    shutil.copytree(folder / "whole", folder / "changed")
    for _ in range(count):
        path = folder / "changed" / generator.choice(["config.json", "config.json", "model.safetensors"])
        data = bytearray(whole := path.read_bytes())
        end = min(len(data), 1500)  # of the weights mostly the header
        for _ in range(generator.choice((1, 1, 2, 8))):
            place = generator.randrange(end - 10)
            match generator.randrange(4):
                case 0:
                    data[place] = generator.randrange(256)
                case 1:
                    del data[place : place + generator.randrange(1, 9)]
                case 2:
                    data[place:place] = generator.choice((b"0", b"9" * 20, b"-", b"null", b"{", b"[]", b'"', b"e9"))
                case 3:
                    numbers = [found.span() for found in re.finditer(rb"\d+", bytes(data[:end]))]
                    start, stop = generator.choice(numbers)
                    values = (b"0", b"1", b"-1", b"1e400", b"9" * 30, b"true", b"[]", b"4.5")
                    data[start:stop] = generator.choice(values)
        rewrite(path, data)
        try:
            huggingface.read(folder / "changed")
            read += 1
        except WeightsError as error:
            assert len(str(error)) < 3000
            refused += 1
        rewrite(path, whole)
    return read, refused


def test_mutated_folders_are_read_or_refused(tmp_path):
    read, refused = try_mutations(150, tmp_path, seed=0)
    assert min(read, refused) > 10
