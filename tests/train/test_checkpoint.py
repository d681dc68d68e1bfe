"""Checkpoints: retention, detection of damage, failed saves."""

import json
import shutil
import subprocess
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.training import checkpoint
from lstm_mnist_jax.training.checkpoint import Checkpoints, MemberStatus, Record

STATE = {"weights": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(3), "step": jnp.int32(7)}


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def record_of(step, score=None):
    return Record(step, 1, 0.0, (MemberStatus(score, step, score),))


def save_epochs(directory, count, keep=2):
    """Saves so many checkpoints, one every 10 steps."""
    with closing(Checkpoints(directory, keep)) as checkpoints:
        for epoch in range(1, count + 1):
            checkpoints.save({"w": jnp.full(3, epoch)}, record_of(10 * epoch, epoch / 10))


def test_what_is_saved_is_what_is_loaded(tmp_path):
    record = Record(7, 2, 1.25, (MemberStatus(0.5, 7, 0.5), MemberStatus(diverged_at=3)))
    with closing(Checkpoints(tmp_path, 1)) as checkpoints:
        checkpoints.save(STATE, record)
    path = checkpoint.checkpoint_path(tmp_path, 7)
    assert checkpoint.find_damage(path) is None
    assert checkpoint.read_record(path) == record
    loaded = checkpoint.load_state(path, abstract(STATE))
    for name in ("weights", "step"):
        np.testing.assert_array_equal(loaded[name], STATE[name])
    np.testing.assert_array_equal(jax.random.key_data(loaded["key"]), jax.random.key_data(STATE["key"]))


def test_the_state_may_be_donated_while_it_is_saved(tmp_path):
    consume = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)
    with closing(Checkpoints(tmp_path, 1)) as checkpoints:
        state = {"w": jnp.arange(1_000_000, dtype=jnp.float32)}
        checkpoints.save(state, record_of(1))
        consume(state)["w"].block_until_ready()
    loaded = checkpoint.load_state(
        checkpoint.checkpoint_path(tmp_path, 1), abstract({"w": jnp.arange(1_000_000, dtype=jnp.float32)})
    )
    np.testing.assert_array_equal(loaded["w"], np.arange(1_000_000))


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_are_kept(tmp_path, keep):
    save_epochs(tmp_path, 4, keep)
    assert checkpoint.finished_steps(tmp_path) == [30, 40][-keep:]
    with pytest.raises(RunError, match=r"record\.json cannot be read: Not a directory"):
        checkpoint.finished_steps(tmp_path / "00000040" / "record.json")


def test_the_list_of_sums_is_what_sha256sum_reads(tmp_path):
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum on this machine")
    save_epochs(tmp_path, 1)
    done = subprocess.run(["sha256sum", "-c", "--strict", checkpoint.SUMS], cwd=tmp_path / "00000010", check=False)
    assert done.returncode == 0


def each_file(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_a_flipped_bit_in_any_file_is_found(tmp_path):
    save_epochs(tmp_path, 1)
    path = tmp_path / "00000010"
    assert len(each_file(path)) > 5
    for file in each_file(path):
        sound = file.read_bytes()
        damaged = bytearray(sound or b"x")
        damaged[len(damaged) // 2] ^= 16
        file.write_bytes(damaged)
        assert checkpoint.find_damage(path) is not None, file
        file.write_bytes(sound)
    assert checkpoint.find_damage(path) is None


def test_missing_extra_and_truncated_files_are_found(tmp_path):
    save_epochs(tmp_path, 1)
    path = tmp_path / "00000010"
    for file in each_file(path):
        sound = file.read_bytes()
        file.unlink()
        assert checkpoint.find_damage(path) is not None, file
        if sound:
            file.write_bytes(sound[:-2])
            assert checkpoint.find_damage(path) is not None, file
        file.write_bytes(sound)
    (path / ".DS_Store").write_text("whatever a file manager leaves")
    assert checkpoint.find_damage(path) is None


def test_resume_steps_back_over_damage_and_loses_nothing(tmp_path):
    save_epochs(tmp_path, 4, keep=4)
    (tmp_path / "00000040" / "record.json").write_text("{}")
    (tmp_path / "00000050" / "state").mkdir(parents=True)  # a save that was cut short
    assert checkpoint.newest_sound_step(tmp_path) == 30
    lines = checkpoint.set_aside(tmp_path, newer_than=30)
    assert lines == [
        "Checkpoint 00000040 has a damaged file, record.json; it is set aside as damaged-00000040.",
        "Checkpoint 00000050 was never finished; its remains are removed.",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000010", "00000020", "00000030", "damaged-00000040"]


def test_a_state_of_another_kind_is_refused(tmp_path):
    save_epochs(tmp_path, 1)
    with pytest.raises(RunError, match="cannot be read as a state"):
        checkpoint.load_state(tmp_path / "00000010", abstract(STATE))


def test_a_failed_save_is_an_error_and_keeps_the_other_checkpoints(tmp_path):
    save_epochs(tmp_path, 1)
    with closing(Checkpoints(tmp_path, 3)) as checkpoints:
        (tmp_path / "00000020").write_text("a file in the way")
        with pytest.raises(RunError, match=r"step 20 could not be written .* The newest one is that of step 10"):
            checkpoints.save({"w": jnp.zeros(3)}, record_of(20))
    assert checkpoint.newest_sound_step(tmp_path) == 10


def test_records_are_plain_json(tmp_path):
    save_epochs(tmp_path, 1)
    assert json.loads((tmp_path / "00000010" / "record.json").read_text()) == {
        "step": 10,
        "places": 1,
        "epoch_seconds": 0.0,
        "members": [{"score": 0.1, "best_step": 10, "best_score": 0.1, "diverged_at": None}],
    }
