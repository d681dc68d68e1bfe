"""Whole runs: the files of a run folder, resuming to the last bit, signals, kills, full disks, divergence."""

import dataclasses
import gzip
import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import jax
import jaxlib
import numpy as np
import programs
import pytest
from programs import Program
from runs import TINY, TINY_OPTIONS

import lstm_mnist_jax
from lstm_mnist_jax import load_run, train
from lstm_mnist_jax.config import AugmentationConfig, Execution, ModelConfig, OptimizerConfig
from lstm_mnist_jax.data import load
from lstm_mnist_jax.errors import ConfigError, RunError, UserError
from lstm_mnist_jax.training import TrainingProgram, checkpoint, make_program, member_state, run_folder
from lstm_mnist_jax.training.mesh import make_mesh
from lstm_mnist_jax.training.metrics import read_metrics
from lstm_mnist_jax.training.program import LatestAndBest
from lstm_mnist_jax.training.run_folder import FORMAT, lock, read_run_folder

TIMES = ("seconds", "examples_per_second")


def outcome(run_dir):
    """All that a run leaves and that must not depend on interruptions: final parameters, metrics, the best."""
    last = load_run(run_dir, "last")
    epochs = [
        {name: value for name, value in dataclasses.asdict(metrics).items() if name not in TIMES}
        for metrics in read_metrics(Path(run_dir) / "metrics.jsonl")
    ]
    best = load_run(run_dir, "best")
    leaves = [np.asarray(leaf).tobytes() for run in (last, best) for leaf in jax.tree.leaves(run.params)]
    return last.step, best.step, epochs, leaves


@pytest.fixture
def run_dir(tiny_run, tmp_path):
    """A copy of the tiny run, which may be changed."""
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def stop_at(monkeypatch):
    """Makes the runs of this test get SIGTERM at a step."""
    run_steps, stop = TrainingProgram.run_steps, None

    def run_some(self, state, n):
        done = int(state.step[0])
        state = run_steps(self, state, n if stop is None or stop <= done else min(n, stop - done))
        if int(state.step[0]) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return state

    def choose(step):
        nonlocal stop
        stop = step

    monkeypatch.setattr(TrainingProgram, "run_steps", run_some)
    return choose


def test_a_run_folder_holds_config_data_environment_and_metrics(tiny_run):
    epochs = read_metrics(tiny_run / "metrics.jsonl")
    assert [metrics.epoch for metrics in epochs] == [1, 2, 3]
    assert [metrics.step for metrics in epochs] == [15, 30, 45]  # 1000 // 64 steps an epoch
    assert epochs[-1].train_loss < epochs[0].train_loss
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    required = {"step", "epoch", "train_loss", "validation_accuracy", "test_accuracy", "seconds"}
    assert all(required <= line.keys() for line in lines)
    assert read_run_folder(tiny_run).config == TINY
    contents = json.loads((tiny_run / "config.json").read_text())
    assert contents["environment"]["jax"] == jax.__version__
    assert contents["data"]["class_names"] == list("0123456789")
    assert load_run(tiny_run).step == best_of(epochs).step


@pytest.mark.slow
def test_a_network_with_dense_layers_and_other_activations_is_trained_and_resumed(command_line, tmp_path):
    options = ["--dense-features", "5", "--activation", "relu", "--dropout-rate", "0.1", "--pooling", "all"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = command_line("train", *TINY_OPTIONS, *options, "--epochs", "2", "--run-dir", whole)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "LSTM 4 (relu, sigmoid) -> LSTM 6 (relu, sigmoid) -> all steps -> dense 5 (relu) -> 10 classes" in done.stdout
    )
    assert done.stdout.count("slower than the layers with tanh and sigmoid") == 1
    config = read_run_folder(whole).config
    train(dataclasses.replace(config, epochs=1), parts)
    train(config, parts, resume=True)
    assert outcome(parts) == outcome(whole)
    assert load_run(whole).params["dense_hidden"][0]["kernel"].shape == (28 * 6, 5)


def best_of(epochs):
    return max(epochs, key=lambda metrics: metrics.validation_accuracy)


