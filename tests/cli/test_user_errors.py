"""Mistakes of users and what is reported of them; bugs."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import programs
import pytest
from runs import ONE_LAYER

import lstm_mnist_jax
from lstm_mnist_jax import __main__
from lstm_mnist_jax.cli import interrupts, parsing
from lstm_mnist_jax.cli import main as cli
from lstm_mnist_jax.cli.arguments import as_called
from lstm_mnist_jax.config import Execution
from lstm_mnist_jax.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trane"], "Unknown command 'trane'; expected one of train, sweep, evaluate"),
        (["trian"], "import, export, completion; did you mean train? See lstm-mnist --help."),
        (["Train"], "; did you mean train? See lstm-mnist --help."),
        (["eval", "here"], "; did you mean evaluate? See lstm-mnist --help."),
        (["smoke"], "'smoke' is a preset; the command comes first, such as lstm-mnist train smoke ... See lstm-mnist"),
        (["--epochs", "3", "sweep"], "is an option; the command comes first, such as lstm-mnist sweep --epochs"),
        (["train", "tutoral"], "Unknown preset 'tutoral'; expected one of tutorial, smoke"),
        (["train", "smok"], "; did you mean smoke?"),
        (["train", "--epochs", "3", "ROWS_fast"], "fashion; did you mean rows-fast?"),
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
        (["report", "here", "--output=there"], "Unknown option --output; did you mean --into?"),
        (["train", "-e", "3"], "Unknown option -e. Options are whole words with two dashes."),
        (["train", "--json"], "Unknown option --json. See lstm-mnist train --help-all."),
        (["train", "--epochs", "three"], "--epochs is 'three', expected an integer."),
        (["train", "--epochs"], "--epochs has no value, expected an integer."),
        (["train", "--run-dir", ""], "--run-dir has no value, expected a path."),
        (["report", ""], "run-dirs has no value, expected one or more paths, with blanks between."),
        (
            ["sweep", "--learning-rate", ""],
            "--learning-rate has no value, expected a number; several with blanks between, or one interval uniform:LOW",
        ),
        (["sweep", "--hidden-features="], "no value, expected integers with commas between; several with blanks betw"),
        (["--versoin"], "Unknown option --versoin; did you mean --version?"),
        (["train", "--train-examples", "all"], "--train-examples is 'all', expected an integer or None."),
        (["predict"], "An argument is missing, expected lstm-mnist predict RUN_DIR IMAGE. See"),
        (["import", "Pytorch", "w.pt", "--run-dir", "there"], "format is 'Pytorch', expected one of tf1, torch"),
        (["completion", "powershell"], "shell is 'powershell', expected one of bash, zsh, fish."),
        (["train", "--learning-rate=fast"], "--learning-rate is 'fast', expected a number."),
        (["train", "--hidden-features", "32;64"], "is '32;64', expected integers with commas or spaces between"),
        (["train", "--hidden-features", "32", "smoke"], "is 'smoke', expected integers with commas or spaces between"),
        (["train", "--hidden-features=32,0"], "--hidden-features is (32, 0), expected one or more widths"),
        (["train", "--cell", "LSTM"], "--cell is 'LSTM', expected one of lstm, gru, layer_norm_lstm, ur_lstm; did you"),
        (["predict", "a", "b", "--form", "digits"], "expected one of digit, whole, plain or None; did you mean digit?"),
        (["export", "pytorch", "a", "b"], "format is 'pytorch', expected one of tf1, torch, keras, flax, safetensors,"),
        (["train", "--epochs", "0"], "--epochs is 0, expected 1 or more"),
        (["train", "--dropout-rate", "1.5"], "--dropout-rate is 1.5, expected at least 0 and below 1."),
        (["train", "--validation-examples", "0"], "--validation-examples is 0, expected 1 or more, or None."),
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
        (["train", "--validation", "random"], "--validation is 'random', expected one of auto, front, stratified"),
        (["train", "--source", "minst"], "; did you mean mnist?"),
        (["train", "--cell", "gru", "--forget-bias", "2"], "--forget-bias has no effect here: it needs the cell lstm"),
        (["train", "rows", "--forget-bias", "2", "--chrono-steps", "28"], "it needs --chrono-steps None. Leave"),
        (["train", "--final-fraction", "0.1"], "--final-fraction has no effect here: it needs a schedule, linear or"),
        (["train", "--permutation-seed", "3"], "--permutation-seed has no effect here: it needs the task permuted."),
        (
            ["train", "--dense-activation", "tanh"],
            "--dense-activation has no effect here: it needs hidden dense layers (--dense-fe",
        ),
        (["train", "--elastic-spacing", "3"], "--elastic-spacing has no effect here: it needs --elastic-pixels above"),
        (["train", "--erasing-size", "0.3"], "--erasing-size has no effect here: it needs --erasing-probability abov"),
        (["train", "--memory-limit", "3"], "--memory-limit has no effect here: it is for the runs of a sweep."),
        (["sweep", "--forget-bias", "0", "1", "--cell", "gru", "ur_lstm"], "--forget-bias has no effect here"),
        (["sweep", "--erasing-size", "uniform:0.1:0.5", "--samples", "3"], "--erasing-size has no effect here"),
        (["train", "--resume", "nowhere"], "nowhere is not a run folder: there is no such folder"),
        (["train", "--resume", "here", "--run-dir", "there"], "--resume names the run folder already"),
        (["train", "smoke", "--resume", "here"], "leave out the preset"),
        (["train", "--resume", "here", "smoke"], "leave out the preset"),
        (["train", "--source", "a/batch_size"], "Unknown data source 'a/batch_size': there is no folder"),
        (["train", "--source", "epochs"], "Unknown data source 'epochs': there is no folder"),
        (["train", "--run-dir", "run[1]"], "has a '[' in its path"),
        (["train", "--seeds", "0"], "seeds is 0, expected 1 or more"),
        (["train", "--num-processes", "2"], "--coordinator, --process-id must be given as well"),
        (["train", "--device-data-limit", "0"], "--device-data-limit is 0.0, expected GiB, above 0"),
        (["sweep", "smoke", "--cell"], "--cell has no value to try, expected one of lstm, gru, layer_norm_lstm, ur"),
        (["sweep", "--cell", "LSTM"], "--cell is 'LSTM', expected one of lstm, gru, layer_norm_lstm, ur_lstm; did you"),
        (["sweep", "tutoral"], "Unknown preset 'tutoral'; expected one of tutorial, smoke"),
        (["sweep", "--learning-rate", "0.01", "0.1", "smoke"], "--learning-rate is 'smoke'. The preset comes first: "),
        (
            ["sweep", "smoke"],
            "Nothing is swept. Give an option several values, as --learning-rate 0.003 0.01, or --seed",
        ),
        (["predict", "run", "a.png", "--explain", "--json"], "lstm-mnist: With --explain, text is printed; leave out"),
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


def test_the_commands_that_prepare_a_set_can_be_run(command_line, tmp_path):
    done = command_line("train", "smoke", "--source", "tfds:kmnist", "--data-dir", tmp_path)
    assert done.returncode == 2
    install, prepare = done.stderr.strip().split(" && ")
    assert "pip install tensorflow-cpu" in install
    python, option, code = shlex.split(prepare)
    assert (python, option) == ("python", "-c")
    compile(code, "command", "exec")
    assert f"data_dir='{tmp_path}'" in code


@pytest.mark.parametrize("command", ["evaluate", "predict", "train --resume", "export onnx"])
def test_a_whole_sweep_or_a_missing_run_of_it_is_refused(command_line, tiny_sweep, tmp_path, command):
    """`train --resume` takes a whole sweep."""
    rest = [tmp_path / "digit.npy"] if command.startswith(("predict", "export")) else []
    cases = [
        (tiny_sweep / "99", f"{tiny_sweep} has no run 99, expected 0 to 2."),
        (tiny_sweep / "bset", f"the runs of the sweep {tiny_sweep} are best or numbers; did you mean best?"),
    ]
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


def test_commands_to_copy_have_the_path_of_a_program_that_is_not_on_the_path(tmp_path, monkeypatch):
    for folder in ("on_path", "env"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "lstm-mnist").write_text("#!/bin/sh\n")
        (tmp_path / folder / "lstm-mnist").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "on_path"))
    for called, program in {
        f"{tmp_path}/on_path/lstm-mnist": "lstm-mnist",
        "on_path/lstm-mnist": "lstm-mnist",
        "env/lstm-mnist": "env/lstm-mnist",
        "scripts/train.py": "lstm-mnist",
    }.items():
        monkeypatch.setattr(sys, "argv", [called])
        found = as_called("lstm-mnist: lstm-mnist-jax. See lstm-mnist train --resume runs/lstm-mnist x")
        assert found == f"lstm-mnist: lstm-mnist-jax. See {program} train --resume runs/lstm-mnist x"


def test_a_layer_imported_from_the_package_names_its_module():
    with pytest.raises(ImportError, match="is a recurrent layer: from "):
        from lstm_mnist_jax import LSTM  # noqa: F401


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
        cli._report_unraisable(reported.append, False, SimpleNamespace(exc_value=error))
    assert [str(unraisable.exc_value) for unraisable in reported] == ["another", "Event loop is closed"]


def test_ctrl_c_during_the_imports_ends_the_process_at_once(tmp_path):
    code = (
        "import signal, sys, types\n"
        "sys.argv[1:] = ['train', 'smoke']\n"
        "stop = lambda name, *_: signal.raise_signal(2) if name == 'jaxlib' else None\n"
        "sys.meta_path.insert(0, types.SimpleNamespace(find_spec=stop))\n"
        "from lstm_mnist_jax.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_ctrl_c_is_an_exception_again_before_a_command_reads_or_writes_a_run(
    command_line, monkeypatch, tmp_path, tiny_run
):
    weights = SCRIPT.parents[1] / "tests" / "fixtures" / "torch_files" / "state_dict.pt"
    words = {
        "train": ["smoke"], "sweep": ["smoke", "--seeds", "2"], "evaluate": [tiny_run], "predict": [tiny_run, weights],
        "report": [tiny_run], "import": ["torch", weights, "--run-dir", tmp_path / "run"],
        "export": ["keras", tiny_run, tmp_path / "out.weights.h5"],
    }  # fmt: skip
    assert words.keys() | {"completion"} == cli.COMMANDS.keys()

    def stopped(*_, **__):
        raise UserError(str(signal.getsignal(signal.SIGINT) is signal.default_int_handler))

    for name in ("training.train", "sweeps.sweep", "inference.load_run", "training.begin_run"):
        monkeypatch.setattr(f"lstm_mnist_jax.{name}", stopped)
    for command, arguments in words.items():
        interrupts.end_at_once()
        done = command_line(command, *arguments)
        interrupts.raise_again()
        assert done.stderr == "lstm-mnist: True\n", command


def test_ctrl_c_is_left_alone_outside_the_main_thread():
    """Where Python takes no handlers."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(interrupts.end_at_once).result()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        interrupts.end_at_once()
        try:
            thread.submit(parsing.start_jax, Execution(devices=1)).result()
            assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        finally:
            interrupts.raise_again()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_host_programs_own_way_of_ending_at_once_is_left_alone():
    former = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        parsing.start_jax(Execution(devices=1))
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_handler_of_another_language_is_left_alone(monkeypatch):
    """Python has None in its place, which it does not take back."""
    called = []
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *given: called.append(given))
    monkeypatch.setattr(cli, "main", lambda: called.append("main"))
    __main__.main()
    assert called == ["main"]


