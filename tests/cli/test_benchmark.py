"""scripts/benchmark.py at sizes that take a moment. Timings are looked at by nobody here."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import programs
import pytest

from lstm_mnist_jax.benchmark import prepared
from lstm_mnist_jax.benchmark.command import benchmark
from lstm_mnist_jax.benchmark.parts import summarize_layers
from lstm_mnist_jax.benchmark.process import PeerError, Worker
from lstm_mnist_jax.benchmark.rounds import differs, summary
from lstm_mnist_jax.benchmark.work import Epoch, Inference, Layer, Product, from_json, lstm_flops, to_json
from lstm_mnist_jax.rnn import native

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "benchmark.py"

CRASHING = "import os\ndef epoch(work, setting): os.abort()\ndef layer(work, setting): raise RuntimeError('no, thanks')"

WRONG = """
import numpy as np
from lstm_mnist_jax.benchmark.peers import Job

def epoch(work, setting):
    return Job(lambda: None, lambda: [2.5] * 10)

def layer(work, setting):
    inputs, kernel, recurrent_kernel, bias = work.arrays()
    c = h = np.zeros((work.batch, work.hidden))
    squares = []
    for x in inputs:
        i, f, g, o = np.split(x @ kernel + h @ recurrent_kernel + bias, 4, axis=-1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        squares.append(h**2)
    return Job(lambda: None, lambda: [1.001 * float(np.mean(squares))])
"""

QUICK = """
from lstm_mnist_jax.benchmark.peers import Job

def layer(work, setting):
    return Job(lambda: sum(range(1000)), lambda: [1.0], compile_seconds=0.5)

epoch = inference = layer
"""
"""A peer without JAX, whose processes start in a tenth of a second."""


def environment(folder):
    paths = [str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "200"}


def write_peers(folder, **texts):
    """Peers of a user's own: mine.NAME."""
    (folder / "mine").mkdir()
    for name, text in texts.items():
        (folder / "mine" / f"{name}.py").write_text(text)


PROGRAM = f"""
import dataclasses, runpy
from lstm_mnist_jax.benchmark import parts, rounds
from lstm_mnist_jax.benchmark.work import Layer

rounds.ROUND_SECONDS = 0.02  # enough to see that rounds take place
grid = Layer(5, 4, 8, False), Layer(5, 1, 8, True)
parts.SIZES["tiny"] = dataclasses.replace(parts.SIZES["tiny"], grid=grid)
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""

ONE_LAYER = """
import dataclasses
from lstm_mnist_jax.benchmark import parts

tiny = parts.SIZES["tiny"]
parts.SIZES["tiny"] = dataclasses.replace(tiny, epoch=dataclasses.replace(tiny.epoch, hidden_features=(6,)))
"""
"""Before PROGRAM: an epoch that compiles sooner."""


def run(folder, *words, before=""):
    return programs.run(["--tiny", *words], code=before + PROGRAM, cwd=folder, env=environment(folder))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the script prints and writes, with peers of somebody's own beside the real ones."""
    folder = tmp_path_factory.mktemp("benchmark")
    write_peers(folder, crashing=CRASHING, wrong=WRONG)
    real = ["ours", "flax"] + ["torch"] * (importlib.util.find_spec("torch") is not None)
    done = run(
        folder, "epoch", "layers", "--rounds", "2", "--output", "out/b.json",
        "--peers", *real, "mine.crashing", "mine.wrong", "mine.missing",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, real, done.stdout, json.loads((folder / "out" / "b.json").read_text())


@pytest.mark.slow
def test_real_peers_are_timed_after_they_agree(measured):
    _, real, _, result = measured
    assert list(result["parts"]) == ["epoch", "layers"]
    comparisons = [result["parts"]["epoch"], *result["parts"]["layers"]["points"]]
    assert len(comparisons) == 1 + 2
    for comparison in comparisons:
        assert list(comparison["peers"]) == real
        reference = comparison["peers"]["ours"]["check"]
        assert len(reference) >= 1
        for peer in comparison["peers"].values():
            np.testing.assert_allclose(peer["check"], reference, rtol=1e-4)
            assert len(peer["rounds"]) == 2
            assert 0 < peer["min"] <= peer["median"] <= peer["max"]
        assert comparison["peers"]["ours"]["compile_seconds"] > 0
    assert len(result["parts"]["epoch"]["peers"]["ours"]["check"]) == 10
    assert {point["backward"] for point in result["parts"]["layers"]["points"]} == {False, True}
    assert all(count["points"] == 2 for count in result["parts"]["layers"]["ours_against"].values())


@pytest.mark.slow
def test_peers_that_are_missing_crash_or_compute_something_else_are_named(measured):
    _, _, printed, result = measured
    why = {(line["what"], line["peer"]): line["why"] for line in result["could_not_run"]}
    assert why["epoch", "mine.missing"] == "No module named 'mine.missing'"
    assert why["epoch", "mine.crashing"].startswith("its process was killed by SIGABRT")
    assert why["epoch", "mine.wrong"].startswith("its results differ from those of ours: number 1 of 10 is 2.5, ")
    layers = {peer: reason for (what, peer), reason in why.items() if what.startswith("layer ")}
    assert layers["mine.missing"] == "No module named 'mine.missing'"
    assert layers["mine.crashing"] == "RuntimeError: no, thanks"
    number, expected = re.search(r"number 1 of 1 is ([\d.]+), expected ([\d.]+)", layers["mine.wrong"]).groups()
    assert float(number) / float(expected) == pytest.approx(1.001, abs=1e-5)
    assert "could not run mine.missing" in printed


@pytest.mark.slow
def test_the_machine_and_its_floor(measured):
    result = measured[3]
    assert result["peak"]["epoch_floor_seconds"] * result["peak"]["flops_per_second"] == pytest.approx(
        Epoch(12, 16, (6, 8)).flops
    )
    assert {"jax", "flax", "numpy"} <= result["machine"]["versions"].keys()
    assert result["machine"]["usable_cores"] >= 1
    assert result["parts"]["epoch"]["idle_workers_cpu_share"] >= 0
    assert not result["interrupted"]
    reason = native.unavailable()
    assert result["recurrence"] == (f"XLA ({reason})" if reason else "compiled kernel")
    assert f"our recurrence: {result['recurrence']}" in measured[2]


@pytest.mark.slow
def test_the_picture(measured):
    folder, _, printed, _ = measured
    if importlib.util.find_spec("matplotlib") is None:
        assert "no picture: No module named 'matplotlib'" in printed
    else:
        assert (folder / "out" / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_inference_memory_compilation_and_the_loop(tmp_path):
    write_peers(tmp_path, quick=QUICK)
    words = ["inference", "memory", "compile", "loop", "--rounds", "1", "--peers", "mine.quick"]
    done = run(tmp_path, *words, before=ONE_LAYER)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "benchmark.json").read_text())["parts"]
    single = parts["inference"]["single"]["peers"]["mine.quick"]
    assert single["min"] > 0
    assert 0 < single["p50"] <= single["p99"]
    assert parts["inference"]["batched"]["peers"]["mine.quick"]["median"] > 0
    assert [(point["time"], point["batch"]) for point in parts["memory"]["points"]] == [(64, 8), (32, 8), (64, 4)]
    assert all(point["peers"]["mine.quick"]["seconds"] > 0 for point in parts["memory"]["points"])
    assert [part["peers"]["mine.quick"]["median"] for part in parts["compile"].values()] == [0.5, 0.5]
    assert list(parts["loop"]["peers"]) == ["epoch", "steps alone", "one call a step"]  # by this package
    assert all(peer["compile_seconds"] > 0 for peer in parts["loop"]["peers"].values())
    assert "added_to_steps" in parts["loop"]


OURS = """
import json, sys
from dataclasses import replace
from lstm_mnist_jax.benchmark.parts import SIZES
from lstm_mnist_jax.benchmark.work import Inference, to_json
from lstm_mnist_jax.benchmark.worker import Server

path, size, server, found = sys.argv[1], SIZES["tiny"], Server("ours"), {}
server.hello()
server.prepare(to_json(size.epoch), path)
found["compiled"] = server.compile(to_json(size.compiled))
found["memory"] = server.memory(to_json(size.memory[0]), to_json(replace(size.memory[0], time=4, batch=2)))
for name, images, repeats in (("single", 1, size.latency_calls), ("batched", 10_000, 1)):
    found[name] = server.load(to_json(Inference(images, path))) | server.round(repeats, 1.0)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """What this package's own peer answers, and the file that it has prepared.

    All in one process, where the benchmark starts one for each: JAX takes seconds to import and to compile anew.
    """
    path = tmp_path_factory.mktemp("ours") / "prepared.npz"
    done = programs.run([path], code=OURS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), path


@pytest.mark.slow
def test_our_peer_does_the_work_of_the_other_parts(ours):
    found, _ = ours
    assert len(found["single"]["seconds"]) == 20
    assert min(found["single"]["seconds"]) > 0
    assert min(found["batched"]["seconds"]) > 0
    assert found["single"]["check"] == pytest.approx(found["batched"]["check"])
    assert len(found["single"]["check"]) == 20
    assert found["memory"]["bytes"] >= 0
    assert found["memory"]["seconds"] > 0
    assert found["compiled"]["compile_seconds"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux alone")
def test_memory_is_what_the_work_takes(tmp_path):
    # 64 MiB are held at once, whatever the process did before; 256 MiB more are in place beforehand.
    held = (
        "import numpy as np\n"
        "from lstm_mnist_jax.benchmark.peers import Job\n"
        "def layer(work, setting):\n"
        "    inputs = np.ones(2**25)\n"
        "    np.ones(2**26)\n"
        "    return Job(lambda: inputs[0] + np.ones(work.time * 2**17)[0], lambda: [])\n"
    )
    write_peers(tmp_path, held=held)
    work = Layer(64, 1, 1, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment(tmp_path)["PYTHONPATH"])
        with Worker("mine.held") as worker:
            worker.call("hello")
            found = worker.call("memory", work=to_json(work), small=to_json(Layer(1, 1, 1, True)))
            with pytest.raises(PeerError, match="it does no work of the kind 'product'"):
                worker.call("load", work=to_json(Product(8)))
    if not found["note"]:
        assert found["bytes"] == pytest.approx(2**26, rel=0.1)


@pytest.mark.slow
def test_ctrl_c_writes_what_was_measured(tmp_path):
    write_peers(tmp_path, quick=QUICK)
    output = tmp_path / "b.json"
    words = ["compile", "--tiny", "--rounds", "1000", "--peers", "mine.quick", "--output", output]
    process = programs.Program(words, code=PROGRAM, env=environment(tmp_path))
    for line in process.stdout:
        if line.startswith("compilation"):
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate()
    assert process.returncode == 130
    result = json.loads(output.read_text())
    assert result["interrupted"]
    assert result["peak"]["flops_per_second"] > 0
    assert "interrupted: what stands here was measured before" in rest


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--peers", "jax"], "Unknown peer 'jax'; expected ours, flax, torch,"),
        (["--rounds", "0"], "--rounds is 0, expected 1 or more"),
        (["--full"], "--full and --tiny exclude each other"),
        (["--output", "/proc/b.json"], "--output /proc/b.json cannot be written"),
        (["--output", "b.png"], "Name a .json file"),
    ],
)
def test_mistakes_are_answered_in_one_line(words, complaint, tmp_path):
    done = run(tmp_path, *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_script_is_the_same_program(tmp_path):
    words = [sys.executable, SCRIPT, "--rounds", "0"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("benchmark.py: --rounds is 0, expected 1 or more")


@pytest.mark.slow
def test_what_was_measured_before_survives_a_failure(tmp_path):
    (tmp_path / "benchmark.json").write_text("before")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "nonsense")
        done = run(tmp_path)
    assert done.returncode == 2
    assert "This package itself does not run here: " in done.stderr
    assert (tmp_path / "benchmark.json").read_text() == "before"


def test_a_worker_with_nothing_loaded_says_so():
    with Worker("numpy") as worker:
        worker.call("hello")
        with pytest.raises(PeerError, match="ended between two rounds"):
            worker.call("round", repeats=1, most_seconds=1.0)


def test_flops_of_the_tutorial():
    # The sum over the products of one step, each 2 x rows x inner x columns, written out.
    rows = 28 * 64
    first = 28 * 128 + 32 * 128 + 28 * 128 + 32 * 128 + 32 * 128  # forward, kernels' gradients, hidden states'
    second = 3 * (32 * 256 + 64 * 256)
    assert Epoch().flops == 859 * 2 * rows * (first + second)
    assert Layer(28, 64, 128, True).flops == 3 * Layer(28, 64, 128, False).flops
    assert lstm_flops(1, 1, 1, 1, backward=False) == 2 * 4 * 2


@pytest.mark.parametrize("work", [Epoch(), Layer(1, 2, 3, True), Inference(1, "x"), Product(2)])
def test_work_survives_json(work):
    assert from_json(json.loads(json.dumps(to_json(work)))) == work


def test_every_peer_starts_from_the_weights_and_batches_of_ours(ours):
    read = prepared.read(str(ours[1]))
    assert read.weights.hidden_features == (6, 8)
    assert read.order.shape == (12, 16)
    assert sorted(read.order.reshape(-1)) == list(range(12 * 16))  # an epoch: every example once
    assert read.params["dense"]["kernel"].shape == (8, 10)


def test_numbers_differ_where_they_are_apart_or_not_numbers():
    assert differs([1.0, -2.0], [1.00009, -2.0001]) == ""
    assert differs([1.0, 2.0], [1.0]) == ""  # as far as both go
    assert "number 2 of 2 is 2.001" in differs([1.0, 2.0], [1.0, 2.001])
    assert "nan" in differs([1.0], [float("nan")])


def test_statistics():
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": [3.0, 1.0, 2.0]}
    points = [{"peers": {"ours": {"median": 1.0}, "torch": {"median": other}}} for other in (0.5, 1.0, 2.0)]
    assert summarize_layers(points) == {"ours_against": {"torch": {"points": 3, "at_least_as_fast": 2}}}


def test_it_is_importable_without_any_peer():
    assert benchmark.__module__ == "lstm_mnist_jax.benchmark.command"
    heavy = "{'jax', 'torch', 'keras', 'tensorflow', 'matplotlib'}"
    program = f"import sys, lstm_mnist_jax.benchmark.command; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment(ROOT))