def test_tensorboard_gets_every_epoch(tiny_run):
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401  (the writer that made the files)
    from tensorboardX.proto import event_pb2

    values = {}
    for file in (tiny_run / "tensorboard").iterdir():
        data = file.read_bytes()
        while data:  # TFRecord: length, checksum, event, checksum
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                values.setdefault(value.tag, {})[event.step] = value.simple_value
    assert values["test/accuracy"].keys() == {15, 30, 45}
    assert values["train/loss"][15] == pytest.approx(read_metrics(tiny_run / "metrics.jsonl")[0].train_loss)


@pytest.mark.slow
def test_stopped_by_signals_made_longer_and_resumed_it_is_the_same_run(tiny_run, tmp_path, stop_at):
    """Stopped within an epoch, on its end, just after it, and just before the end of the run."""
    run_dir = tmp_path / "run"

    def stopped_at(step, config):
        stop_at(step)
        stopped = train(config, run_dir, resume=run_dir.exists())
        assert stopped.stopped_by == signal.SIGTERM
        assert checkpoint.finished_steps(run_dir / "checkpoints")[-1] == step

    shorter = dataclasses.replace(TINY, epochs=2)
    for step in (7, 15, 16):
        stopped_at(step, shorter)
    stop_at(None)
    complete = train(shorter, run_dir, resume=True)
    assert complete.trained
    assert complete.stopped_by is None
    assert [metrics.epoch for metrics in complete.epochs] == [1, 2]
    stopped_at(44, TINY)
    stop_at(None)
    longer = train(TINY, run_dir, resume=True)
    assert longer.trained
    assert [metrics.epoch for metrics in longer.epochs] == [1, 2, 3]
    assert longer.best == best_of(longer.epochs)
    assert outcome(run_dir) == outcome(tiny_run)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_is_the_same_run(tmp_path):
    """Kills while steps are made and checkpoints written, until four resumed runs were killed too."""
    config = dataclasses.replace(TINY, epochs=20)
    train(config, tmp_path / "whole")
    options = ["train", *TINY_OPTIONS, "--epochs", config.epochs, "--checkpoint-minutes", 1e-6]
    moments = random.Random(0)
    run_dir, resumed_at = tmp_path / "killed", []
    while len(resumed_at) < 4:
        program = Program(["train", "--resume", run_dir] if run_dir.exists() else [*options, "--run-dir", run_dir])
        ready, epochs = False, moments.randint(0, 1)  # it is killed after so many, within the next
        for line in program.stdout:
            if line.startswith("resumed at step"):
                resumed_at.append(int(line.split()[3].rstrip(":").replace(",", "")))
            ready = ready or "ready in" in line
            epochs -= line.startswith("epoch")
            if ready and epochs <= 0:
                break
        time.sleep(moments.uniform(0, 0.15))
        assert program.poll() is None, f"over before it was killed, having resumed at {resumed_at}"
        program.kill()
        program.communicate()
    assert resumed_at == sorted(resumed_at)
    assert train(config, run_dir, resume=True).trained
    assert outcome(run_dir) == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_prints_the_command_to_resume(tmp_path, number):
    program = Program(["train", *TINY_OPTIONS, "--epochs", 100_000, "--run-dir", tmp_path / "run"])
    for line in program.stdout:
        if line.startswith("epoch"):
            break
    program.send_signal(number)
    output, errors = program.communicate(timeout=60)
    assert program.returncode == 128 + number, errors
    assert errors == ""
    assert output.endswith(f"continue with:\n  lstm-mnist train --resume {tmp_path / 'run'}\n")
    assert checkpoint.newest_sound_step(tmp_path / "run" / "checkpoints") is not None


def test_resuming_over_damaged_checkpoints_reports_them_and_gives_the_same_result(tiny_run, run_dir, capsys):
    from rich.console import Console

    for step in (30, 45):
        (run_dir / "checkpoints" / f"{step:08d}" / "record.json").write_text("{}")
    train(TINY, run_dir, resume=True, console=Console())
    printed = capsys.readouterr().out
    assert "Checkpoint 00000045 has a damaged file, record.json; it is set aside as damaged-00000045." in printed
    assert "resumed at step 15: 1 of 3 epochs are done" in printed
    assert outcome(run_dir) == outcome(tiny_run)


