"""Distributed training: processes on the loopback that join, are killed, and resume."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import programs
import pytest
from programs import Program, free_port
from runs import TINY, TINY_OPTIONS, metrics_of

from lstm_mnist_jax import load_run, train
from lstm_mnist_jax.config import Processes
from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.sweeps import Space, sweep
from lstm_mnist_jax.training import checkpoint, processes

LAUNCH = Path(__file__).parents[2] / "scripts" / "launch_local.py"
END_SECONDS = 120
"""Within which a process whose other is gone must have ended."""


def environment():
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}


COMMANDS = """
import json, sys
from lstm_mnist_jax.cli.main import main
from lstm_mnist_jax.training import processes
processes.HEARTBEAT_SECONDS = 6  # not 30: some ends are noticed only by it
processes.LEAVE_SECONDS = 1.0
*commands, last = json.loads(sys.argv[1])
for words in commands:
    try:
        main(words)
    except SystemExit as end:
        print("exit code", end.code, flush=True)
main(last)
"""


NUMBER = object()
"""Among the words of a command: 0 for the first process, 1 for the second."""


def start_two(*commands, variables=({}, {}), is_slurm_job=False):
    """`lstm-mnist WORDS` in two processes, for one command after another.

    They are joined by --coordinator, or by the environment of two processes that `srun` starts: JAX reads the
    coordinator's host and its port off the job.
    """
    together = [] if is_slurm_job else ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2]
    job, started = str(free_port() % 4096), []
    for number in range(2):
        own = [*together, "--process-id", number] if together else []
        words = [[str(number if word is NUMBER else word) for word in (*words, *own)] for words in commands]
        slurm = slurm_variables(number, job) if is_slurm_job else {}
        started.append(Program([json.dumps(words)], code=COMMANDS, env=environment() | slurm | variables[number]))
    return started


def slurm_variables(number, job="1"):
    return {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "SLURM_STEP_NUM_NODES": "1",
    }


def ends_of(pair):
    """Exit code, output and errors of each program, once all have ended."""
    try:
        outputs = [program.communicate(timeout=END_SECONDS) for program in pair]
    finally:
        for program in pair:
            program.kill()
    return [
        subprocess.CompletedProcess((), program.returncode, *texts)
        for program, texts in zip(pair, outputs, strict=True)
    ]


def lines_of(end):
    return [line for line in end.stdout.splitlines() if "[Gloo]" not in line]  # XLA's own line


def last_step(run_dir):
    """That of the last line of metrics; 0 where there is none yet."""
    return max((metrics["step"] for metrics in metrics_of(run_dir)), default=0)


def assert_same_run(found, expected):
    for a, b in zip(metrics_of(found), metrics_of(expected), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    for name in ("last", "best"):
        runs = load_run(found, name), load_run(expected, name)
        for a, b in zip(*(jax.tree.leaves(run.params) for run in runs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def slurm_job(tiny_run, tmp_path_factory):
    """The folder of what two processes of a SLURM job have trained, and what each of their commands printed.

    The commands follow one another in the same two processes, which compile a program that two of them share once.
    The last is refused: the processes ask for different runs.
    """
    folder = tmp_path_factory.mktemp("together")
    shutil.copytree(tiny_run, folder / "resumed")
    for step in (30, 45):
        shutil.rmtree(checkpoint.checkpoint_path(folder / "resumed" / "checkpoints", step))
    first, second = ends_of(
        start_two(
            ["train", *TINY_OPTIONS, "--epochs", 1, "--run-dir", folder / "run"],
            ["train", "--resume", folder / "resumed", "--device-data-limit", 1e-4],
            ["train", *TINY_OPTIONS, "--seeds", 3, "--run-dir", folder / "seeds"],
            ["sweep", *TINY_OPTIONS[:-2], "4,6", "--epochs", 1, "--run-dir", folder / "one"],
            ["train", *TINY_OPTIONS, "--seed", NUMBER, "--run-dir", folder / "different"],
            is_slurm_job=True,
        )
    )
    assert lines_of(second) == ["exit code 0"] * 4, first.stderr + second.stderr
    for end in (first, second):  # of the last command
        assert end.returncode == 2, end.stderr
        assert end.stderr.count("lstm-mnist:") == 1
        assert "The processes differ: config.seed is 0 for process 0 and 1 for process 1" in end.stderr
    assert not (folder / "different").exists()
    return folder, first.stdout.split("exit code 0\n")


@pytest.mark.slow
def test_two_processes_of_a_slurm_job_train_what_one_does_and_one_resumes_it(slurm_job, tiny_run):
    folder, (printed, *_) = slurm_job
    assert "on 2 x cpu in 2 processes" in printed
    assert printed.count("epoch 1/1") == 1
    assert train(TINY, folder / "run", resume=True).trained
    assert_same_run(folder / "run", tiny_run)


@pytest.mark.slow
def test_two_processes_resume_and_stream_train_a_sweep_and_one_member_as_one_process_does(
    slurm_job, tiny_run, tiny_sweep
):
    folder, (_, resumed, _, one, _) = slurm_job
    assert "resumed at step 15: 1 of 3 epochs are done" in resumed
    assert "1 of 1 run done" in one
    assert_same_run(folder / "resumed", tiny_run)
    found, expected = metrics_of(folder / "seeds"), metrics_of(tiny_sweep)
    assert len(found) == len(expected) == 3 * TINY.epochs
    for own, other in zip(found, expected, strict=True):
        assert own == pytest.approx(other, rel=1e-4)
    # What two have saved one can resume.
    longer = dataclasses.replace(TINY, epochs=TINY.epochs + 1)
    assert sweep(longer, Space(seeds=3), folder / "seeds", resume=True).trained


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_both_and_a_kill_of_one_ends_both_with_a_message(tiny_run, tmp_path):
    run_dir = tmp_path / "run"
    checkpoints, again = run_dir / "checkpoints", ["train", "--resume", run_dir]
    words = ["train", *TINY_OPTIONS, "--epochs", 5000, "--checkpoint-minutes", 1e-6, "--run-dir", run_dir]

    def wait_until(condition, pair):
        deadline = time.monotonic() + END_SECONDS
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [process.poll() for process in pair] == [None, None]

    def read_until(start, program):
        """The lines that a program prints up to one that begins so."""
        lines = []
        for line in program.stdout:
            lines.append(line)
            if line.startswith(start):
                break
        return lines

    step = 0
    for number, command in enumerate((words, again)):
        # A killed run may have written metrics of later steps than it saved. The resumed one goes beyond them.
        written = last_step(run_dir)
        pair = start_two(command, again)
        wait_until(lambda written=written: written < last_step(run_dir), pair)
        pair[number].send_signal(signal.SIGTERM)
        printed = "".join(read_until("exit code", pair[0]))
        assert command is words or f"resumed at step {step:,}:" in printed
        assert f"stopped and saved; continue with:\n  lstm-mnist train --resume {run_dir}\n" in printed
        assert printed.endswith(f"exit code {128 + signal.SIGTERM}\n")
        saved = int(read_until("resumed at step", pair[0])[-1].split()[3].rstrip(":").replace(",", ""))
        assert saved > step
        wait_until(lambda saved=saved: checkpoint.finished_steps(checkpoints)[-1:] > [saved + 1], pair)
        pair[number].kill()
        ends = ends_of(pair)
        assert ends[number].returncode == -signal.SIGKILL
        assert ends[1 - number].returncode != 0
        message = ends[1 - number].stderr
        assert re.search("Another of the 2 processes ended|another task died", message), message
        assert lines_of(ends[1]) == [f"exit code {128 + signal.SIGTERM}"]
        step = checkpoint.newest_sound_step(checkpoints)
        assert step > saved
    for a, b in zip(metrics_of(run_dir)[:2], metrics_of(tiny_run)[:2], strict=True):
        assert a == pytest.approx(b, rel=1e-3)  # later epochs drift apart by rounding, as any two orders of sums do


@pytest.fixture
def launcher():
    spec = importlib.util.spec_from_file_location("launch_local", LAUNCH)
    launcher = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launcher)
    return launcher


def test_the_launcher_shares_the_cores_among_the_processes_unless_devices_are_asked_for(monkeypatch, launcher):
    monkeypatch.setattr(launcher.os, "sched_getaffinity", lambda process: set(range(7)), raising=False)
    monkeypatch.setattr(launcher.psutil, "cpu_count", lambda logical: 6)
    assert launcher._with_devices(["train", "smoke"], 2) == ["train", "smoke", "--devices", "3"]
    assert launcher._with_devices(["train"], 9) == ["train", "--devices", "1"]
    for words in (["train", "--devices", "2"], ["train", "--devices=2"]):
        assert launcher._with_devices(words, 2) == words


@pytest.mark.parametrize(
    ("scripts", "code"),
    [
        (["true", "true"], 0),
        (["true", "exit 3"], 3),
        (["kill -KILL $$", "true"], 128 + signal.SIGKILL),
        (["exit 2", "exec sleep 600"], 2),
    ],
)
def test_the_launcher_passes_on_a_failure_and_ends_what_is_left(monkeypatch, launcher, scripts, code):
    monkeypatch.setattr(launcher, "PATIENCE_SECONDS", 0.1)
    started = [subprocess.Popen(["sh", "-c", script]) for script in scripts]
    assert launcher._wait(started) == code
    assert all(process.poll() is not None for process in started)


REFUSED = """
import dataclasses, sys
from runs import TINY
from lstm_mnist_jax import UserError, train
from lstm_mnist_jax.cli.main import main
from lstm_mnist_jax.config import Processes

