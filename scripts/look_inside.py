"""A trained network, its predictions and its errors: `python scripts/look_inside.py [RUN_DIR]`.

A worked example for teaching, to be read from top to bottom. It trains a small network, or takes an existing run;
classifies test images; prints the prediction after each row of one of them; and saves two figures in the run's plots/.
"""

import sys
from pathlib import Path

import numpy as np

from lstm_mnist_jax import PRESETS, UserError, load_run, train
from lstm_mnist_jax.inference import load_data
from lstm_mnist_jax.report.diagnosis import diagnose
from lstm_mnist_jax.report.figures import run_pictures
from lstm_mnist_jax.report.terminal import bar, shades


def main(run_dir: Path) -> None:
    # 1. A run is a folder. "smoke" takes seconds: two epochs of 6,000 digits.
    if not run_dir.exists():
        train(PRESETS["smoke"], run_dir)
    run = load_run(run_dir)  # with the weights that were best on validation
    names = run.class_names

    # 2. The learning curves: an array of each metric, one value an epoch. pandas.DataFrame(history) makes a table.
    history = run.history()
    for epoch, loss, accuracy in zip(history["epoch"], history["train_loss"], history["test_accuracy"], strict=True):
        print(f"epoch {epoch}: training loss {loss:.4f}, test accuracy {accuracy:.2%}")

    # 3. Predictions: from uint8 images [n, height, width] to classes [n] and probabilities [n, classes].
    test = (dataset := load_data(run.folder)).test
    predictions, probabilities = run.predict(test.images[:5])
    for label, predicted, given in zip(test.labels[:5], predictions, probabilities, strict=True):
        print(f"label {names[label]}, predicted {names[predicted]} with probability {given[predicted]:.1%}")

    # 4. The accuracy on all test images, and its confidence interval for new images.
    diagnosis = diagnose(run, dataset)
    low, high = diagnosis.accuracy.interval
    accuracy = f"{diagnosis.accuracy.value:.2%} of {len(test):,} are classified correctly"
    print(f"{accuracy}; 95 % confidence interval {low:.2%} to {high:.2%}")
    for label, predicted, count in diagnosis.confused[:3]:
        print(f"{names[label]} is classified as {names[predicted]}: {count} times")

    # 5. The error with the highest probability, step by step: the prediction if the image ended there.
    example = int(diagnosis.mistakes[0]) if len(diagnosis.mistakes) else 0
    image = test.images[example : example + 1]
    along = run.read_along(image)[0]  # [time, classes]
    print(f"test image {example} is {names[test.labels[example]]}. Predictions step by step:")
    by_rows = run.step_name == "row" and image.ndim == 3
    for step, given in enumerate(along):
        best = given.argmax()
        row = shades(image[0, step] / 255) if by_rows else ""
        print(f"{row} {step + 1:3d}  {names[best]} {given[best]:6.1%} {bar(float(given[best]), 16)}")

    # 6. The hidden and cell states of each layer, [n, time, features] each.
    for number, layer in enumerate(run.states(image), 1):
        changes = np.abs(np.diff(layer.hidden[0], axis=0)).mean(axis=0)
        print(f"layer {number}: of {len(changes)} units, unit {changes.argmax()} changes most")

    # 7. The figures of a report are matplotlib figures, which a notebook displays.
    (run_dir / "plots").mkdir(exist_ok=True)
    for picture in run_pictures(run, history, diagnosis, dataset):
        if picture.name in ("curves", "confusion"):
            path = run_dir / "plots" / f"{picture.name}.png"
            picture.figure.savefig(path, dpi=150)
            print(f"{path}: {picture.caption}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # not every terminal has bars
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/look-inside").expanduser())
    except UserError as error:
        sys.exit(f"look_inside.py: {error}")
