"""TFDS on small sets that the test prepares itself, without TensorFlow, in processes of their own."""

import json

import programs
import pytest

PREPARE = """
import io, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    file.seek(0)
    return file

class Base(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SHAPE, SPLITS, LABEL = (8, 6, 3), {"train": 30, "test": 10}, tfds.features.ClassLabel(names=["ant", "bee", "cat"])

    def _info(self):
        features = {"image": tfds.features.Image(shape=self.SHAPE), "label": self.LABEL}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, manager):
        return {name: self._generate_examples(count) for name, count in self.SPLITS.items()}

    def _generate_examples(self, count):
        for n in range(count):
            shape = tuple(size or 5 + n % 2 for size in self.SHAPE)
            yield n, {"image": png(np.full(shape, n, np.uint8).squeeze()), "label": n % 3}

class ToyColour(Base):
    pass

class ToyGrey(Base):
    SHAPE = (8, 6, 1)
    SPLITS = {"train": 30, "validation": 7, "test": 10}

class ToyRagged(Base):
    SHAPE = (None, 6, 3)

class ToyUnlabelled(Base):
    LABEL = np.int64

for cls in (ToyColour, ToyGrey, ToyRagged, ToyUnlabelled):
    cls(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""

LOAD = """
import json, sys
from lstm_mnist_jax.data import load
from lstm_mnist_jax.errors import DataError
folder, *names = sys.argv[1:]
found = {}
for name in names:
    try:
        data = load(name, data_dir=folder, validation_examples=4)
        found[name] = {
            "shapes": {name: list(split.images.shape) for name, split in data.splits.items()},
            "values": sorted({int(v) for v in data.test.images.reshape(len(data.test), -1)[:, 0]}),
            "consistent": bool((data.train.images.reshape(len(data.train), -1)[:, 0] % 3 == data.train.labels).all()),
            "classes": data.class_names,
            "tensorflow": "tensorflow" in sys.modules,
        }
    except DataError as error:
        found[name] = {"error": str(error)}
print(json.dumps(found))
"""

NAMES = ["toy_colour", "toy_grey:1.0.0", "toy_ragged", "toy_unlabelled", "toy_nothing", "", "mnist", "mnist:9.9.9"]


def run(program, *arguments):
    done = programs.run(arguments, code=program)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What a process finds in each of the sets that another has prepared."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    run(PREPARE, folder)
    return json.loads(run(LOAD, folder, *(f"tfds:{name}" for name in NAMES)).splitlines()[-1])


class TestPreparedSets:
    def test_colour_images_without_a_validation_split(self, loaded):
        found = loaded["tfds:toy_colour"]
        assert found["shapes"] == {"train": [26, 8, 6, 3], "validation": [4, 8, 6, 3], "test": [10, 8, 6, 3]}
        assert found["values"] == list(range(10))
        assert found["consistent"]
        assert found["classes"] == ["ant", "bee", "cat"]
        assert found["tensorflow"] is False

    def test_grey_images_with_a_validation_split_of_their_own(self, loaded):
        found = loaded["tfds:toy_grey:1.0.0"]
        assert found["shapes"] == {"train": [30, 8, 6], "validation": [7, 8, 6], "test": [10, 8, 6]}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("tfds:toy_ragged", "expected images of one size"),
            ("tfds:toy_unlabelled", "is not an image classification set: its features are ['image', 'label']"),
            ("tfds:toy_nothing", "has no set 'toy_nothing', and none of that name is prepared"),
            ("tfds:", "tfds: cannot be opened"),
            ("tfds:mnist", 'download_and_prepare()"'),
            ("tfds:mnist", "pip install tensorflow-cpu"),
            ("tfds:mnist:9.9.9", "9.9.9"),
        ],
    )
    def test_unsuitable_sets_are_refused(self, loaded, name, message):
        assert message in loaded[name]["error"]
