"""The report as text for a terminal, and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.model import describe_layers, task_of
from lstm_mnist_jax.progress import print_table, say
from lstm_mnist_jax.report.comparison import SPLITS, Entry
from lstm_mnist_jax.report.diagnosis import MAX_CLASSES, Diagnosis
from lstm_mnist_jax.report.style import log_scaled
from lstm_mnist_jax.report.terminal import curve, number
from lstm_mnist_jax.statistics import FOR_AN_INTERVAL

PAIRS = 5
"""The most confused pairs of classes: so many are printed."""

CURVES = 3
"""The curves of so many entries of a comparison are drawn."""

ENTRIES = 40
"""So many entries of a comparison are listed."""


def facts(run: TrainedRun, columns: Mapping[str, np.ndarray], diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """(name, value): the main facts about a run."""
    config, total, calibration = run.folder.config, diagnosis.accuracy, diagnosis.calibration
    low, high = total.interval
    at = np.flatnonzero(columns["step"] == run.step)
    where = f"epoch {columns['epoch'][at[0]]} of {config.epochs}, " if len(at) else ""
    sequence = task_of(config.model).describe(run.folder.data.image_shape)
    return [
        ("data", config.data.source.rstrip("/").rsplit("/")[-1]),
        ("network", f"{sequence} -> {describe_layers(config.model)}"),
        ("checkpoint", f"{where}step {run.step:,}"),
        ("accuracy", f"{total.value:.2%} of {total.count:,} {diagnosis.split} examples"),
        ("95 % confidence interval", f"{low:.2%} to {high:.2%} (binomial, Wilson)"),
        ("loss", f"{diagnosis.loss:.4f} nats"),
        ("mean confidence", f"{calibration.mean_confidence:.2%}"),
        ("calibration error", f"{calibration.expected_error:.2%} (expected, {len(calibration.count)} bins)"),
    ]


def print_run(console: Console, run: TrainedRun, columns: Mapping[str, np.ndarray], diagnosis: Diagnosis) -> None:
    """Prints facts, curves, the accuracy by class and the most confused classes."""
    say(console, str(run.folder.path))
    lines = facts(run, columns, diagnosis)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        say(console, f"  {name:{width}}  {value}")
    if len(columns["epoch"]):
        _print_curve(console, "training loss", columns["epoch"], columns["train_loss"])
        _print_curve(console, "validation accuracy, %", columns["epoch"], 100 * columns["validation_accuracy"])
    else:
        say(console, "No epoch was finished: there are no curves.")
    print_table(console, _classes(diagnosis))
    if not diagnosis.confused:
        say(console, f"No error in {diagnosis.accuracy.count:,} {diagnosis.split} examples.")
        return
    say(console, "most confused:")
    counts, names = diagnosis.confusion.sum(axis=1), diagnosis.class_names
    for true, predicted, count in diagnosis.confused[:PAIRS]:
        say(console, f"  {names[true]} predicted as {names[predicted]}: {count:,} of {counts[true]:,}")


def _print_curve(console: Console, title: str, epochs: np.ndarray, values: np.ndarray) -> None:
    """Prints a curve of two or more points, if the terminal has the characters."""
    known = np.isfinite(values)
    epochs, values = epochs[known], values[known]
    if len(values) < 2 or not (console.encoding or "").lower().startswith("utf"):
        return
    say(console, f"{title}, epochs {epochs[0]} to {epochs[-1]}; at the end {number(values[-1])}")
    width = min(60, max(20, console.width - 14))
    for line in curve([float(value) for value in values], width, 5, logarithmic=log_scaled(values)):
        say(console, f"  {line}")


def _classes(diagnosis: Diagnosis) -> Table:
    table = Table()
    for title in ("class", "examples", "accuracy", "95 % confidence interval", "most often predicted as"):
        table.add_column(title, justify="left" if title in ("class", "most often predicted as") else "right")
    chosen, names = diagnosis.shown_classes, diagnosis.class_names
    for label in chosen:
        share = diagnosis.by_class[label]
        low, high = share.interval
        wrong = next((f"{names[given]} ({count:,})" for true, given, count in diagnosis.confused if true == label), "")
        cells = (f"{share.value:.2%}", f"{100 * low:.2f} to {100 * high:.2f}") if share.count else ("-", "-")
        table.add_row(Text(names[label]), f"{share.count:,}", *cells, Text(wrong))
    if len(chosen) < len(names):
        table.caption = f"the {MAX_CLASSES} of {len(names)} classes with the most errors"
    return table


def print_comparison(console: Console, entries: Sequence[Entry], notes: Sequence[str]) -> None:
    """Prints the accuracies with their intervals, and the curves of the best entries."""
    table = Table()
    table.add_column("", overflow="fold")
    for title in ("seeds", "best\nepoch", "validation", "test"):
        table.add_column(title, justify="right", no_wrap=True)
    for entry in entries[:ENTRIES]:
        low, high = min(entry.best_epochs, default=None), max(entry.best_epochs, default=None)
        epochs = "-" if low is None else f"{low}" if low == high else f"{low} to {high}"
        seeds = str(len(entry.curves["test"])) + (f"\n{entry.diverged} diverged" if entry.diverged else "")
        accuracies = [str(entry.result(split)).replace(" (", "\n(") for split in SPLITS]
        table.add_row(Text(entry.label), seeds, epochs, *accuracies)
    if len(entries) > ENTRIES:
        table.add_row(f"... {len(entries) - ENTRIES} more")
    console.print(table)
    kinds = {entry.result(split).kind for entry in entries for split in SPLITS}
    say(console, "Each run at its best epoch on validation, the best on validation first.")
    say(console, "(The choice of the epoch biases its validation accuracy upwards.)")
    say(console, "95 % confidence intervals:")
    if "binomial" in kinds:
        say(console, "  (a to b) of one run: binomial (Wilson), by the number of examples")
        say(console, "    (different seeds vary more)")
    if "Student's t" in kinds:
        say(console, "  ± of several seeds: Student's t, of their mean")
    if any(entry.has_two_seeds for entry in entries):
        say(console, f"  none of two seeds: {FOR_AN_INTERVAL}")
    for note in notes:
        say(console, note)
    for entry in entries[:CURVES]:
        values = 100 * np.array([estimate.value for estimate in entry.along("validation")])
        _print_curve(console, f"{entry.label}: validation accuracy, %", entry.epochs, values)


def run_as_json(run: TrainedRun, diagnosis: Diagnosis) -> dict[str, Any]:
    """The numbers of a run as JSON."""
    names, total, calibration = diagnosis.class_names, diagnosis.accuracy, diagnosis.calibration
    return {
        "run_dir": str(run.folder.path),
        "step": run.step,
        "split": diagnosis.split,
        "examples": total.count,
        "accuracy": total.value,
        "accuracy_interval_95": list(total.interval),
        "loss": diagnosis.loss,
        "mean_confidence": calibration.mean_confidence,
        "expected_calibration_error": calibration.expected_error,
        "classes": [
            {
                "class": name,
                "examples": share.count,
                "accuracy": share.value if share.count else None,
                "interval_95": list(share.interval) if share.count else None,
            }
            for name, share in zip(names, diagnosis.by_class, strict=True)
        ],
        "confusion": diagnosis.confusion.tolist(),
        "mistakes": [
            {
                "example": int(example),
                "class": names[diagnosis.labels[example]],
                "predicted": names[diagnosis.predictions[example]],
                "probability": float(diagnosis.confidences[example]),
            }
            for example in diagnosis.mistakes
        ],
    }


def entry_as_json(entry: Entry) -> dict[str, Any]:
    """The numbers of an entry of a comparison as JSON."""
    results = {split: entry.result(split) for split in entry.accuracies}
    return {
        "label": entry.label,
        "folder": str(entry.folder),
        "runs": len(entry.curves["test"]),
        "diverged": entry.diverged,
        "best_epochs": list(entry.best_epochs),
        "selection_metric": entry.selection_metric,
    } | {
        split: {
            "accuracy": None if np.isnan(result.value) else result.value,
            "interval_95": [result.low, result.high] if result.kind else None,
            "kind": result.kind or None,
            "each": list(entry.accuracies[split]),
        }
        for split, result in results.items()
    }