def test_a_resumed_run_prints_what_else_decides_its_last_bits(run_dir, capsys):
    from rich.console import Console

    contents = json.loads((run_dir / "config.json").read_text())
    former = {"x64": "True", "devices": "8", "matmul_precision": "default", "jaxlib": "0.9"}
    (run_dir / "config.json").write_text(json.dumps(contents | {"environment": contents["environment"] | former}))
    train(TINY, run_dir, resume=True, console=Console())
    printed = capsys.readouterr().out
    for line in (
        "jax_enable_x64 was True, is False",
        f"number of devices was 8, is {jax.device_count()}",
        "jax_default_matmul_precision was default, is highest",
        f"version of jaxlib was 0.9, is {jaxlib.__version__}",
        "The result may differ in rounding from that of a run without interruption.",
    ):
        assert f"\n{line}\n" in printed
    assert printed.count(" was ") == 4
    # It was complete: what trained it stays on record.
    assert json.loads((run_dir / "config.json").read_text())["environment"]["devices"] == "8"


def test_every_part_of_the_environment_that_decides_the_last_bits_is_compared():
    now = run_folder.environment(2)
    assert run_folder.environment_changes(now, now) == []
    assert run_folder.environment_changes({}, now) == []  # of an older version
    for name in run_folder.DECISIVE:
        found = run_folder.environment_changes(now | {name: "other"}, now)
        assert len(found) == 2, name
        assert found[0].endswith(f" was other, is {now[name] or 'not set'}")
    changed = run_folder.environment_changes(now | {"recurrence": "other", "kernel": "other"}, now)
    assert len(changed) == 2  # of which one follows from the other
    assert run_folder.environment(1) | {"date": ""} != now | {"date": ""}


def test_on_epoch_gets_the_metrics_and_an_exception_in_it_stops_the_run_saved(tiny_run, tmp_path):
    seen = []

    def on_epoch(metrics, run_dir):
        seen.append((metrics, run_dir))
        if len(seen) == 2:
            raise KeyError("full")

    with pytest.raises(RunError, match=r"on_epoch failed with KeyError: 'full', after epoch 2\. .* saved in") as caught:
        train(TINY, tmp_path, on_epoch=on_epoch)
    assert isinstance(caught.value.__cause__, KeyError)
    assert checkpoint.newest_sound_step(tmp_path / "checkpoints") == 30
    train(TINY, tmp_path, resume=True, on_epoch=on_epoch)
    assert [metrics for metrics, _ in seen] == read_metrics(tmp_path / "metrics.jsonl")
    assert {path for _, path in seen} == {tmp_path}
    assert outcome(tmp_path) == outcome(tiny_run)


@pytest.mark.slow
def test_without_any_sound_checkpoint_it_starts_again(tiny_run, run_dir):
    for sums in run_dir.rglob(checkpoint.SUMS):
        sums.write_text("")
    assert train(TINY, run_dir, resume=True).trained
    assert outcome(run_dir) == outcome(tiny_run)


@pytest.mark.slow
def test_of_equal_epochs_the_earliest_is_the_best(tmp_path):
    unchanged = dataclasses.replace(TINY, optimizer=OptimizerConfig(learning_rate=1e-30))
    result = train(unchanged, tmp_path / "run")
    assert len({metrics.validation_accuracy for metrics in result.epochs}) == 1
    best = load_run(tmp_path / "run")
    assert (result.best.epoch, best.step) == (1, 15)
    # The checkpoint before a damaged one holds the same best weights.
    (tmp_path / "run" / "checkpoints" / "00000045" / "record.json").write_text("{}")
    again = load_run(tmp_path / "run")
    assert again.step == 15
    jax.tree.map(np.testing.assert_array_equal, again.params, best.params)
    with pytest.raises(RunError, match="has a damaged file"):
        load_run(tmp_path / "run", "last")


@pytest.mark.slow
def test_a_smaller_patience_ends_a_run_that_is_resumed_within_an_epoch(tmp_path, stop_at):
    unchanged = dataclasses.replace(TINY, epochs=6, optimizer=OptimizerConfig(learning_rate=1e-30))
    stop_at(50)
    assert train(unchanged, tmp_path / "run").stopped_by == signal.SIGTERM
    stop_at(None)
    result = train(dataclasses.replace(unchanged, early_stopping_patience=2), tmp_path / "run", resume=True)
    assert ([metrics.epoch for metrics in result.epochs], result.best.epoch) == ([1, 2, 3, 4], 1)
    assert load_run(tmp_path / "run", "15").step == 15  # the best weights, by their step
    with pytest.raises(RunError, match=r"has no checkpoint '16'; expected best, last, or one of the steps"):
        load_run(tmp_path / "run", "16")


