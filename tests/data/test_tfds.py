"""TFDS on small sets that the test prepares itself, without TensorFlow, in processes of their own."""

import json
import os

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
            yield n, {"image": png(np.full(shape, 99 + n, np.uint8).squeeze()), "label": n % 3}

class ToyColour(Base):
    pass

class ToyGrey(Base):
    SHAPE = (8, 6, 1)
    SPLITS = {"train": 30, "validation": 7, "test": 10}

class ToyRagged(Base):
    SHAPE = (None, 6, 3)

class ToyUnlabelled(Base):
    LABEL = np.int64

class ToyAbsent(Base):
    LABEL = tfds.features.ClassLabel(num_classes=5)

class Emnist(Base):
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version="3.1.0") for name in ("digits", "letters")]
    VERSION = tfds.core.Version("3.1.0")

    def _info(self):
        self.LABEL = tfds.features.ClassLabel(num_classes=37 if self.builder_config.name == "letters" else 10)
        self.SHAPE = (8, 6, 1)
        return super()._info()

    def _generate_examples(self, count):
        letters = self.builder_config.name == "letters"
        image = np.zeros((8, 6), np.uint8)
        image[:, 1] = 255  # a long stroke, and a short one at its end: an L on its side, mirrored
        image[7, 1:4] = 200
        for n in range(count * (3 if letters else 1)):
            yield n, {"image": png(image), "label": n % 26 + 1 if letters else n % 10}

for config in ("digits", "letters"):
    Emnist(config=config, data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
for cls in (ToyColour, ToyGrey, ToyRagged, ToyUnlabelled, ToyAbsent):
    cls(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""

LOAD = """
import json, pathlib, sys
from lstm_mnist_jax.data import load
from lstm_mnist_jax.errors import DataError
folder, *names = sys.argv[1:]
found = {}
for name in names:
    try:
        cut, plain = name.split("#") if "#" in name else ("", name)
        for file in pathlib.Path(folder).rglob(f"{plain[5:]}-{cut}*") if cut else ():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        data = load(plain.removesuffix("+"), data_dir=folder, validation_examples=4,
                    classes="present" if name.endswith("+") else "declared")
        found[name] = {
            "shapes": {name: list(split.images.shape) for name, split in data.splits.items()},
            "values": sorted({int(v) for v in data.test.images.reshape(len(data.test), -1)[:, 0]}),
            "consistent": bool((data.train.images.reshape(len(data.train), -1)[:, 0] % 3 == data.train.labels).all()),
            "classes": data.class_names,
            "tensorflow": "tensorflow" in sys.modules,
            "image": data.test.images[0].tolist() if "emnist" in name else None,
            "labels": [int(data.train.labels.min()), int(data.train.labels.max())],
        }
    except DataError as error:
        found[name] = {"error": str(error)}
print(json.dumps(found))
"""

NAMES = [
    "toy_colour",
    "toy_grey:1.0.0",
    "toy_ragged",
    "toy_unlabelled",
    "toy_absent",
    "toy_absent+",
    "toy_nothing",
    "",
    "mnist",
    "mnist:9.9.9",
    "emnist/digits",
    "emnist/letters",
]


def run(program, folder, *arguments):
    # TFDS leaves an empty folder for temporary files for each set that is not prepared.
    done = programs.run([folder, *arguments], code=program, env=os.environ | {"TMPDIR": folder})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What a process finds in each of the sets that another has prepared."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    run(PREPARE, folder)
    return json.loads(run(LOAD, folder, *(f"tfds:{name}" for name in NAMES), "train#tfds:toy_colour").splitlines()[-1])


class TestPreparedSets:
    def test_colour_images_without_a_validation_split(self, loaded):
        found = loaded["tfds:toy_colour"]
        assert found["shapes"] == {"train": [26, 8, 6, 3], "validation": [4, 8, 6, 3], "test": [10, 8, 6, 3]}
        assert found["values"] == list(range(99, 109))
        assert found["consistent"]
        assert found["classes"] == ["ant", "bee", "cat"]
        assert found["tensorflow"] is False

    def test_grey_images_with_a_validation_split_of_their_own(self, loaded):
        found = loaded["tfds:toy_grey:1.0.0"]
        assert found["shapes"] == {"train": [30, 8, 6], "validation": [7, 8, 6], "test": [10, 8, 6]}

    def test_emnist_is_upright_and_named(self, loaded):
        letters, digits = loaded["tfds:emnist/letters"], loaded["tfds:emnist/digits"]
        assert digits["shapes"]["train"] == [26, 6, 8]
        for image in (letters["image"], digits["image"]):
            assert image[1] == [255] * 7 + [200]  # the long stroke lies
            assert [row[7] for row in image] == [0, 200, 200, 200, 0, 0]  # and the short one goes down at its right
        assert letters["classes"] == list("abcdefghijklmnopqrstuvwxyz")
        assert letters["labels"] == [0, 25]
        assert digits["classes"] == list("0123456789")

    def test_classes_without_examples(self, loaded):
        assert "none is of class 3, 4" in loaded["tfds:toy_absent"]["error"]
        assert "--classes present" in loaded["tfds:toy_absent"]["error"]
        assert loaded["tfds:toy_absent+"]["classes"] == ["0", "1", "2"]

    def test_a_truncated_file_is_named(self, loaded):
        error = loaded["train#tfds:toy_colour"]["error"]
        assert "tfds:toy_colour, split train: example 0 cannot be read" in error
        assert "damaged or truncated? Delete them, and prepare the set once more" in error

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
