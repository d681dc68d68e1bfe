"""scripts/accelerator_check.py at sizes that take a moment, on a CPU. The timings themselves are not looked at."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import programs
import pytest

import accelerator_check
from benchmarks.accelerator import PARTS, Failed, Part, Setting

SCRIPTS = Path(__file__).parents[2] / "scripts"


def crash(_):
    yield {"row": 1}
    print("the last words", flush=True)
    os.abort()


def hang(_):
    yield {"row": 1}
    time.sleep(60)


def wrong(_):
    yield {"row": os.environ["XLA_FLAGS"]}
    raise Failed("7 is not 8")


def never(_):
    yield {"row": 2}


@pytest.fixture
def check(monkeypatch, capfd):
    """`accelerator_check.py WORDS` in the test's process, which starts those of the parts. Its exit code and lines."""
    programs.start_server()

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["accelerator_check.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            accelerator_check.main()
        return ended.value.code, *capfd.readouterr()

    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # as the program sets it
    # What else the program changes in its process.
    server = forkserver._forkserver
    monkeypatch.setattr(server, "_preload_modules", server._preload_modules)
    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_every_part_runs_once_and_again_only_where_asked_or_where_it_did_not_end(check, tmp_path, monkeypatch):
    file = tmp_path / "check.json"
    part = {"rows": [], "seconds": 1.0, "peak_bytes": None, "reason": ""}
    other = {"format": 1, "key": {"device": "another"}, "machine": {}, "parts": {"tutorial": part}}
    file.write_text(json.dumps(other))
    file.with_name("check.json.old1").write_text("older")
    with monkeypatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "/of/the/user")
        patch.setenv("XLA_FLAGS", "--xla_dump_to=/of/the/user --xla_backend_optimization_level=3")
        code, output, errors = check("--tiny", "--output", file, "--minutes", "0.01", "loops-xla")
    assert code == 1, errors
    assert "loops-xla: not run, 0.01 minutes are over; the same command goes on" in output
    assert "JAX has no accelerator here: these are a CPU's figures." in output
    assert f"{file} was measured with different platform, device, devices, " in output
    assert ", environment variables: all parts run again. It is kept as " in output
    assert json.loads(file.with_name("check.json.old2").read_text()) == other
    assert file.with_name("check.json.old1").read_text() == "older"
    assert "/of/the/user" not in file.read_text()
    flags = "--xla_dump_to=PATH --xla_backend_optimization_level=3"
    assert json.loads(file.read_text())["key"]["options"] == {
        name: flags if name == "XLA_FLAGS" else os.environ[name]
        for name in accelerator_check.OPTIONS if name in os.environ
    }  # fmt: skip
    not_run = part | {"seconds": 0.0, "reason": "failed: not run yet"}
    assert json.loads(file.read_text())["parts"] == {"loops-xla": not_run}

    code, output, errors = check("--tiny", "--output", file)
    assert code == 0, output + errors
    found = json.loads(file.read_text())
    assert (found["key"]["platform"], found["key"]["tiny"]) == ("cpu", True)
    parts = found["parts"]
    assert parts.keys() == PARTS.keys()
    reasons = {name: part["reason"] for name, part in parts.items() if part["reason"]}
    assert reasons == {
        "loops-pallas": "unavailable: the Pallas kernels are for GPUs and TPUs",
        "no-graphs": "unavailable: CUDA graphs are for NVIDIA GPUs",
        "usual-graphs": "unavailable: CUDA graphs are for NVIDIA GPUs",
    }
    rows = {name: part["rows"][0] for name, part in parts.items() if part["rows"]}
    assert rows["resume"]["bytes that differ"] == 0
    assert 8 <= rows["resume"]["stopped at step"] < rows["resume"]["steps"] == 24
    assert rows["tests"]["passed"] > 0
    assert rows["tests"]["failed"] == rows["tests"]["error"] == 0
    assert rows["precision"]["relative error of a product"] < 1e-6
    assert rows["sweeps"]["runs at once"] == 2
    for name, column in (("tutorial", "an epoch, s (median)"), ("epoch", "ours, ms"), ("layers", "ours, ms"),
                         ("loops-xla", "ms"), ("sweeps", "a step, ms")):  # fmt: skip
        assert rows[name][column] > 0, name
    page = file.with_suffix(".html").read_text()
    assert all(part.title.replace("'", "&#x27;") in page for part in PARTS.values())
    assert "these are a CPU&#x27;s figures" in page.replace("'", "&#x27;")
    assert not re.search(r"(src|href)=", page)  # self-contained
    assert page.count("<td>16.") >= 1  # the test accuracy of a network that saw 256 digits

    code, output, errors = check("--tiny", "--output", file, "tutorial", "loops-xla", "--again", "loops-xla")
    assert code == 0, errors
    assert "tutorial: done before" in output
    again = json.loads(file.read_text())["parts"]
    assert again["loops-xla"]["seconds"] != parts["loops-xla"]["seconds"]
    assert {name: part for name, part in again.items() if name != "loops-xla"} == {
        name: part for name, part in parts.items() if name != "loops-xla"
    }


@pytest.mark.slow
def test_a_part_that_crashes_hangs_or_is_wrong_has_its_rows_and_the_reason(tmp_path):
    programs.start_server()
    crashed, hung, wronged = (
        accelerator_check.run(Part("", 1, (step, never), False, "--own"), Setting(True, "cpu", tmp_path, seconds, {}))
        for step, seconds in ((crash, 60.0), (hang, 2.0), (wrong, 60.0))
    )
    assert crashed["reason"] == "failed: its process ended with exit code -6: the last words"
    assert hung["reason"] == "failed: stopped after 2 s"
    assert wronged["reason"] == "failed: 7 is not 8"
    assert crashed["rows"] == hung["rows"] == [{"row": 1}]  # and the second step did not run
    assert wronged["rows"] == [{"row": f"{os.environ['XLA_FLAGS']} --own"}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--again", "layer"], "unknown part 'layer'; expected some of tutorial, rows-fast,"),
        (["--output", "other.json"], "--output other.json cannot be used: it is of another program. Give another"),
        (["--output", "text.json"], "--output text.json cannot be used: Expecting value"),
        (["--output", "lists.json"], "--output lists.json cannot be used: it is of another program."),
        (["--output", "parts.json"], "--output parts.json cannot be used: it is of another program."),
        (["--output", ""], "--output . is no file."),
        (["--output", "/dev/null"], "--output /dev/null is no file."),
        (["--output", "check.html"], "--output check.html would be the page, too."),
        (["--minutes", "0"], "--minutes is 0, expected more than 0."),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text('{"format": 2}')
    Path("text.json").write_text("text")
    Path("parts.json").write_text('{"format": 1, "key": {}, "machine": {}, "parts": {"tutorial": {"rows": []}}}')
    Path("lists.json").write_text('{"format": 1, "key": [], "machine": {}, "parts": {}}')
    monkeypatch.setattr(sys, "argv", ["accelerator_check.py", *words])
    with pytest.raises(SystemExit, match="2"):
        accelerator_check.main()
    assert message in capsys.readouterr().err
    assert not list(Path().glob("*.html"))


@pytest.mark.slow
def test_without_a_device_nothing_is_written(tmp_path):
    command = [sys.executable, SCRIPTS / "accelerator_check.py", "--tiny", "--output", tmp_path / "check.json"]
    environment = os.environ | {"JAX_PLATFORMS": "rocm"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 2
    assert "accelerator_check.py: JAX does not start here: failed: RuntimeError: " in done.stderr
    assert not (tmp_path / "check.json").exists()
