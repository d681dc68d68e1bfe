"""How many devices share a batch, and which options of JAX a command sets."""

import os
import subprocess
import sys

import jax
import numpy as np
import programs
import pytest

from lstm_mnist_jax.config import Execution
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.training import mesh


@pytest.mark.parametrize(
    ("available", "batch_size", "expected"),
    [(1, 64, 1), (2, 64, 2), (3, 64, 2), (8, 64, 8), (64, 64, 8), (2, 65, 1), (4, 96, 4), (8, 7, 1), (6, 90, 6)],
)
def test_the_default_number_of_devices_divides_the_batch_with_enough_examples_each(available, batch_size, expected):
    assert mesh._default_count(available, batch_size) == expected


@pytest.mark.parametrize(("available", "batch_size", "expected"), [(8, 64, 1), (8, 512, 8), (4, 1024, 4), (2, 127, 1)])
def test_accelerators_need_more_examples_each(available, batch_size, expected):
    assert mesh._default_count(available, batch_size, "gpu") == expected


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
def test_uneven_shares_are_refused_with_a_proposal(monkeypatch):
    monkeypatch.setattr(mesh, "usable_cores", lambda: 2)
    with pytest.raises(
        ConfigError,
        match=r"A batch of 65 cannot be shared evenly by 2 devices\. Use --devices 1, or --batch-size 64 or 66",
    ):
        mesh.make_mesh(Execution(devices=2), 65)
    with pytest.raises(ConfigError, match=r"Use --devices 1, or --batch-size 2\."):
        mesh.make_mesh(Execution(devices=2), 1)
    if jax.default_backend() == "cpu":
        monkeypatch.setattr(mesh, "usable_cores", lambda: 1)
        with pytest.raises(ConfigError, match=r"by 2 devices; this machine has 1 CPU core\(s\)\. Use --devices 1\."):
            mesh.make_mesh(Execution(devices=2), 65)


def test_more_devices_than_there_are():
    with pytest.raises(ConfigError, match=r"devices is 1000, but JAX shows \d+ \w+ device"):
        mesh.make_mesh(Execution(devices=1000), 1000)


@pytest.mark.parametrize(
    ("cores", "devices", "batch_size", "expected"),
    [
        (2, None, 63, "1 of 2 devices is used: a batch of 63 cannot be shared evenly. More are used with"),
        (8, None, 65, "1 of 8 devices is used: a batch of 65 cannot be shared evenly. More are used with"),
        (1, None, 63, None),
        (2, None, 9, None),  # too few for two
        (2, 1, 63, None),  # as asked
        (0.5, 1, 64, "1 devices share 0.5 CPU core(s), which is slower than --devices 0.5"),
    ],
)
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="counts CPU cores")
def test_hint_at_devices_that_are_too_many_or_too_few(monkeypatch, cores, devices, batch_size, expected):
    monkeypatch.setattr(mesh, "usable_cores", lambda: cores)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    one = mesh.make_mesh(Execution(devices=1), batch_size)
    found = mesh.hint(one, Execution(devices=devices), batch_size)
    assert found == expected or (found is not None and expected is not None and found.startswith(expected))


def test_every_device_of_the_mesh_is_on_the_data_axis():
    found = mesh.make_mesh(Execution(devices=1), 64)
    assert found.axis_names == ("member", "data")
    assert mesh.describe(found).startswith("1 x ")


LOSSES = """
from dataclasses import replace
from runs import TINY
from lstm_mnist_jax.config import Execution, ModelConfig
from lstm_mnist_jax.data import load
from lstm_mnist_jax.training import make_program
from lstm_mnist_jax.training.mesh import make_mesh

one_layer, dataset = replace(TINY, model=ModelConfig(hidden_features=(6,))), load(**vars(TINY.data))
for devices in (1, 2, 4, 8):
    program = make_program([one_layer], dataset, make_mesh(Execution(devices=devices), TINY.batch_size))
    state, losses = program.init(), []
    for _ in range(2 * program.steps_per_epoch):
        state = program.run_steps(state, 1)
        losses.append(float(state.epoch_sums.loss[0]))
    print(*losses)
"""


@pytest.mark.slow
def test_the_loss_curve_is_the_same_on_1_2_4_and_8_devices():
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = programs.run(code=LOSSES, env=env)
    assert done.returncode == 0, done.stderr
    one, *others = np.array([line.split() for line in done.stdout.splitlines()], float)
    assert len(one) == 30
    assert np.diff(one[-6:]).mean() < 0.9 * one[0]  # it learns
    for losses in others:
        np.testing.assert_allclose(losses, one, rtol=2e-6)


CACHE = """
import jax
from lstm_mnist_jax.cli.parsing import CommandExecution, start_jax
start_jax(CommandExecution(compilation_cache=False))
assert not jax.config.values["jax_enable_compilation_cache"]
jax.config.update("jax_enable_compilation_cache", True)
start_jax(CommandExecution())
for name in ("compilation_cache_dir", "compilation_cache_max_size", "persistent_cache_min_compile_time_secs"):
    print(jax.config.values[f"jax_{name}"], end=" ")
"""


@pytest.mark.slow
def test_commands_cache_compiled_programs_in_the_users_folder_unless_another_is_set(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_PERSISTENT", "JAX_COMPIL"))}
    for own, expected in [
        ({}, f"{tmp_path}/lstm_mnist_jax/compiled {1 << 30} 0"),
        ({"JAX_COMPILATION_CACHE_DIR": "/own", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}, "/own -1 0.5"),
    ]:
        program = [sys.executable, "-c", CACHE]
        environment = env | {"XDG_CACHE_HOME": str(tmp_path)} | own
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == expected, done.stderr