def fails(metrics, run_dir):
    raise KeyError("full")

number, coordinator, run_dir = sys.argv[1:]
try:
    train(dataclasses.replace(TINY, batch_size=63), run_dir, together=Processes(coordinator, 2, int(number)))
except UserError as error:
    print(error, flush=True)
try:
    train(dataclasses.replace(TINY, seed=int(number)), run_dir)
except UserError as error:
    print(error, flush=True)
try:
    train(TINY, run_dir + "-tracked", on_epoch=fails if number == "0" else None)
except UserError as error:
    print(error, flush=True)
main(["train", "smoke", "--run-dir", run_dir])
"""


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_different_runs_and_errors_of_on_epoch_and_of_process_0_end_both(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("")
    words = [f"127.0.0.1:{free_port()}", tmp_path / "run"]
    pair = [Program([number, *words], code=REFUSED, env=environment()) for number in range(2)]
    first, second = ends_of(pair)
    for end in (first, second):
        assert "A batch of 63 cannot be shared evenly by 2 devices" in end.stdout, end.stderr
        assert "--batch-size 62 or 64" in end.stdout
        assert "The processes differ: config.seed is 0 for process 0 and 1 for process 1" in end.stdout
        assert "after epoch 1. The run has stopped, and everything up to this epoch is saved in" in end.stdout
    assert "on_epoch failed with KeyError: 'full'," in first.stdout
    assert "on_epoch failed in process 0," in second.stdout
    assert checkpoint.newest_sound_step(tmp_path / "run-tracked" / "checkpoints") == 15
    assert first.returncode == 2, first.stderr
    assert "holds other files; choose an empty or a new folder as --run-dir." in first.stderr
    assert second.returncode != 0


@pytest.mark.slow
def test_processes_with_different_numbers_of_devices_are_refused(tmp_path):
    variables = ({"JAX_NUM_CPU_DEVICES": "1"}, {"JAX_NUM_CPU_DEVICES": "2"})
    for end in ends_of(start_two(["train", *TINY_OPTIONS, "--run-dir", tmp_path / "run"], variables=variables)):
        assert end.returncode == 2, end.stderr
        message = "different numbers of devices: process 0 has 1, process 1 has 2. Give each as many"
        assert message in end.stderr


XLA_GLOO = "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
XLA_BARRIER = "DEADLINE_EXCEEDED: Barrier timed out. Id: x::0. This usually happens because a task triggered it"
ORBAX_BARRIER = (
    "Timeout waiting at barrier 'sync'. The original error raised was: INTERNAL: Barrier failed because: task is set "
    "to ERROR: UNAVAILABLE: Task 1 heartbeat timeout. [type.googleapis.com/tensorflow.CoordinationServiceError='']"
)


@pytest.mark.parametrize(
    ("error", "count", "expected"),
    [
        (ValueError(XLA_GLOO), 2, True),
        (jax.errors.JaxRuntimeError(XLA_BARRIER), 2, True),
        (jax.errors.JaxRuntimeError(f"INTERNAL: {XLA_GLOO}"), 2, True),
        (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation ncclAllReduce failed: remote process exited"), 2, True),
        (TimeoutError(ORBAX_BARRIER), 2, True),
        (ValueError(XLA_GLOO), 1, False),
        (ValueError("The barrier of the option is 3, expected 2"), 2, False),
        (ValueError("gloo is no backend of this program"), 2, False),
        (ValueError("UNKNOWN: a barrier was mentioned"), 2, False),
        (TimeoutError("Timeout waiting at barrier 3 of the data"), 2, False),
        (KeyError(XLA_GLOO), 2, False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), 2, False),
        (ConfigError(XLA_GLOO), 2, False),
    ],
)
def test_only_errors_of_communication_count_as_the_failure_of_another_process(monkeypatch, error, count, expected):
    monkeypatch.setattr(jax, "process_count", lambda: count)
    with pytest.raises(RunError if expected else type(error)) as raised, processes.explain_process_failures():
        raise error
    assert (raised.value is error) is not expected
    if expected:
        assert "Another of the 2 processes ended, or cannot be reached any more" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_processes": 2}, "coordinator, process_id must be given as well"),
        ({"process_id": 1}, "coordinator, num_processes must be given as well"),
        ({"coordinator": "host:1", "num_processes": 2}, "process_id must be given as well"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "coordinator is 'host', expected HOST:PORT"),
        ({"coordinator": "host:0", "num_processes": 2, "process_id": 0}, "a port from 1 to 65535"),
        ({"coordinator": "h:1", "num_processes": 0, "process_id": 0}, "num_processes is 0, expected 1 or more"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "process_id is 2, expected 0 to 1"),
        ({"join_timeout": 0.0}, "join_timeout is 0.0"),
    ],
)
def test_impossible_options_of_processes_are_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Processes(**options)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, False),  # in a batch script, not in srun
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "8"}, True),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, False),  # salloc's own
        ({"OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "x"}, False),
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_which_environments_name_other_processes(monkeypatch, variables, expected):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.environment_names_others() is expected


def test_an_mpi_version_that_jax_cannot_read_is_refused(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"Give each --coordinator HOST:PORT --num-processes \$OMPI_COMM_WORLD_SIZE"):
        processes.environment_names_others()


@pytest.mark.slow
def test_a_process_of_a_slurm_job_trains_alone_where_it_is_asked_to(tmp_path):
    options = [*TINY_OPTIONS, "--epochs", 1, "--num-processes", 1, "--run-dir", tmp_path / "run"]
    done = programs.run(["train", *options], env=environment() | slurm_variables(1))  # process 0 never comes
    assert done.returncode == 0, done.stderr
    assert "on 1 x cpu; ready in " in done.stdout
    assert load_run(tmp_path / "run", "last").step == 15


@pytest.mark.slow
def test_ctrl_c_to_one_before_it_trains_ends_both(tmp_path):
    options = [*TINY_OPTIONS, "--epochs", 5000, "--no-compilation-cache"]
    pair = start_two(["train", *options, "--run-dir", tmp_path / "run"])
    for line in pair[0].stdout:
        if line.startswith("run "):  # it compiles now
            break
    deadline = time.monotonic() + END_SECONDS
    while pair[1].poll() is None and time.monotonic() < deadline:
        pair[1].send_signal(signal.SIGINT)  # again, as a person would: Python may lose one in a destructor
        again = time.monotonic() + 3
        while pair[1].poll() is None and time.monotonic() < again:
            time.sleep(0.05)
    assert all(end.returncode != 0 for end in ends_of(pair))