def test_a_run_cannot_become_shorter_than_it_is(run_dir):
    with pytest.raises(ConfigError, match=r"epochs is 2, but .* was trained for 3 already. Use --epochs 3 or more"):
        train(dataclasses.replace(TINY, epochs=2), run_dir, resume=True)
    assert read_run_folder(run_dir).config == TINY


def test_metrics_survive_a_damaged_line(run_dir):
    file = run_dir / "metrics.jsonl"
    first, *others = file.read_text().splitlines()
    lines = [first.replace("15", '"x"'), *others]
    file.write_bytes(b'\xff{"step": "x"}\n' + "".join(line + "\n" for line in lines).encode())
    result = train(TINY, run_dir, resume=True)
    assert [metrics.epoch for metrics in result.epochs] == [2, 3]


def test_a_path_where_orbax_cannot_save_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"has a '\[' in its path"):
        train(TINY, tmp_path / "run[1]")


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_damaged_checkpoint_is_refused(run_dir, name):
    (run_dir / "checkpoints" / "00000045" / "record.json").write_text("")
    with pytest.raises(RunError, match=r"has a damaged file, record\.json\. Use --checkpoint 30 or 15\."):
        load_run(run_dir, name)


def test_a_resumed_run_keeps_its_config(run_dir):
    changed = dataclasses.replace(TINY, batch_size=32, optimizer=OptimizerConfig(learning_rate=0.1))
    before = outcome(run_dir)
    with pytest.raises(ConfigError) as caught:
        train(changed, run_dir, resume=True)
    assert "batch_size is 64 in the run, 32 was asked for" in str(caught.value)
    assert "optimizer.learning_rate is 0.01 in the run, 0.1 was asked for" in str(caught.value)
    assert outcome(run_dir) == before


@pytest.mark.slow
def test_a_resumed_run_keeps_its_data(run_dir, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(Path(lstm_mnist_jax.__file__).parent / "data" / "mnist", moved)
    config = dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, source=str(moved)))
    assert not train(config, run_dir, resume=True).trained
    labels = bytearray(gzip.decompress((moved / "train-labels-idx1-ubyte.gz").read_bytes()))
    labels[8 + 999] ^= 1  # behind the header: an example that it is trained on
    (moved / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, compresslevel=1))
    with pytest.raises(RunError, match="The data are not those"):
        train(config, run_dir, resume=True)
    with pytest.raises(UserError, match="The data are not those"):
        load_run(run_dir).evaluate()


@pytest.mark.slow
def test_a_run_folder_in_use_is_refused(tmp_path):
    with lock(tmp_path), pytest.raises(RunError, match="is in use by another run"):
        train(TINY, tmp_path)
    assert train(dataclasses.replace(TINY, epochs=1), tmp_path).trained


def test_a_folder_with_something_in_it_is_refused_and_kept(tiny_run, tmp_path):
    with pytest.raises(RunError, match=r"already holds a run\. Continue it with --resume"):
        train(TINY, tiny_run)
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(RunError, match="holds other files"):
        train(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="is a file, expected the name of a folder"):
        train(TINY, tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "has no config.json"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 99, "environment": {"lstm-mnist-jax": "9.9"}}', "is a run folder of format 99.*version 9.9"),
        (
            f'{{"format": {FORMAT}, "config": {{}}, "data": {{}}}}',
            "damaged or of another version: the config lacks augmentation",
        ),
    ],
)
def test_folders_without_a_valid_config_are_refused(tmp_path, contents, message):
    if contents is not None:
        (tmp_path / "config.json").write_text(contents)
    for use in (load_run, lambda path: train(TINY, path, resume=True)):
        with pytest.raises(RunError, match=message):
            use(tmp_path)


