"""The command line, as a person meets it: in processes of its own where it trains or may not end well."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import programs
import pytest
from runs import TINY_OPTIONS

import lstm_mnist_jax
from lstm_mnist_jax import __version__, load
from lstm_mnist_jax.cli import main as cli
from lstm_mnist_jax.cli.parsing import OutputConsole, TrainingConsole
from lstm_mnist_jax.config import PRESETS, SWEEPABLE
from lstm_mnist_jax.progress import say
from lstm_mnist_jax.training import checkpoint, mesh

TINY_DATA = TINY_OPTIONS[:-3]
ONE_LAYER = [*TINY_DATA, "--hidden-features", "3"]
"""What compiles soonest; for sweeps, the program of other tests."""

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"


def interpreter(*words, **options):
    """Starts a Python interpreter of its own."""
    words = [sys.executable, *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **options)


def without_device_count():
    """The environment variables as a user has them: the program decides on the number of devices."""
    return {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"} | {
        "JAX_PLATFORMS": "cpu"
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of TINY_OPTIONS, which has a blank in its path, and what the command printed."""
    run_dir = tmp_path_factory.mktemp("cli") / "a run"
    done = programs.run(["train", "smoke", *TINY_OPTIONS, "--run-dir", run_dir])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return run_dir, done.stdout.splitlines()


@pytest.fixture(scope="module")
def run_dir(trained):
    return trained[0]


@pytest.fixture(scope="module")
def falling(tmp_path_factory):
    """The output of a run on one device with a learning rate schedule. The preset is the last word."""
    options = ["--epochs", "1", "--train-examples", "1000", "--hidden-features", "3", "--schedule", "cosine"]
    options += ["--devices", "1"]
    words = ["train", *options, "--run-dir", tmp_path_factory.mktemp("cli") / "falling", "smoke"]
    done = programs.run(words, env=without_device_count())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_lines_that_train_prints(trained):
    run_dir, lines = trained
    assert lines[:3] == [
        f"run {run_dir}",
        "MNIST, embedded in the package (1,000 train, 200 validation, 10,000 test)",
        "28 rows of 28 -> LSTM 4 -> LSTM 6 -> 10 classes",
    ]
    assert lines[3].startswith("862 parameters, on 2 x cpu; ready in ")
    for number in (1, 2, 3):
        assert lines[3 + number].startswith(f"epoch {number}/3  loss ")
    assert re.fullmatch(r"best on validation: epoch [123], validation [\d.]+%, test [\d.]+%", lines[7])
    assert re.fullmatch(
        r"95 % confidence interval of the test accuracy \(10,000 images\): [\d.]+ to [\d.]+ %", lines[8]
    )
    assert lines[9] == f"saved in {run_dir}; next steps:"
    assert len(lines) == 16
    assert max(len(line) for line in lines if str(run_dir) not in line) <= 80


@pytest.mark.slow
def test_commands_that_are_printed_after_training_succeed(command_line, trained, tmp_path):
    run_dir, lines = trained
    copy = tmp_path / "a run"
    shutil.copytree(run_dir, copy)
    suggested = [line.replace(str(run_dir), str(copy)) for line in lines if line.startswith("  lstm-mnist")]
    commands = [shlex.split(line, comments=True) for line in suggested]
    assert [command[:2] for command in commands] == [["lstm-mnist", verb] for verb in ("report", "predict", "train")]
    picture = tmp_path / "digit.npy"
    np.save(picture, load().test.images[0])
    for _, *words in commands:
        done = command_line(*(picture if word == "PICTURE" else word for word in words))
        assert done.returncode == 0, done.stderr
    assert "epoch 6/6" in done.stdout
    assert 100_000 < (copy / "report.html").stat().st_size < 1_000_000


@pytest.mark.slow
def test_no_resuming_is_suggested_where_the_learning_rate_has_fallen(falling):
    assert "lstm-mnist evaluate" in falling
    assert "--resume" not in falling


def test_help_names_every_command_and_preset(command_line):
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        done = command_line(*arguments)
        assert done.returncode == 0
        assert "extract" not in done.stdout
        for word in ("train [PRESET]", "evaluate RUN_DIR", "SWEEP/NUMBER or SWEEP/best", *PRESETS, *cli.COMMANDS):
            assert word in " ".join(done.stdout.split())


