"""`lstm-mnist import` and `export`: a run leaves for another program, and a model of another program becomes a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from parameters import drawn
from runs import TINY

from lstm_mnist_jax import load_run, train
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import RunError, UserError
from lstm_mnist_jax.interop import formats, torch
from lstm_mnist_jax.training import begin_run, checkpoint
from lstm_mnist_jax.training.run_folder import read_run_folder

OPTIONS = ["--source", TINY.data.source, "--validation-examples", "200", "--train-examples", "1000"]
CELL = "rnn/multi_rnn_cell/cell_{}/basic_lstm_cell"
FIXTURES = Path(__file__).parents[1] / "fixtures"
TF1 = FIXTURES / "tf1"


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run, "last")


@pytest.fixture(scope="module")
def evaluations(run):
    return run.evaluate()


def path_of(format_name, folder):
    return folder / format_name / f"model{formats.EXPORT_ENDINGS[format_name]}"


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for name in formats.EXPORT_ENDINGS:
        run.export(name, path_of(name, folder))
    return folder


def begin(format_name, path, config, run_dir, **changes):
    """Begins a run of a file's weights, with the state of Adam and the steps in it unless there are `changes`."""
    imported = formats.read(format_name, path)
    found = {"origin": str(path), "adam": imported.adam and imported.adam.to_optax(), "step": imported.step}
    return begin_run(imported.params, config, run_dir, **(found | changes))


def assert_close(found, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), found, expected)