def test_divergence_stops_names_the_step_and_keeps_the_last_good_checkpoint(run_dir, monkeypatch):
    sound = checkpoint.load_state

    def poisoned(path, abstract_state):
        states = sound(path, abstract_state)
        states.newest.params["dense"]["bias"] = states.newest.params["dense"]["bias"] * np.nan
        return states

    monkeypatch.setattr(checkpoint, "load_state", poisoned)
    with pytest.raises(RunError, match=r"not a finite number any more at step 45 \(epoch 4\).* that of step 45"):
        train(dataclasses.replace(TINY, epochs=4), run_dir, resume=True)
    monkeypatch.undo()
    assert checkpoint.newest_sound_step(run_dir / "checkpoints") == 45


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits on file sizes")
@pytest.mark.parametrize(
    ("bytes_a_file", "message"),
    [
        (300, "run cannot be written to"),
        (3_300, "could not be written"),
        (12_000, "The checkpoint of step 15 could not be"),
    ],
)
def test_a_full_disk_is_an_error_and_loses_no_checkpoint(tmp_path, bytes_a_file, message):
    """Files that cannot grow stand for a full disk: the config, then the metrics, then the checkpoint fails."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_a_file}, {bytes_a_file}));"
    limit += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    options = ["train", *TINY_OPTIONS, "--hidden-features", "32", "--epochs", 1, "--no-compilation-cache"]
    options += ["--validation-examples", 100]  # too few for novelty.npz, which is larger than these files
    done = programs.run(
        [*options, "--run-dir", tmp_path / "run"], code=f"{limit} from lstm_mnist_jax.cli.main import main; main()"
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    begun = (tmp_path / "run" / "config.json").exists()
    data = dataclasses.replace(TINY.data, validation_examples=100)
    config = dataclasses.replace(TINY, epochs=1, data=data, model=ModelConfig(hidden_features=(32,)))
    train(config, tmp_path / "run", resume=begun)
    assert load_run(tmp_path / "run", "last").step == 15


@pytest.mark.slow
def test_it_trains_in_64_bit_mode(tmp_path):
    done = programs.run(
        ["train", *TINY_OPTIONS, "--epochs", 1, "--run-dir", tmp_path / "run"],
        code="import jax; jax.config.update('jax_enable_x64', True); from lstm_mnist_jax.cli.main import main; main()",
    )
    assert done.returncode == 0, done.stderr
    assert load_run(tmp_path / "run").step == 15


def test_predictions_are_those_that_the_evaluation_counts(tiny_run):
    run = load_run(tiny_run)
    test = load(**vars(TINY.data)).test
    labels, probabilities = run.predict(test.images[:1_500])
    assert probabilities.shape == (1_500, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(run.predict(test.images[:3].astype(np.float64) / 255)[0], labels[:3])
    assert run.predict(test.images[:0])[1].shape == (0, 10)
    everything, _ = run.predict(test.images)
    accuracy = best_of(read_metrics(tiny_run / "metrics.jsonl")).test_accuracy
    assert (everything == test.labels).mean() == run.evaluate()["test"].accuracy == accuracy


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((28, 28), np.uint8),
        np.zeros((1, 28, 27), np.uint8),
        np.zeros((1, 28, 28), np.int64),
        np.full((1, 28, 28), 255.0),
        np.full((1, 28, 28), -0.1),
        np.full((1, 28, 28), np.nan),
        np.array([["a"]]),
    ],
)
def test_arrays_that_are_not_images_are_refused(tiny_run, images):
    with pytest.raises(UserError, match="Images"):
        load_run(tiny_run).predict(images)


@pytest.mark.parametrize("name", ["worst", 16, "1e3"])
def test_missing_checkpoints_are_refused(tiny_run, name):
    with pytest.raises(
        RunError, match=r"has no checkpoint .* expected best, last, or one of the steps \[15, 30, 45\]"
    ) as caught:
        load_run(tiny_run, name)
    assert str(tiny_run) in str(caught.value)
    assert load_run(tiny_run, 30).step == load_run(tiny_run, "30").step == 30


RECIPE = dataclasses.replace(
    TINY,
    batch_doubling_epochs=(1,),
    label_smoothing=0.1,
    model=ModelConfig("permuted", sequence_length=28, permutation_seed=5, hidden_features=(4, 6)),
    optimizer=OptimizerConfig(weight_decay=0.01, ema_decay=0.9, clip_norm=1.0, schedule="cosine"),
    augmentation=AugmentationConfig(rotation_degrees=10.0, shift_pixels=1.0, elastic_pixels=0.5),
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The result of a run with every option, never interrupted."""
    return train(RECIPE, tmp_path_factory.mktemp("recipe") / "run")


