"""A run that reads digits, digits that it has not seen, pictures of them, and `lstm-mnist predict`."""

import numpy as np
import pytest
from PIL import Image

from lstm_mnist_jax import load, load_run


@pytest.fixture(scope="module")
def run(digits_run):
    return load_run(digits_run)


@pytest.fixture(scope="module")
def unseen():
    return load().test


@pytest.fixture
def predict(digits_run, command_line):
    """(exit code, standard output, standard error) of the command."""

    def predict(*words, run_dir=digits_run):
        done = command_line("predict", run_dir, *words)
        return done.returncode, done.stdout, done.stderr

    return predict


@pytest.fixture
def scans(tmp_path, unseen):
    """A folder of pictures of digits, of all kinds, with their names and digits; and a file that is none."""
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    images = [Image.fromarray(np.kron(255 - image, np.ones((6, 6), np.uint8))) for image in unseen.images[:5]]
    for n, kind in enumerate(("png", "jpg", "bmp", "gif", "webp")):
        images[n].save(folder / f"{n}.{kind}")
    np.save(folder / "more" / "5.npy", unseen.images[5:8])
    (folder / "notes.txt").write_text("none")
    names = [*(str(folder / f"{n}.{kind}") for n, kind in enumerate(("png", "jpg", "bmp", "gif", "webp")))]
    return folder, [*names, *(f"{folder / 'more' / '5.npy'}[{n}]" for n in range(3))]