@pytest.mark.slow
def test_training_from_an_exported_tensorflow_checkpoint_equals_uninterrupted_training(run, exports, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(run.folder.path, whole)
    train(replace(TINY, epochs=4), whole, resume=True)
    imported = begin("tf1", exports / "tf1" / "model", TINY, tmp_path / "run")
    assert (imported.epochs_done, imported.folder.config) == (3, TINY)
    assert_close(load_run(tmp_path / "run").params, run.params, atol=1e-6)
    result = train(replace(imported.folder.config, epochs=4), tmp_path / "run", resume=True)
    ours, expected = load_run(tmp_path / "run", "last"), load_run(whole, "last")
    assert ours.step == expected.step == 60
    assert_close(ours.params, expected.params, atol=1e-5)
    assert_close(ours.opt_state, expected.opt_state, atol=1e-5)
    assert [metrics.epoch for metrics in result.epochs] == [4]


@pytest.mark.slow
def test_metrics_of_a_partial_epoch_are_means_over_its_steps(run, exports, tmp_path):
    begin("tf1", exports / "tf1" / "model", TINY, tmp_path / "run", step=35)
    (metrics,) = train(TINY, tmp_path / "run", resume=True).epochs
    assert (metrics.epoch, metrics.step) == (3, 45)
    whole = {name: values[-1] for name, values in run.history().items()}
    assert metrics.train_loss < whole["train_loss"] < 1.5 * metrics.train_loss
    assert metrics.train_accuracy == pytest.approx(whole["train_accuracy"], abs=0.15)


@pytest.mark.slow
def test_imported_weights_can_be_the_best_on_validation(command_line, exports, tmp_path):
    config = replace(TINY, optimizer=replace(TINY.optimizer, learning_rate=0.5), epochs=6)
    begin("tf1", exports / "tf1" / "model", config, tmp_path / "run")
    done = command_line("train", "--resume", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "best on validation: the weights of step 45, which were imported" in done.stdout
    assert load_run(tmp_path / "run").step == 45


@pytest.mark.slow
def test_an_imported_run_without_its_checkpoint_is_refused(exports, tmp_path):
    begin("torch", path_of("torch", exports), TINY, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(RunError, match=r"began with weights that are not in its folder any more \(.*Import them again"):
        train(TINY, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_an_import_that_fails_leaves_nothing_and_can_be_tried_again(exports, tmp_path, monkeypatch):
    for trouble, message in (
        (KeyboardInterrupt(), "^$"),
        (OSError(28, "No space left on device"), "cannot be written to: .*No space.*Nothing is left"),
    ):

        def fail(*_, trouble=trouble):
            raise trouble

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_atomically", fail)
            with pytest.raises((KeyboardInterrupt, RunError), match=message):
                begin("tf1", exports / "tf1" / "model", TINY, tmp_path / "run")
    begin("tf1", exports / "tf1" / "model", TINY, tmp_path / "run")
    assert load_run(tmp_path / "run").step == 45


def test_export_keeps_the_latest_checkpoint_of_a_folder(run, tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "mine-3"\n')
    run.export("tf1", tmp_path / "ours")
    assert (tmp_path / "checkpoint").read_text() == 'model_checkpoint_path: "mine-3"\n'
    data = tmp_path / "ours.data-00000-of-00001"
    before = data.read_bytes()
    run.export("tf1", tmp_path / "ours", overwrite=True)
    assert data.read_bytes() == before


@pytest.mark.slow
def test_epochs_of_the_config_are_raised_to_those_done_before_the_import(exports, tmp_path):
    imported = begin("tf1", exports / "tf1" / "model", TINY, tmp_path / "run", step=1000)
    assert (imported.folder.config.epochs, imported.epochs_done) == (67, 66)
    assert read_run_folder(tmp_path / "run").config.epochs == 67
    with pytest.raises(UserError, match=r"epochs is .* but data of this size can be trained on for"):
        begin("tf1", exports / "tf1" / "model", TINY, tmp_path / "longer", step=10**8)
    assert not (tmp_path / "longer").exists()


def test_a_model_for_images_of_other_heights_is_refused(exports, tmp_path):
    with pytest.raises(UserError, match=r"take 14 rows of 28 numbers and .* has 28 rows of 28 and 10"):
        begin("keras", path_of("keras", exports), TINY, tmp_path / "run", time_steps=14)
    assert not (tmp_path / "run").exists()


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("torch", "keras", "flax", "safetensors")]


@pytest.mark.parametrize("format_name", ["tf1", *OTHERS])
def test_import_makes_a_run_of_every_file(command_line, run, evaluations, exports, tmp_path, format_name):
    path = path_of(format_name, exports)
    listed = command_line("import", format_name, path, "--list")
    assert listed.returncode == 0, listed.stderr
    assert "float32" in listed.stdout
    done = command_line("import", format_name, path, "--run-dir", tmp_path / "run", *OPTIONS)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines.pop(0) == f"imported from {format_name}: {path}"
    assert lines[0].startswith("LSTM 28 -> 4: ")
    assert lines[2].startswith("the last output")
    assert lines[2].endswith("see --pooling)") == (format_name != "safetensors")
    assert lines[3].startswith("output 6 -> 10 classes: ")
    steps = 45 if format_name == "tf1" else 0
    assert ("the state of Adam after 45 steps" in lines) == bool(steps)
    assert ("no optimizer state: Adam starts from zero" in lines) == (not steps)
    for name in ("validation", "test"):
        assert f"{name} {evaluations[name].accuracy:.2%}" in lines
    assert "training would continue with learning rate 0.01 and batches of 64; for others" in done.stdout
    assert "validation: 200 of the training examples, as the data have no validation split" in lines
    assert f"evaluate it with: lstm-mnist evaluate {tmp_path / 'run'}" in done.stdout
    imported = load_run(tmp_path / "run")
    assert imported.step == steps
    assert_close(imported.params, run.params, atol=1e-6 if steps else 0)
    assert imported.folder.initial_weights == f"imported from {format_name}: {path}"
    assert checkpoint.find_damage(imported.folder.checkpoints / f"{steps:08d}") is None


def test_import_says_which_accuracies_may_be_of_images_that_the_model_was_trained_on(command_line, exports, tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels)
    options = ["--source", tmp_path / "data.npz", "--batch-size", "10", "--devices", "1"]
    done = command_line("import", "torch", path_of("torch", exports), "--run-dir", tmp_path / "run", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "test: 4 of the training examples, as the data have no test split\n" in done.stdout
    assert "validation: 3 of the training examples, as the data have no validation split\n" in done.stdout


@pytest.mark.slow
def test_options_before_the_positional_arguments(command_line, exports, tmp_path):
    options = ["--ignore", "*/Adam*", "--ignore", "beta*", "--layer", CELL.format(0), "--layer", CELL.format(1)]
    path = path_of("tf1", exports)
    done = command_line("import", *options, "tf1", path, "--run-dir", tmp_path / "run", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "no optimizer state" in done.stdout
    turned = command_line("import", *options[:4], *options[6:], *options[4:6], "tf1", path, "--run-dir", tmp_path / "b")
    assert "takes 28 features, but the layer before gives 6" in turned.stderr


@pytest.mark.slow
def test_a_graph_becomes_a_run_with_its_network(command_line, tmp_path):
    from lstm_mnist_jax.interop import export

    network = ModelConfig(hidden_features=(4, 3), pooling="mean", dense_features=(6,), dense_activation="relu")
    params = drawn(network, (28, 28), 10)
    path = tmp_path / "model.onnx"
    path.write_bytes(export.to_onnx(params, (28, 28), (), network))
    done = command_line("import", "onnx", path, "--run-dir", tmp_path / "run", *OPTIONS)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the input is taken to be integers of 0 to 255" in done.stdout
    assert "dense 3 -> 6, relu" in done.stdout
    assert "a low accuracy" not in done.stdout  # as the graph determines its inputs
    run = load_run(tmp_path / "run")
    assert run.folder.config.model == network
    assert_close(run.params, params, atol=0)
    floats = FIXTURES / "onnx" / "last.onnx"
    refused = command_line("import", "onnx", floats, "--run-dir", tmp_path / "other", "--input-mean", "0.1", *OPTIONS)
    assert "The weights take 6 rows of 5 numbers and have 3 classes, but IDX files" in refused.stderr


@pytest.mark.slow
def test_export_writes_what_python_writes(command_line, run, exports, tmp_path):
    for name in formats.EXPORT_ENDINGS:
        path = path_of(name, tmp_path / "new")
        done = command_line("export", name, run.folder.path, path, "--checkpoint", "last")
        assert (done.returncode, done.stderr) == (0, "")
        cells = ", for cells with forget_bias 1" if name == "tf1" else ""
        assert done.stdout == f"{path}: the model of step 45 of {run.folder.path}, for {name}{cells}\n"
    assert path_of("torch", tmp_path / "new").read_bytes() == path_of("torch", exports).read_bytes()


@pytest.mark.slow
def test_a_run_of_a_sweep_is_exported_with_its_own_adam(command_line, tiny_sweep, tmp_path):
    path = tmp_path / "model"
    done = command_line("export", "tf1", tiny_sweep / "2", path, "--checkpoint", "last")
    assert done.returncode == 0, done.stderr
    assert f"the model of step 45 of {tiny_sweep}/2, for tf1" in done.stdout
    run, imported = load_run(tiny_sweep / "2", "last"), formats.read("tf1", path)
    assert imported.step == 45
    assert_close(imported.params, run.params, 1e-6)
    assert_close(imported.adam.to_optax().mu, optax.tree.get(run.opt_state, "mu"), 1e-6)
    other = load_run(tiny_sweep / "1", "last")
    assert not np.allclose(other.params["dense"]["kernel"], imported.params["dense"]["kernel"], atol=1e-3)


def test_the_best_checkpoint_is_exported_unless_another_is_named(run, tmp_path):
    for name in ("best", 15, "last"):
        model = load_run(run.folder.path, name)
        model.export("torch", tmp_path / f"{name}.safetensors")
        found = formats.read("torch", tmp_path / f"{name}.safetensors").params
        assert_close(found, model.params, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "tf1", "{tf1}/tutorial"], "Give --run-dir, the folder for the run, or --list"),
        (["import", "tf1", "{tf1}/tutorial", "--run-dir", "{tmp}/run", "--list"], "leave out --run-dir"),
        (["import", "tf1", "{tf1}/tutorial", "--list", "--ignore", "x*"], "Nothing is called 'x*'"),
        (["export", "onnx", "{run}", "{tmp}/m.onnx", "--like", "{tf1}/tutorial"], "leave out --like"),
        (["export", "tf1", "{run}", "{tmp}/m.ckpt.index"], "names one of a checkpoint's files"),
        (["export", "tf1", "{run}", "."], "expected NAME, the prefix of a checkpoint"),
        (["export", "tf1", "{run}", "{tmp}/m", "--like", "{tf1}/tutorial"], "is [9, 16] in the checkpoint whose names"),
        (["export", "tf1", "{run}", "{tmp}/m", "--like", "{tf1}/one_layer"], "has 1 LSTM layers, this model 2"),
        (["import", "tf1", "{tmp}/model.ckpt", "--list"], "not a TensorFlow checkpoint: there is no model.ckpt.index"),
        (["import", "tf1", "{tf1}/gru", "--run-dir", "{tmp}/run"], "There is no LSTM cell"),
        (
            ["import", "tf1", "{tf1}/tutorial", "--run-dir", "{tmp}/run"],
            "take rows of 5 numbers and have 3 classes, but MNIST, embedded in the package has rows of 28 and 10",
        ),
        (["import", "torch", "{tmp}/model.pt", "--run-dir", "{tmp}/run"], "model.pt cannot be read: No such file"),
        (["import", "torch", "{exports}/torch/model.safetensors", "--run-dir", "{run}"], "already holds a run"),
        (["import", "torch", "{exports}/onnx/model.onnx", "--run-dir", "{tmp}/run"], "nor .safetensors"),
        (["export", "onnx", "{tmp}/none", "{tmp}/model.onnx"], "is not a run folder"),
        (["export", "onnx", "model.onnx", "{run}"], "The run comes first, the file to write after it: lstm-mnist exp"),
        (
            ["import", "onnx", "{exports}/onnx/model.onnx", "--run-dir", "{tmp}/run", "--input-mean", "0.1"],
            "The file determines what its inputs are",
        ),
        (
            ["import", "onnx", "{exports}/onnx/model.onnx", "--run-dir", "{tmp}/run", "--pooling", "max"],
            "has last. Leave it out",
        ),
        (["import", "huggingface", "{run}", "--run-dir", "{tmp}/run"], "config.json is without a model_type"),
        (
            ["export", "torch", "{run}", "{tmp}/m.pt"],
            'For m.pt: torch.save(safetensors.torch.load_file("m.safetensors"), "m.pt").',
        ),
        (["export", "onnx", "{run}", "{tmp}/model.pb"], "has another ending than files for onnx: expected NAME.onnx"),
        (["export", "tf1", "{run}", "{exports}/tf1/model"], "exists already. Choose another name, or replace it with"),
        (["export", "torch", "{run}", "/proc/model.safetensors"], "cannot be written"),
        (["export", "torch", "{run}", "/etc/passwd/model.safetensors"], "written: /etc/passwd is not a folder"),
        (["export", "onnx", "{run}", "{tmp}/" + 250 * "a" + ".onnx"], "cannot be written: File name too long"),
        (["import", "tf1", "{tmp}/" + 300 * "a", "--list"], "cannot be read: File name too long"),
    ],
)
def test_errors_are_one_line_and_write_no_files(command_line, run, exports, tmp_path, arguments, message):
    places = {"tf1": TF1, "tmp": tmp_path, "exports": exports, "run": run.folder.path}
    done = command_line(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_drawn_weights_are_recorded_in_the_config_file(run):
    contents = json.loads((run.folder.path / "config.json").read_text())
    assert contents["initial_weights"] is None


@pytest.mark.slow
def test_weights_from_python_can_begin_a_run(tmp_path, exports):
    from safetensors.numpy import load_file

    params = torch.from_state_dict(load_file(path_of("torch", exports)))
    imported = begin_run(params, replace(TINY, epochs=1), tmp_path / "run", origin="here")
    assert len(train(imported.folder.config, tmp_path / "run", resume=True).epochs) == 1


def test_the_command_line_has_all_formats():
    import typing

    from lstm_mnist_jax.cli import main as cli
    from lstm_mnist_jax.cli.interop import ExportArguments, ImportArguments

    for arguments, known in ((ImportArguments, formats.IMPORT_FORMATS), (ExportArguments, formats.EXPORT_ENDINGS)):
        (positional, *_) = typing.get_args(typing.get_type_hints(arguments)["format"]) or [None]
        names = typing.get_args(typing.get_type_hints(arguments)["format"])
        assert set(names or typing.get_args(positional)) == set(known)
        assert all(name in cli.program_help() for name in known)