@pytest.mark.slow
def test_the_returned_result_is_that_of_the_folder(recipe):
    assert recipe.trained
    assert recipe.stopped_by is None
    assert recipe.epochs == read_metrics(recipe.run_dir / "metrics.jsonl")
    assert recipe.best == best_of(recipe.epochs)
    assert load_run(recipe.run_dir).step == recipe.best_step == recipe.best.step
    rates = [metrics.learning_rate for metrics in recipe.epochs]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.slow
def test_a_recipe_with_everything_resumes_to_the_last_bit(recipe, tmp_path, stop_at):
    stop_at(25)
    assert train(RECIPE, tmp_path / "part").stopped_by == signal.SIGTERM
    stop_at(None)
    train(RECIPE, tmp_path / "part", resume=True)
    assert outcome(recipe.run_dir) == outcome(tmp_path / "part")


@pytest.mark.slow
def test_the_ema_of_the_weights_is_evaluated_and_loaded(recipe):
    run = load_run(recipe.run_dir, "last")
    program = make_program([RECIPE], load(**vars(RECIPE.data)), make_mesh(Execution(), RECIPE.batch_size))
    path = checkpoint.checkpoint_path(recipe.run_dir / "checkpoints", run.step)
    shapes = program.abstract_saved(1)
    state = member_state(checkpoint.load_state(path, LatestAndBest(shapes, shapes)).newest, 0)
    jax.tree.map(np.testing.assert_array_equal, run.params, state.average)
    found = run.evaluate()["test"].loss
    assert found == pytest.approx(recipe.epochs[-1].test_loss, rel=1e-5)
    without_mean = dataclasses.replace(run, params=state.params).evaluate()["test"].loss
    assert abs(without_mean - found) > 1e-3


@pytest.mark.slow
def test_a_run_over_permuted_pixels_holds_their_order(recipe):
    order = json.loads((recipe.run_dir / "permutation.json").read_text())
    assert order == np.random.RandomState(5).permutation(784).tolist()


@pytest.mark.slow
def test_early_stopping_once_validation_has_not_improved(tmp_path):
    patient = dataclasses.replace(TINY, epochs=60, early_stopping_patience=1)
    result = train(patient, tmp_path / "run")
    accuracies = [metrics.validation_accuracy for metrics in result.epochs]
    assert 1 < len(accuracies) < 60
    assert accuracies[-1] <= max(accuracies[:-1])
    assert accuracies[:-1] == sorted(accuracies[:-1])
    assert result.best.epoch == len(accuracies) - 1
    again = train(patient, tmp_path / "run", resume=True)
    assert not again.trained
    more = train(dataclasses.replace(patient, early_stopping_patience=2), tmp_path / "run", resume=True)
    assert more.trained


@pytest.mark.slow
def test_test_time_augmentation_is_the_mean_of_probabilities(tiny_run):
    run = load_run(tiny_run)
    test = load(**vars(TINY.data)).test
    padded = np.pad(test.images, [(0, 0), (1, 1), (1, 1)])
    moved = [run.predict(padded[:, y : y + 28, x : x + 28])[1] for y in range(3) for x in range(3)]
    probabilities = np.mean(moved, axis=0)
    found = run.evaluate(tta_shift_pixels=1)["test"]
    assert found.accuracy == pytest.approx((probabilities.argmax(axis=1) == test.labels).mean(), abs=2e-4)
    expected = -np.log(probabilities[np.arange(len(test)), test.labels]).mean()
    assert found.loss == pytest.approx(expected, rel=1e-3)
    for shifts in (-1, 8):
        with pytest.raises(ConfigError, match=f"tta_shift_pixels is {shifts}, expected 0 to 7 pixels"):
            run.evaluate(tta_shift_pixels=shifts)


def test_what_the_training_images_look_like_is_kept(tiny_run, tiny_sweep, tmp_path):
    """Once for a sweep; a resumed run of an older version gets it too."""
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "novelty.npz").unlink()
    assert load_run(tmp_path / "run").novelty is None
    train(TINY, tmp_path / "run", resume=True)
    images = load().test.images[:9]
    scores = [load_run(path).novelty.scores(images) for path in (tiny_run, tmp_path / "run", tiny_sweep / "1")]
    np.testing.assert_array_equal(scores[1], scores[0])
    np.testing.assert_array_equal(scores[2], scores[0])
    assert not (tiny_sweep / "1").exists()