def test_ctrl_c_within_a_destructor_is_not_lost(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", partial(cli._report_unraisable, reported.append, False))

    class Interrupted:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    class Failed:
        def __del__(self):
            raise ValueError

    Failed()
    Interrupted()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(10)
    assert [type(unraisable.exc_value) for unraisable in reported] == [ValueError]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyError("boom"), 1, "lstm-mnist: unexpected KeyError: 'boom'\nThis is a fault of the program"),
        (
            PermissionError(1, "Not yours"),
            1,
            "lstm-mnist: unexpected PermissionError: [Errno 1] Not yours\nThis is a f",
        ),
        (PermissionError(13, "Not permitted", "a/b"), 2, "lstm-mnist: a/b cannot be read or written: Not permitted.\n"),
    ],
)
def test_unexpected_exceptions_are_reported_as_bugs_but_for_files_without_permission(
    command_line, monkeypatch, error, code, message
):
    def broken(arguments):
        raise error

    monkeypatch.setattr("lstm_mnist_jax.cli.train.train", broken)
    done = command_line("train")
    assert done.returncode == code
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_paths_and_words_that_are_taken_for_a_run(command_line, tiny_run, tmp_path):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "runs" / "first"):
        (folder / "config.json").write_text('{"architectures": []}')  # of another program
    (tmp_path / "empty").mkdir()
    (checkpoint, *_), checkpoints = (tiny_run / "checkpoints").iterdir(), tiny_run / "checkpoints"
    for words, message in [
        (["evaluate", tiny_run / "best"], f"{tiny_run} is a single run, not a sweep: name it without /best."),
        (["evaluate", checkpoints], f"{checkpoints} is not a run folder, but within one: give {tiny_run}."),
        (["report", checkpoint], f"{checkpoint} is not a run folder, but within one: give {tiny_run}."),
        (["evaluate", tmp_path / "runs"], f"it has no config.json. It holds runs: {tmp_path / 'runs' / 'first'}."),
        (["evaluate", tmp_path / "empty"], "it has no config.json. lstm-mnist train makes one with --run-dir."),
        (["train", "--resume", tiny_run, "--permutation-seed", "3"], "lstm-mnist: A resumed run keeps its config, but"),
        (["train", tiny_run], f"'{tiny_run}' is a run folder, but a preset was expected. To train that run further,"),
        (
            ["report", tiny_run, "--split", "tset"],
            "split is 'tset', expected one of test, validation, train; did you m",
        ),
        (
            ["report", tiny_run, "--html", tiny_run / "config.json" / "a"],
            "config.json is a file, expected a folder. Ch",
        ),
    ]:
        done = command_line(*words)
        assert done.returncode == 2
        assert message in done.stderr
