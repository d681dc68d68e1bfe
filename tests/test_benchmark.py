"""scripts/benchmark.py at sizes that take a moment. Timings are looked at by nobody here."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lstm_mnist_jax.benchmark import prepared
from lstm_mnist_jax.benchmark.command import benchmark
from lstm_mnist_jax.benchmark.parts import summarize_layers
from lstm_mnist_jax.benchmark.process import PeerError, Worker
from lstm_mnist_jax.benchmark.rounds import differs, summary
from lstm_mnist_jax.benchmark.work import Epoch, Inference, Layer, Product, from_json, lstm_flops, to_json
from lstm_mnist_jax.rnn import native

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "benchmark.py"

CRASHING = "import os\ndef epoch(work, setting): os.abort()\ndef layer(work, setting): raise RuntimeError('no, thanks')"

WRONG = """
from dataclasses import replace
from lstm_mnist_jax.benchmark.peers import flax
def _wrong(job):
    return replace(job, check=lambda: [1.001 * number for number in job.check()])
def epoch(work, setting):
    return _wrong(flax.epoch(work, flax.ONE_DEVICE))
def layer(work, setting):
    return _wrong(flax.layer(work, setting))
"""


def environment(folder):
    paths = [str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "200"}


def run(folder, *words):
    return subprocess.run(
        [sys.executable, SCRIPT, "--tiny", *words],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the script prints and writes, with two peers of somebody's own beside the real ones."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "mine").mkdir()
    (folder / "mine" / "crashing.py").write_text(CRASHING)
    (folder / "mine" / "wrong.py").write_text(WRONG)
    real = ["ours", "flax"] + ["torch"] * (importlib.util.find_spec("torch") is not None)
    done = run(
        folder, "epoch", "layers", "--rounds", "2", "--output", "out/b.json",
        "--peers", *real, "mine.crashing", "mine.wrong", "mine.missing",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, real, done.stdout, json.loads((folder / "out" / "b.json").read_text())


def test_real_peers_are_timed_after_they_agree(measured):
    _, real, _, result = measured
    assert list(result["parts"]) == ["epoch", "layers"]
    comparisons = [result["parts"]["epoch"], *result["parts"]["layers"]["points"]]
    assert len(comparisons) == 1 + 4
    for comparison in comparisons:
        assert list(comparison["peers"]) == real
        reference = comparison["peers"]["ours"]["check"]
        assert len(reference) >= 1
        for peer in comparison["peers"].values():
            np.testing.assert_allclose(peer["check"], reference, rtol=1e-4)
            assert len(peer["rounds"]) == 2
            assert 0 < peer["min"] <= peer["median"] <= peer["max"]
    assert len(result["parts"]["epoch"]["peers"]["ours"]["check"]) == 10
    assert {point["backward"] for point in result["parts"]["layers"]["points"]} == {False, True}
    assert all(count["points"] == 4 for count in result["parts"]["layers"]["ours_against"].values())


def test_peers_that_are_missing_crash_or_compute_something_else_are_named(measured):
    _, _, printed, result = measured
    why = {(line["what"], line["peer"]): line["why"] for line in result["could_not_run"]}
    assert why["epoch", "mine.missing"] == "No module named 'mine.missing'"
    assert why["epoch", "mine.crashing"].startswith("its process was killed by SIGABRT")
    assert why["epoch", "mine.wrong"].startswith("its results differ from those of ours: number 1 of 10 is ")
    layers = {peer: reason for (what, peer), reason in why.items() if what.startswith("layer ")}
    assert layers["mine.missing"] == "No module named 'mine.missing'"
    assert layers["mine.crashing"] == "RuntimeError: no, thanks"
    assert layers["mine.wrong"].startswith("its results differ")
    assert "could not run mine.missing" in printed


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


def test_the_picture(measured):
    folder, _, printed, _ = measured
    if importlib.util.find_spec("matplotlib") is None:
        assert "no picture: No module named 'matplotlib'" in printed
    else:
        assert (folder / "out" / "b.png").read_bytes().startswith(b"\x89PNG")


def test_the_other_parts(tmp_path):
    done = run(tmp_path, "inference", "memory", "compile", "loop", "--rounds", "1", "--peers", "ours")
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "benchmark.json").read_text())["parts"]
    single = parts["inference"]["single"]["peers"]["ours"]
    assert single["min"] > 0
    assert 0 < single["p50"] <= single["p99"]
    assert parts["inference"]["batched"]["peers"]["ours"]["median"] > 0
    assert [(point["time"], point["batch"]) for point in parts["memory"]["points"]] == [(64, 8), (32, 8), (64, 4)]
    assert all(point["peers"]["ours"]["seconds"] > 0 for point in parts["memory"]["points"])
    assert all(part["peers"]["ours"]["median"] > 0 for part in parts["compile"].values())
    assert list(parts["loop"]["peers"]) == ["epoch", "steps alone", "one call a step"]
    assert "added_to_steps" in parts["loop"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux alone")
def test_memory_is_what_the_work_takes(tmp_path):
    # 64 MiB are held at once, whatever the process did before; 256 MiB more are in place beforehand.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "held.py").write_text(
        "import numpy as np\n"
        "from lstm_mnist_jax.benchmark.peers import Job\n"
        "def layer(work, setting):\n"
        "    inputs = np.ones(2**25)\n"
        "    np.ones(2**26)\n"
        "    return Job(lambda: inputs[0] + np.ones(work.time * 2**17)[0], lambda: [])\n"
    )
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


def test_ctrl_c_writes_what_was_measured(tmp_path):
    output = tmp_path / "b.json"
    process = subprocess.Popen(
        [
            sys.executable,
            "-u",
            SCRIPT,
            "compile",
            "--tiny",
            "--rounds",
            "1000",
            "--peers",
            "flax",
            "--output",
            output,
        ],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        for line in process.stdout:
            if line.startswith("compilation"):
                time.sleep(0.1)
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
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


def test_what_was_measured_before_survives_a_failure(tmp_path):
    (tmp_path / "benchmark.json").write_text("before")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "nonsense")
        done = run(tmp_path)
    assert done.returncode == 2
    assert "This package itself does not run here: " in done.stderr
    assert (tmp_path / "benchmark.json").read_text() == "before"


def test_a_worker_with_nothing_loaded_says_so():
    with Worker("ours") as worker:
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


def test_every_peer_starts_from_the_weights_and_batches_of_ours(tmp_path):
    work = Epoch(steps=5, batch_size=7, hidden_features=(3, 4))
    prepared.write(work, str(tmp_path / "p.npz"))
    read = prepared.read(str(tmp_path / "p.npz"))
    assert read.weights.hidden_features == (3, 4)
    assert sorted(read.order.reshape(-1)) == list(range(35))  # an epoch: every example once
    assert read.params["dense"]["kernel"].shape == (4, 10)


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
