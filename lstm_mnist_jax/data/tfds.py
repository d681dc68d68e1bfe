"""Image classification sets of TensorFlow Datasets, read without TensorFlow.

TFDS reads sets that were prepared in the array_record format with NumPy and an image decoder alone. To prepare most
sets (download, parse and write them, once) takes the network and TensorFlow.
"""

from typing import Any

import numpy as np

from lstm_mnist_jax.data.dataset import Dataset, assembled
from lstm_mnist_jax.data.idx import emnist_names, emnist_upright
from lstm_mnist_jax.errors import DataError


def load_tfds(name: str, data_dir: str | None = None) -> Dataset:
    """Loads a prepared TFDS set with the splits `train` and `test` (or, failing that, `validation`).

    Where all three splits exist, `validation` is used as it is; otherwise the validation split is left empty.

    Args:
      name: as TFDS writes it: `name`, `name/config`, `name:version`.
      data_dir: the folder of prepared data; None is TFDS's default (`$TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`).

    Raises:
      DataError: the set is unknown, not prepared as array_record, or not one of images of one size.
    """
    builder = _find_builder(name, data_dir)
    image_key, label_key = _find_features(name, builder.info)
    class_names = tuple(builder.info.features[label_key].names)
    splits = builder.info.splits
    test_name = "test" if "test" in splits else "validation"
    if not {"train", test_name} <= splits.keys():
        raise DataError(f"tfds:{name} has the splits {', '.join(splits)}, expected train and test (or validation).")
    used = ["train", "validation", "test"] if {"validation", "test"} <= splits.keys() else ["train", test_name]
    found = {split: _read(builder, split, image_key, label_key, name) for split in used}
    notes: tuple[str, ...] = ()
    if builder.info.name == "emnist":
        part = builder.info.config_name or "byclass"
        names, first = emnist_names(part, np.concatenate([labels for _, labels in found.values()]))
        class_names = names or class_names
        found = {split: (emnist_upright(images), labels - np.int32(first)) for split, (images, labels) in found.items()}
        notes = ("transposed, as EMNIST is published",)
    found["test"] = found.pop(test_name)
    return assembled(found, class_names, f"tfds:{name} in {builder.data_dir}", notes)


def _read(builder: Any, split: str, image_key: str, label_key: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a split."""
    where, images, labels = f"tfds:{name}, split {split}", list[np.ndarray](), list[int]()
    expected = builder.info.splits[split].num_examples
    try:
        source = builder.as_data_source(split=split)
        if len(source) != expected:
            raise DataError(
                f"{where}: its files in {builder.data_dir} hold {len(source):,} examples, but {expected:,} were "
                "prepared. Prepare it once more."
            )
        for example in source:
            images.append(example[image_key])
            labels.append(example[label_key])
            if images[-1].shape != images[0].shape:
                raise DataError(
                    f"{where}: image {len(images) - 1} is {images[-1].shape}, the first {images[0].shape}; expected "
                    "images of one size."
                )
    except DataError:
        raise
    except Exception as error:  # of the record files or of the image decoder, of many types
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{where}: example {len(images):,} cannot be read ({what}). Are the files in {builder.data_dir} damaged or "
            "truncated? Delete them, and prepare the set once more."
        ) from error
    if not images:
        raise DataError(f"{where} has no examples.")
    stacked = np.stack(images)
    if stacked.dtype != np.uint8:
        raise DataError(f"{where} has images of type {stacked.dtype}, expected uint8.")
    return stacked[..., 0] if stacked.shape[-1] == 1 else stacked, np.asarray(labels, np.int32)


def _find_builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    try:
        # Sets that were prepared are found by their files alone, whoever wrote the code that prepared them.
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        raise DataError(
            f"TensorFlow Datasets has no set {name!r}, and none of that name is prepared in "
            f"{data_dir or tfds.core.constants.DATA_DIR}. See https://www.tensorflow.org/datasets/catalog."
        ) from error
    except Exception as error:  # of many types, where its files of JSON are damaged
        what = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise DataError(
            f"tfds:{name} cannot be opened: {what.rstrip('.')}. If it is prepared in "
            f"{data_dir or tfds.core.constants.DATA_DIR}, its files may be damaged."
        ) from error
    if not builder.is_prepared():
        raise DataError(
            f"tfds:{name} is not prepared in {builder.data_dir}. " + _how_to_prepare(name, str(builder.data_dir_root))
        )
    if builder.info.file_format.value != "array_record":
        raise DataError(
            f"tfds:{name} in {builder.data_dir} was prepared as {builder.info.file_format.value}, which only "
            "TensorFlow can read; it must be prepared once more, elsewhere. "
            + _how_to_prepare(name, "FOLDER")
            + "\nand pass --data-dir FOLDER."
        )
    return builder


def _how_to_prepare(name: str, folder: str) -> str:
    return (
        "This prepares it once; it needs the network and, for this step only, TensorFlow:\n"
        "  pip install tensorflow-cpu importlib_resources && "  # the command line prints messages in one line
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{folder}', file_format='array_record').download_and_prepare()\""
    )


def _find_features(name: str, info: Any) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    image_key, label_key = (info.supervised_keys or ("image", "label"))[:2]
    features = info.features
    if not (
        image_key in features
        and isinstance(features[image_key], tfds.features.Image)
        and label_key in features
        and isinstance(features[label_key], tfds.features.ClassLabel)
    ):
        raise DataError(f"tfds:{name} is not an image classification set: its features are {sorted(features)}.")
    return image_key, label_key
