"""scripts/benchmark.py at sizes that take a moment. The timings themselves are not looked at."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import programs
import pytest

import benchmark
from benchmarks import rounds, start
from benchmarks.parts import PARTS, SIZES, Run, wins
from benchmarks.rounds import differs, summary
from benchmarks.work import Epoch, Layer, Product, lstm_flops
from benchmarks.worker import LibraryError, Worker, _with_install_hint
from lstm_mnist_jax.rnn import native

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "benchmark.py"

CRASHING = """
import os

def layer(work, setting):
    if work.backward:
        os.abort()
    raise RuntimeError("no, thanks")
"""

LAYER = """
import numpy as np
from benchmarks.libraries import Job

def layer(work, setting):
    inputs, kernel, recurrent_kernel, bias = work.arrays()
    c = h = np.zeros((work.batch, work.hidden))
    squares = []
    for x in inputs:
        i, f, g, o = np.split(x @ kernel + h @ recurrent_kernel + bias, 4, axis=-1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        squares.append(h**2)
    check = FACTOR * float(np.mean(squares))
    return Job(lambda: sum(range(1000)), lambda: [check], compile_seconds=0.5)
"""
WRONG = LAYER.replace("FACTOR", "1.001")
RIGHT = (
    LAYER.replace("FACTOR", "1.0")
    + """
def epoch(work, setting):
    return Job(lambda: sum(range(1000)), lambda: [1.0], compile_seconds=0.5)

inference = epoch
"""
)
"""A library whose processes start in a tenth of a second, without JAX."""


GRID = Layer(5, 4, 8, False), Layer(5, 1, 8, True)

PROGRAM = f"""
import dataclasses
import benchmark
from benchmarks import parts, rounds
from benchmarks.work import Layer

rounds.ROUND_SECONDS = rounds.SETTLE_SECONDS = 0.02  # enough to see that rounds take place
parts.SIZES["tiny"] = dataclasses.replace(parts.SIZES["tiny"], grid=({", ".join(map(repr, GRID))}))
benchmark.main()
"""


def write_libraries(folder, **texts):
    """Modules of a user's own, mine.NAME, in the working directory of a program."""
    (folder / "mine").mkdir()
    for name, text in texts.items():
        (folder / "mine" / f"{name}.py").write_text(text)


def run(folder, *words, **variables):
    return programs.run([*words, "--tiny"], code=PROGRAM, cwd=folder, env=os.environ | {"COLUMNS": "200"} | variables)


REAL = """
import json, sys, warnings
from dataclasses import replace

warnings.resetwarnings()  # other libraries may warn

from benchmarks import rounds, worker
from benchmarks.parts import SIZES
from benchmarks.work import Inference, Layer
from benchmarks.worker import Server

class InThisProcess:
    def __init__(self, library):
        self.server = Server(library)

    def call(self, request, *arguments):
        return getattr(self.server, request)(*arguments)

class Workers(dict):
    def __missing__(self, key):
        self[key] = InThisProcess(key[0])
        return self[key]

rounds.ROUND_SECONDS = rounds.SETTLE_SECONDS = worker.TRIAL_SECONDS = 0.02
libraries, size, problems = sys.argv[1:], SIZES["tiny"], []
workers = Workers()
ours = workers["ours", 0]
start = ours.call("start_of", size.epoch)

def compare(work, rounds_, repeats=None):
    return rounds.compare(workers, work, libraries, rounds_, lambda *problem: problems.append(problem), repeats)

print(json.dumps({
    "epoch": compare(replace(size.epoch, start=start), 2, 1),
    "layers": [compare(Layer(5, 4, 8, False), 2), compare(Layer(5, 2, 8, True, "gru", ragged=True), 2)],
    "single": compare(Inference(1, start), 1, size.latency_calls),
    "batched": compare(Inference(10_000, start), 1),
    "compile": ours.call("compile", size.compiled),
    "memory": ours.call("memory", size.memory, replace(size.memory, time=4, batch=2)),
    "start": {"order": start.order.tolist(), "hidden_features": start.weights.hidden_features},
    "problems": problems,
}))
"""


@pytest.fixture(scope="module")
def real():
    """What this package, Flax and, where it is installed, PyTorch answer; and their names.

    All in one process, where the benchmark starts one for each: to import JAX takes seconds.
    """
    names = ["ours", "flax"] + ["torch"] * (importlib.util.find_spec("torch") is not None)
    done = programs.run(names, code=REAL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), names


@pytest.mark.slow
def test_real_libraries_are_timed_after_they_agree(real):
    found, names = real
    assert found["problems"] == []
    comparisons = [found["epoch"], *found["layers"], found["single"], found["batched"]]
    for comparison, turns in zip(comparisons, (2, 2, 2, 1, 1), strict=True):
        assert list(comparison) == names
        reference = comparison["ours"]["check"]
        assert len(reference) >= 1
        for facts in comparison.values():
            np.testing.assert_allclose(facts["check"], reference, rtol=1e-4)
            assert len(facts["rounds"]) == turns
            assert 0 < facts["min"] <= facts["median"] <= facts["max"]
            assert facts["ready_seconds"] > 0
    assert len(found["epoch"]["ours"]["check"]) == 10
    assert [len(layer["ours"]["check"]) for layer in found["layers"]] == [
        1,
        5,
    ]  # with a gradient: of inputs and weights
    for comparison in comparisons[:3]:
        assert all(comparison[name]["compile_seconds"] > 0 for name in ("ours", "flax"))
    for facts in found["single"].values():
        assert 0 < facts["p50"] <= facts["p99"]
    assert found["single"]["ours"]["check"] == pytest.approx(found["batched"]["ours"]["check"])
    assert len(found["single"]["ours"]["check"]) == 20
    settings = found["epoch"]["flax"]["settings"]
    assert len(settings) == 2
    assert min(settings.values()) == found["epoch"]["flax"]["median"]
    assert found["memory"] >= 0
    assert found["compile"] > 0


@pytest.mark.slow
def test_every_library_starts_from_the_weights_and_batches_of_ours(real):
    start = real[0]["start"]
    assert start["hidden_features"] == [6, 8]
    assert np.shape(start["order"]) == (12, 16)
    assert sorted(np.ravel(start["order"])) == list(range(12 * 16))  # an epoch: every example once


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The program with four libraries of a user's, of which one can do all parts: how it ended, and its JSON."""
    folder = tmp_path_factory.mktemp("finished")
    write_libraries(folder, right=RIGHT, crashing=CRASHING, wrong=WRONG)
    names = [name for name in PARTS if name != "start"]  # which starts no library
    # --peers: the option's name until version 0.4
    libraries = ["--peers", "mine.right", "mine.crashing", "mine.wrong", "mine.missing"]
    done = run(folder, *names, "--rounds", "1", "--output", "out/b.json", *libraries)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads((folder / "out" / "b.json").read_text())


@pytest.mark.slow
def test_libraries_that_are_missing_crash_or_compute_something_else_are_reported(finished):
    done, result = finished
    for point in result["parts"]["layers"]["points"]:
        assert list(point["libraries"]) == ["mine.right"]
        assert len(point["libraries"]["mine.right"]["rounds"]) == 1
    lines = [line for line in result["could_not_run"] if line["what"].startswith("layer ")]
    why = {(line["library"], "+backward" in line["what"]): line["why"] for line in lines}
    assert why["mine.crashing", False] == "RuntimeError: no, thanks"
    assert why["mine.crashing", True].startswith("its process was killed by SIGABRT")
    number, expected = re.search(r"number 1 of 1 is ([\d.]+), expected ([\d.]+)", why["mine.wrong", False]).groups()
    assert float(number) / float(expected) == pytest.approx(1.001, abs=1e-5)
    assert why["mine.wrong", False].startswith("its results differ from those of mine.right: ")
    reasons = [line["why"] for line in result["could_not_run"] if line["library"] == "mine.missing"]
    assert reasons == ["No module named 'mine.missing'"]  # once is enough
    assert "could not run mine.missing" in done.stdout
    reason = native.unavailable()
    assert result["recurrence"] == (f"XLA ({reason})" if reason else "compiled kernel")
    assert f"our recurrence: {result['recurrence']}" in done.stdout


@pytest.mark.slow
def test_ours_is_compared_in_as_many_rounds_as_are_asked_for(tmp_path, monkeypatch):
    write_libraries(tmp_path, right=RIGHT, wrong=WRONG)
    monkeypatch.chdir(tmp_path)
    for name in ("ROUND_SECONDS", "SETTLE_SECONDS"):
        monkeypatch.setattr(rounds, name, 0.02)
    libraries = ("ours", "mine.right", "mine.wrong")
    run, layers = Run(replace(SIZES["tiny"], grid=GRID), 2, libraries, "cpu", None, lambda line: None), {}
    PARTS["layers"](run, layers)
    for point in layers["points"]:
        times = {library: len(facts["rounds"]) for library, facts in point["libraries"].items()}
        assert times == {"ours": 2, "mine.right": 2}
    assert layers["ours_against"]["mine.right"]["points"] == 2
    reasons = [line["why"] for line in run.could_not_run if line["library"] == "mine.wrong"]
    assert len(reasons) == 2  # forward and backward
    assert all(why.startswith("its results differ from those of ours: ") for why in reasons)


@pytest.mark.slow
def test_all_parts_run_a_users_library(finished):
    done, result = finished
    parts = result["parts"]
    assert list(parts) == [name for name in PARTS if name != "start"]
    assert parts["epoch"]["libraries"]["mine.right"]["median"] > 0
    assert [point["backward"] for point in parts["layers"]["points"]] == [False, True]
    single = parts["inference"]["single"]["mine.right"]
    assert single["min"] > 0
    assert 0 < single["p50"] <= single["p99"]
    assert parts["inference"]["batched"]["mine.right"]["median"] > 0
    assert parts["memory"]["layer"] == asdict(Layer(64, 8, 16, True))
    assert parts["memory"]["libraries"]["mine.right"]["median"] >= 0
    assert [times["mine.right"]["median"] for times in parts["compile"].values()] == [0.5, 0.5]
    peak = result["peak"]
    assert peak["epoch_floor_seconds"] * peak["flops_per_second"] == pytest.approx(SIZES["tiny"].epoch.flops)
    assert {"jax", "flax", "numpy"} <= result["machine"]["versions"].keys()
    assert result["machine"]["usable_cores"] >= 1
    assert not result["interrupted"]
    for title in ("epoch: 12 steps of 16; floor", "single images", "peak memory of", "compilation of the layer"):
        assert title in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux alone")
def test_memory_is_that_of_the_work_alone(tmp_path, monkeypatch):
    # 32 MiB are held at once, whatever the process did before; 128 MiB more are in place beforehand.
    held = (
        "import numpy as np\n"
        "from benchmarks.libraries import Job\n"
        "def layer(work, setting):\n"
        "    inputs = np.ones(2**24)\n"
        "    np.ones(2**25)\n"
        "    return Job(lambda: inputs[0] + np.ones(work.time * 2**16)[0], lambda: [])\n"
    )
    write_libraries(tmp_path, held=held)
    monkeypatch.chdir(tmp_path)
    with Worker("mine.held") as worker:
        found = worker.call("memory", Layer(64, 1, 1, True), Layer(1, 1, 1, True))
        with pytest.raises(LibraryError, match="it does no work of the kind 'product'"):
            worker.call("load", Product(8), "")
    assert found == pytest.approx(2**25, rel=0.1)


@pytest.mark.slow
def test_starts_of_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("LSTM_MNIST_JAX_NATIVE", "0")  # with empty caches, it would be compiled
    timed = start.programs(tmp_path, "smoke")
    train = next(name for name in timed if "train" in name and "empty" not in name)
    seconds = {name: timed[name]() for name in ("lstm-mnist --help", train, "lstm-mnist predict, one picture")}
    assert 0 < seconds.pop("lstm-mnist --help") < min(seconds.values())
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(start.StartError, match=r"exit code 2: lstm-mnist: .*run"):
        timed["lstm-mnist predict, one picture"]()
    monkeypatch.setattr(start, "COMMAND", (sys.executable, "-c", "import sys; print('what failed'); sys.exit(2)"))
    with pytest.raises(start.StartError, match="exit code 2: what failed"):
        timed[train]()


@pytest.mark.slow
def test_ctrl_c_writes_the_results_so_far(tmp_path):
    write_libraries(tmp_path, right=RIGHT)
    words = ["compile", "--tiny", "--rounds", "1000", "--libraries", "mine.right", "--output", "b.json"]
    process = programs.Program(words, code=PROGRAM, cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("compilation"):
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate()
    assert process.returncode == 130
    result = json.loads((tmp_path / "b.json").read_text())
    assert result["interrupted"]
    assert result["peak"]["flops_per_second"] > 0
    assert "interrupted: these were measured before" in rest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--libraries", "jax"], "Unknown library 'jax'; expected ours, flax, torch,"),
        (["--rounds", "0"], "--rounds is 0, expected 1 or more"),
        (["--full"], "--full and --tiny exclude each other"),
        (["--output", "/proc/b.json"], "--output /proc/b.json cannot be written"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--tiny", *words])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_the_script_imports_none_of_the_libraries(tmp_path):
    words = [sys.executable, "-X", "importtime", SCRIPT, "--rounds", "0"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    *imports, message = done.stderr.splitlines()
    assert message.startswith("benchmark.py: --rounds is 0, expected 1 or more")
    imported = {line.rpartition("|")[2].strip() for line in imports}
    assert "benchmarks.parts" in imported
    assert not {"jax", "torch", "keras", "tensorflow", "matplotlib"} & imported


@pytest.mark.slow
def test_a_failure_keeps_the_previous_results(tmp_path):
    (tmp_path / "benchmark.json").write_text("before")
    done = run(tmp_path, JAX_PLATFORMS="nonsense")
    assert done.returncode == 2
    assert "This package itself does not run here: " in done.stderr
    assert (tmp_path / "benchmark.json").read_text() == "before"


def test_a_missing_library_comes_with_the_command_that_installs_it():
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert _with_install_hint(missing) == "No module named 'torch': pip install -e '.[bench]' installs it"
    missing = ModuleNotFoundError("No module named 'mine'", name="mine")
    assert _with_install_hint(missing) == "No module named 'mine'"


def test_a_worker_with_nothing_loaded_reports_it():
    with Worker("numpy") as worker, pytest.raises(LibraryError, match="its process ended between two rounds"):
        worker.call("round", 1, 1.0)


def test_flops_of_the_tutorial():
    # The sum over the products of one step, each 2 x rows x inner x columns, written out.
    rows = 28 * 64
    first = 28 * 128 + 32 * 128 + 28 * 128 + 32 * 128 + 32 * 128  # forward, kernels' gradients, hidden states'
    second = 3 * (32 * 256 + 64 * 256)
    assert Epoch().flops == 859 * 2 * rows * (first + second)
    assert Layer(28, 64, 128, True).flops == 3 * Layer(28, 64, 128, False).flops
    assert lstm_flops(1, 1, 1, 1, backward=False) == 2 * 4 * 2


def test_differences_above_the_tolerance_and_nan_are_found():
    assert differs([1.0, -2.0], [1.00009, -2.0001]) == ""
    assert differs([1.0, 2.0], [1.0]) == ""  # as far as both go
    assert "number 2 of 2 is 2.001" in differs([1.0, 2.0], [1.0, 2.001])
    assert "nan" in differs([1.0], [float("nan")])


def test_statistics():
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": [3.0, 1.0, 2.0]}
    points = [{"libraries": {"ours": {"median": 1.0}, "torch": {"median": other}}} for other in (0.5, 1.0, 2.0)]
    assert wins(points) == {"torch": {"points": 3, "at_least_as_fast": 2}}