def test_python_m_prints_the_version():
    done = interpreter("-m", "lstm_mnist_jax", "--version")
    assert done.returncode == 0
    assert done.stdout.strip() == __version__


def leaf_names(values):
    return [name for key, value in values.items() for name in (leaf_names(value) if isinstance(value, dict) else [key])]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_of_the_config_is_an_option_with_the_presets_default(command_line, monkeypatch, preset):
    monkeypatch.setenv("COLUMNS", "200")
    done = command_line("train", preset, "--help-all")
    assert done.returncode == 0
    for name in [*leaf_names(asdict(PRESETS[preset])), "devices", "compilation_cache", "run_dir", "resume"]:
        assert f"--{name.replace('_', '-')}" in done.stdout, name
    assert f"(default: {PRESETS[preset].epochs})" in done.stdout
    assert f"(default: {','.join(map(str, PRESETS[preset].model.hidden_features))})" in done.stdout


def test_help_imports_no_jax():
    run = "from lstm_mnist_jax.cli.main import _run; _run(['--help'], False)"
    program = f"import sys; {run}; sys.exit('jax' in sys.modules)"
    assert interpreter("-c", program).returncode == 0


@pytest.mark.slow
def test_training_imports_nothing_that_it_does_not_use(tmp_path):
    program = (
        "import sys; from lstm_mnist_jax.cli.main import _run;"
        f"words = ['train', 'smoke', *{TINY_OPTIONS}, '--no-tensorboard', '--run-dir', {str(tmp_path / 'run')!r}];"
        "code = _run(words, False);"
        "heavy = {'tensorflow', 'torch', 'keras', 'tensorflow_datasets', 'tensorboardX', 'matplotlib', 'pandas'};"
        "sys.exit(code or ', '.join(sorted(heavy & sys.modules.keys())) or 0)"
    )
    done = interpreter("-c", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_classic_script_is_the_same_program_and_uses_all_cores_with_enough_examples(tmp_path):
    program = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = programs.run(["smoke", *TINY_OPTIONS], code=program, cwd=tmp_path, env=without_device_count())
    assert done.returncode == 0, done.stderr
    assert f"on {mesh._default_count(mesh.usable_cores(), PRESETS['smoke'].batch_size)} x cpu" in done.stdout
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("smoke-")
    assert (run_dir / "metrics.jsonl").exists()


@pytest.mark.slow
def test_the_preset_may_stand_last(falling):
    assert "(1,000 train, 500 validation, 10,000 test)" in falling  # `tutorial` has 5,000
    assert "LSTM 3 -> 10 classes" in falling


@pytest.mark.slow
def test_as_many_devices_are_used_as_are_asked_for(falling, tmp_path):
    assert "on 1 x cpu" in falling
    words = ["train", "smoke", *ONE_LAYER, "--devices", "4", "--run-dir", tmp_path / "run"]
    program = programs.Program(words, env=without_device_count())
    found = [line for line, _ in zip(program.stdout, range(5), strict=False)]
    program.kill()
    program.communicate()
    assert "on 4 x cpu" in found[3], found
    assert (mesh.usable_cores() < 4) == found[4].startswith("4 devices share "), found


def test_evaluate_prints_a_table(command_line, run_dir):
    done = command_line("evaluate", run_dir)
    assert done.returncode == 0, done.stderr
    for word in ("train", "validation", "test", "loss", "accuracy", "class 0", "class 9", "10,000"):
        assert word in done.stdout


def test_evaluate_prints_json(command_line, run_dir):
    done = command_line("evaluate", run_dir, "--json", "--checkpoint", "last")
    found = json.loads(done.stdout)
    metrics = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["step"] == 45
    assert found["splits"]["test"]["accuracy"] == metrics["test_accuracy"]
    assert found["splits"]["validation"]["loss"] == pytest.approx(metrics["validation_loss"])
    assert list(found["splits"]["train"]["accuracy_by_class"]) == list("0123456789")


def test_resuming_a_complete_run_prints_that_it_is_complete(command_line, run_dir):
    done = command_line("train", "--resume", run_dir)
    assert done.returncode == 0
    assert "complete after 3 epochs; train longer with --epochs" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trane"], "Unknown command 'trane'; expected one of train, sweep, evaluate"),
        (["trian"], "import, export, completion; did you mean train? See lstm-mnist --help."),
        (["Train"], "; did you mean train? See lstm-mnist --help."),
        (["eval", "here"], "; did you mean evaluate? See lstm-mnist --help."),
        (["smoke"], "'smoke' is a preset; the command comes first, such as lstm-mnist train smoke ... See lstm-mnist"),
        (
            ["--epochs", "3", "sweep"],
            "is an option; the command comes first, such as lstm-mnist sweep --epochs",
        ),
        (["train", "tutoral"], "Unknown preset 'tutoral'; expected one of tutorial, smoke"),
        (["train", "smok"], "; did you mean smoke?"),
        (
            ["train", "--epochs", "3", "ROWS_fast"],
            "fashion; did you mean rows-fast?",
        ),
        (["train", "epochs=3"], "'epochs=3' is no preset; for the option, write --epochs 3."),
        (["train", "smoke", "rows"], "There are two presets, smoke and rows; name one."),
        (["sweep", "smoke", "--seeds", "2", "rows"], "There are two presets, smoke and rows; name one."),
        (["train", "--epochs", "3", "smoke", "rows"], "There are two presets, smoke and rows; name one."),
        (["evaluate", "here", "there"], "Unexpected argument 'there'. See lstm-mnist evaluate --help."),
        (
            ["train", "smoke", "--learning-rate", "1", "2"],
            "--learning-rate takes one value: leave out '2'. Several values of an option are for lstm-mnist sweep.",
        ),
        (["sweep", "smoke", "--epochs", "1", "2"], "--epochs takes one value: leave out '2'."),
        (["train", "smoke", "--bidirectional", "true"], "--bidirectional takes no value: leave out 'true'."),
        (["evaluate", "here", "--json", "true"], "--json takes no value: leave out 'true'."),
        (["train", "--epoch", "3"], "Unknown option --epoch; did you mean --epochs? See lstm-mnist train --help-all."),
        (["train", "--Epochs=3"], "Unknown option --Epochs; did you mean --epochs?"),
        (["train", "--lr", "0.1"], "Unknown option --lr; did you mean --learning-rate?"),
        (["sweep", "-lr", "0.1", "0.2"], "Unknown option -lr; did you mean --learning-rate?"),
        (["train", "--hidden_size", "64"], "Unknown option --hidden_size; did you mean --hidden-features?"),
        (["train", "--bs", "32"], "Unknown option --bs; did you mean --batch-size?"),
        (
            ["report", "here", "--output=there"],
            "Unknown option --output; did you mean --into?",
        ),
        (["train", "-e", "3"], "Unknown option -e. Options are whole words with two dashes."),
        (["train", "--json"], "Unknown option --json. See lstm-mnist train --help-all."),
        (["train", "--epochs", "three"], "--epochs is 'three', expected an integer."),
        (["train", "--epochs"], "--epochs has no value, expected an integer."),
        (["train", "--train-examples", "all"], "--train-examples is 'all', expected an integer or None."),
        (
            ["predict"],
            "An argument is missing, expected lstm-mnist predict RUN_DIR IMAGE. See",
        ),
        (
            ["import", "Pytorch", "w.pt", "--run-dir", "there"],
            "format is 'Pytorch', expected one of tf1, torch",
        ),
        (["completion", "powershell"], "shell is 'powershell', expected one of bash, zsh, fish."),
        (["train", "--learning-rate=fast"], "--learning-rate is 'fast', expected a number."),
        (
            ["train", "--hidden-features", "32;64"],
            "is '32;64', expected integers with commas or spaces between",
        ),
        (
            ["train", "--hidden-features", "32", "smoke"],
            "is 'smoke', expected integers with commas or spaces between",
        ),
        (
            ["train", "--hidden-features=32,0"],
            "--hidden-features is (32, 0), expected one or more widths",
        ),
        (["train", "--cell", "LSTM"], "--cell is 'LSTM', expected one of lstm, gru, layer_norm_lstm, ur_lstm; did you"),
        (["predict", "a", "b", "--form", "digits"], "expected one of digit, whole, plain or None; did you mean digit?"),
        (["export", "pytorch", "a", "b"], "format is 'pytorch', expected one of tf1, torch, keras, flax, safetensors,"),
        (["train", "--epochs", "0"], "--epochs is 0, expected 1 or more"),
        (["train", "--dropout-rate", "1.5"], "--dropout-rate is 1.5, expected at least 0 and below 1."),
        (["train", "--validation-examples", "0"], "--validation-examples is 0, expected 1 or more."),
        (["train", "--devices", "0"], "--devices is 0, expected 1 or more, or None."),
        (["train", "--learning-rate", "-1"], "--learning-rate is -1.0, expected a number above 0"),
        (["train", "--hidden-features", "32", "0"], "--hidden-features is (32, 0)"),
        (["train", "--batch-size", "56000"], "there are only 55,000 training examples"),
        (["train", "--devices", "2", "--batch-size", "65"], "cannot be shared evenly by 2 devices"),
        (["train", "--source", "fashion"], "Unknown data source 'fashion'"),
        (["train", "--validation-examples", "60000"], "--validation-examples is 60,000"),
        (
            ["train", "--source", SCRIPT],
            f"Unknown data source '{SCRIPT}': files of this kind are not read. Expected 'mnist'",
        ),
        (["train", "--source", "minst"], "; did you mean mnist?"),
        (["train", "--resume", "nowhere"], "nowhere is not a run folder: there is no such folder"),
        (["train", "--resume", "here", "--run-dir", "there"], "--resume names the run folder already"),
        (["train", "smoke", "--resume", "here"], "leave out the preset"),
        (["train", "--run-dir", "run[1]"], "has a '[' in its path"),
        (["train", "--seeds", "0"], "seeds is 0, expected 1 or more"),
        (["train", "--num-processes", "2"], "--coordinator, --process-id must be given as well"),
        (["train", "--device-data-limit", "0"], "--device-data-limit is 0.0, expected GiB, above 0"),
        (["sweep", "smoke", "--learning-rate"], "--learning-rate has no value to try."),
        (["sweep", "--cell", "LSTM"], "--cell is 'LSTM', expected one of lstm, gru, layer_norm_lstm, ur_lstm; did you"),
        (["sweep", "tutoral"], "Unknown preset 'tutoral'; expected one of tutorial, smoke"),
        (["sweep", "--learning-rate", "0.1,0.2"], "expected values with blanks between: --learning-rate 0.1 0.2."),
        (["sweep", "--learning-rate", "fast"], "--learning-rate is 'fast', expected a number"),
        (["sweep", "--learning-rate", "uniform:0.1:1"], "set --samples, the number of settings to draw"),
        (["sweep", "--hidden-features", "32", "0"], "--hidden-features is (0,), expected one or more widths"),
        (["sweep", "--batch-size", "64", "56000"], "there are only 55,000 training examples"),
        (["sweep", "smoke", *ONE_LAYER, "--seeds", "2", "--memory-limit", "1e-6"], "2 runs at once would take"),
        (["sweep", "--resume", "nowhere"], "nowhere is not a run folder: there is no such folder"),
        (["extract", "nowhere", "--run-dir", "there"], "a run of a sweep is named by its path, SWEEP/NUMBER or"),
        (["extract"], "The command extract is gone since 0.5.0"),
        (["evaluate"], "An argument is missing, expected lstm-mnist evaluate RUN_DIR. See lstm-mnist evaluate --help."),
        (["evaluate", SCRIPT], "is not a run folder: it is a file. Give the folder of a run."),
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
        (["evaluate", "nowhere/best"], "nowhere/best is not a run folder: there is no such folder"),
        (["train", "--resume", "nowhere/3"], "nowhere/3 is not a run folder: there is no such folder"),
    ],
)
def test_user_errors_are_one_line_with_exit_code_2(command_line, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = command_line(*arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []  # a mistake leaves nothing behind


@pytest.mark.slow
def test_a_sweep_its_best_run_and_resuming_it_and_one_run_of_it(command_line, tiny_sweep, tmp_path):
    rates = ["--seeds", "2", "--learning-rate", "0.003", "0.02", "--hidden-features", "3", "4,6"]
    grid = tmp_path / "grid"
    done = command_line("sweep", "smoke", *TINY_DATA, *rates, "--run-dir", grid)
    assert done.returncode == 0, done.stderr
    epoch = r"epoch 1/3  loss [\d.]+ ± [\d.]+  validation +[\d.]+% ± [\d.]+  test .*\n  best of 2: learning_rate [\d.]+"
    assert re.search(epoch, done.stdout)
    assert "group 2 of 2: 4 runs at once of 2 settings, hidden_features 4,6" in done.stdout
    assert "8 of 8 runs done" in done.stdout
    assert f"the best run is {grid}/best" in done.stdout
    (suggested,) = re.findall("^  lstm-mnist (evaluate .*)$", done.stdout, re.MULTILINE)
    assert command_line(*shlex.split(suggested)).returncode == 0
    done = command_line("evaluate", grid / "5", "--json", "--checkpoint", "last")
    found = json.loads(done.stdout)
    lines = [json.loads(line) for line in (grid / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if (line["member"], line["epoch"]) == (5, 3)]
    assert found["step"] == 45
    assert found["splits"]["test"]["accuracy"] == last["test_accuracy"]
    before = {path.name for path in grid.iterdir()}
    done = command_line("train", "--resume", grid / "5", "--epochs", "4")
    assert done.returncode == 0, done.stderr
    assert "resumed at step 45: 3 of 4 epochs are done" in done.stdout
    assert "epoch 4/4" in done.stdout
    assert {path.name for path in grid.iterdir()} - before == {"5"}
    config = json.loads((grid / "5" / "config.json").read_text())
    assert (config["config"]["seed"], config["config"]["epochs"], config["space"]) == (1, 4, None)
    assert config["config"]["optimizer"]["learning_rate"] == 0.02
    assert config["config"]["model"]["hidden_features"] == [3]
    seeds = shutil.copytree(tiny_sweep, tmp_path / "seeds")
    for command in ("train", "sweep"):
        done = command_line(command, "--resume", seeds)
        assert done.returncode == 0, done.stderr
        assert "complete after 3 epochs; train longer with --epochs" in done.stdout
    done = command_line("sweep", "--resume", seeds, "--epochs", "4")
    assert "epoch 4/4" in done.stdout
    assert "3 of 3 runs done" in done.stdout
    for words, message in [
        (["train", "--resume", seeds, "--seeds", "3"], "leave out --seeds"),
        (["sweep", "--resume", grid, "--b1", "0.8"], "leave out --b1"),
        (["sweep", "--resume", grid / "5"], f"is a single run: continue it with lstm-mnist train --resume {grid}/5"),
    ]:
        done = command_line(*words)
        assert done.returncode == 2
        assert message in done.stderr


@pytest.mark.parametrize("command", ["evaluate", "predict", "train --resume", "export onnx"])
def test_a_whole_sweep_or_a_missing_run_of_it_is_refused(command_line, tiny_sweep, tmp_path, command):
    """`train --resume` takes a whole sweep."""
    rest = [tmp_path / "digit.npy"] if command.startswith(("predict", "export")) else []
    cases = [(tiny_sweep / "99", f"{tiny_sweep} has no run 99, expected 0 to 2.")]
    if command != "train --resume":
        cases.append((tiny_sweep, f"is a sweep of 3 runs. Name one of them: {tiny_sweep}/best (on validation), or"))
    for path, message in cases:
        done = command_line(*command.split(), path, *rest)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tiny_sweep / "99").exists()


@pytest.mark.parametrize("name", ["1", "99", "best"])
def test_no_new_run_takes_the_path_of_a_run_of_a_sweep(command_line, tiny_sweep, name):
    done = command_line("train", "smoke", "--run-dir", tiny_sweep / name)
    assert done.returncode == 2
    assert f"is in the run folder {tiny_sweep}, where such a name is that of a run of a sweep" in done.stderr
    assert not (tiny_sweep / name).exists()


def test_remains_of_a_run_are_not_overwritten_by_a_run_of_the_sweep(command_line, tiny_sweep, tmp_path):
    shutil.copytree(tiny_sweep, tmp_path / "sweep")
    for name in ("checkpoints", "plots"):
        (tmp_path / "sweep" / "1" / name).mkdir(parents=True)
    done = command_line("train", "--resume", tmp_path / "sweep" / "1", "--epochs", "4")
    assert done.returncode == 2
    assert f"{tmp_path}/sweep/1 holds checkpoints but no config.json" in done.stderr
    assert {path.name for path in (tmp_path / "sweep" / "1").iterdir()} == {"checkpoints", "plots"}


def test_folders_of_version_0_4_are_refused_with_the_version_that_reads_them(command_line, tiny_run, tmp_path):
    sweep, run = tmp_path / "sweep", tmp_path / "run"
    sweep.mkdir()
    (sweep / "population.json").write_text("{}")
    run.mkdir()
    contents = json.loads((tiny_run / "config.json").read_text())
    contents["environment"]["lstm-mnist-jax"] = "0.4.0"
    (run / "config.json").write_text(json.dumps(contents | {"format": 6}))
    commands = (["evaluate"], ["report"], ["train", "--resume"], ["sweep", "--resume"])
    for words in commands:
        done = command_line(*words, sweep)
        assert done.returncode == 2
        assert "is a sweep of version 0.4 or older (population.json). Use lstm-mnist-jax 0.4.0 with it" in done.stderr
        done = command_line(*words, run)
        assert done.returncode == 2
        assert "is a run folder of format 6; this version of lstm-mnist-jax reads format 7" in done.stderr
        assert "It was written by version 0.4.0: use that version, or start" in done.stderr
    done = command_line("train", "smoke", "--run-dir", sweep)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr


def test_extract_names_its_successor():
    with pytest.raises(ImportError, match="take the path of a run of a sweep"):
        from lstm_mnist_jax import extract  # noqa: F401
    assert "extract" not in lstm_mnist_jax.__all__


def test_paths_with_the_name_of_a_field_stay_as_they_are_in_messages(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("a/batch_size", "batch_size", "epochs"):
        done = command_line("train", "--source", source)
        assert f"Unknown data source {source!r}: there is no folder" in done.stderr


def test_help_texts_have_no_line_breaks_of_the_source(command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def help_of(command):
        return " ".join(command_line(command, "--help-all").stdout.split())

    assert "by gradient accumulation over two, four, ... steps." in help_of("train")
    assert "Train a stacked LSTM." in help_of("train")
    assert "Adam, as TensorFlow 1 computes it" in help_of("train")
    assert "Learning rate; with a schedule, its peak. (default: the preset's)" in help_of("sweep")
    assert help_of("sweep").count("(default: the preset's)") == len(SWEEPABLE)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_is_no_wider_than_the_terminal_or_80_columns(command_line, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in ([], *([command, option] for command in cli.COMMANDS for option in ("--help", "--help-all"))):
        text = command_line(*words).stdout
        # Commands to copy stay in one line.
        lines = [line for line in text.splitlines() if not line.lstrip().startswith(("~/.", "fish:"))]
        assert max(map(len, lines)) <= min(columns, 80), words
        assert 0.7 * min(columns, 80) < max(map(len, lines))


def test_short_help_has_the_ten_options_that_people_change(command_line):
    text = command_line("train", "rows", "--help").stdout
    options = re.findall(r"^  --([\w-]+)", text, re.MULTILINE)
    assert len(options) == 10
    assert {"epochs", "batch-size", "learning-rate", "hidden-features", "run-dir", "resume"} < set(options)
    assert "(default: 192,192)" in text
    assert "lstm-mnist train --help-all prints all options." in text
    everything = re.findall(r"^  --([\w-]+)", command_line("train", "--help-all").stdout, re.MULTILINE)
    assert set(options) < set(everything)
    assert command_line("help", "train").stdout == command_line("train", "--help").stdout


def test_help_names_folders_and_files(command_line):
    for command, names in {"export": ["FORMAT", "RUN_DIR", "FILE"], "evaluate": ["RUN_DIR"]}.items():
        text = command_line(command, "--help").stdout
        assert re.findall(r"^  ([A-Z_]+) ", text, re.MULTILINE) == names


def test_every_hyperparameter_of_the_optimizer_can_be_swept(command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = command_line("sweep", "--help-all")
    for name in [*leaf_names(asdict(PRESETS["tutorial"].optimizer)), "hidden_features", "batch_size"]:
        assert f"--{name.replace('_', '-')} VALUE ..." in done.stdout


def test_a_resumed_run_takes_no_preset(command_line, run_dir):
    for arguments in (["smoke", "--resume", run_dir], ["--resume", run_dir, "smoke"]):
        done = command_line("train", *arguments)
        assert done.returncode == 2
        assert "leave out the preset" in done.stderr


def test_a_platform_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "rocm")
    done = programs.run(["train", "smoke"], cwd=tmp_path)
    assert done.returncode == 2
    assert "JAX_PLATFORMS is 'rocm'" in done.stderr


def test_debug_adds_the_traceback(command_line, tmp_path):
    done = command_line("evaluate", tmp_path / "nowhere", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "RunError" in done.stderr


def test_unraisable_errors_are_reported_but_for_those_of_a_failed_checkpoints_other_writes():
    reported = []
    for error in (RuntimeError("Event loop is closed"), RuntimeError("another"), ValueError("Event loop is closed")):
        cli._report_unraisable(reported.append, SimpleNamespace(exc_value=error))
    assert [str(unraisable.exc_value) for unraisable in reported] == ["another", "Event loop is closed"]


def test_unexpected_exceptions_are_reported_as_bugs(command_line, monkeypatch):
    def broken(arguments):
        raise KeyError("boom")

    monkeypatch.setattr("lstm_mnist_jax.cli.train.train", broken)
    done = command_line("train")
    assert done.returncode == 1
    assert "unexpected KeyError: 'boom'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pipe_closed_by_its_reader_is_no_error(run_dir, tmp_path):
    np.save(tmp_path / "many.npy", load().test.images[:600])  # whose answers do not fit into a pipe
    program = programs.Program(["predict", run_dir, tmp_path / "many.npy", "--json"])
    assert program.stdout.readline().startswith('{"file')
    program.stdout.close()
    assert program.stderr.read() == ""
    program.stderr.close()
    while program.poll() is None:  # it has closed its streams
        time.sleep(0.01)
    assert program.returncode == 128 + signal.SIGPIPE


@pytest.mark.slow
def test_a_run_is_saved_and_stops_when_its_output_is_closed(tmp_path):
    """As by `| head`."""
    program = programs.Program(
        ["train", "smoke", *TINY_OPTIONS[2:], "--epochs", 100_000, "--run-dir", tmp_path / "run"]
    )
    for line in program.stdout:
        if line.startswith("epoch"):
            break
    program.stdout.close()
    assert program.stderr.read() == "lstm-mnist: the output is closed; the run is saved and stops (--resume goes on)\n"
    program.stderr.close()
    while program.poll() is None:
        time.sleep(0.01)
    assert program.returncode == 128 + signal.SIGHUP
    epochs = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert checkpoint.newest_sound_step(tmp_path / "run" / "checkpoints") >= 15 * epochs > 0


@pytest.fixture
def ignored_hang_up():
    """As under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.fixture
def default_hang_up():
    """As in a terminal, also where the tests run under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


def test_a_closed_console_of_a_command_that_does_not_train(default_hang_up):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed_pipe:
        for console in (OutputConsole, TrainingConsole):  # of which the second has nothing to save
            with pytest.raises(BrokenPipeError):
                say(console(file=closed_pipe), "a line")


def test_training_goes_on_with_a_closed_console_under_nohup(capfd, ignored_hang_up):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed_pipe:
        console = TrainingConsole(file=closed_pipe)
        say(console, "a line")
        say(console, "another")
    assert capfd.readouterr() == ("", "lstm-mnist: the output is closed; the training run goes on without it\n")


@pytest.mark.parametrize("words", [["--version"], ["--help"], []])
def test_closed_standard_output_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed_pipe:
        done = subprocess.run(
            [sys.executable, "-m", "lstm_mnist_jax", *words], stdout=closed_pipe, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
