"""`lstm-mnist evaluate`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from lstm_mnist_jax.cli.arguments import Positional
from lstm_mnist_jax.cli.parsing import CommandExecution, OutputConsole, parse, start_jax
from lstm_mnist_jax.progress import print_table, say

if TYPE_CHECKING:
    from lstm_mnist_jax.training.evaluation import Evaluation


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluate a trained run: loss, accuracy and accuracy by class, on each split of its data."""

    run_dir: Positional[Path]
    """The run's folder."""
    checkpoint: str = "best"
    """best (on validation), last, or the step of a checkpoint."""
    source: str | None = None
    """Where the run's data are now, if they have moved: see train --help."""
    data_dir: str | None = None
    """Where prepared TFDS data are now, if they have moved."""
    tta_shift_pixels: int = 0
    """Print the results with test-time augmentation too: the mean over shifts of up to this many pixels."""
    json: bool = False
    """Print one JSON object instead of a table."""
    execution: CommandExecution = field(default_factory=CommandExecution)


def evaluate(arguments: Sequence[str]) -> int:
    """`lstm-mnist evaluate`."""
    parsed = parse(EvaluateArguments, arguments)
    from lstm_mnist_jax.inference import load_run
    from lstm_mnist_jax.training.mesh import make_mesh, too_many
    from lstm_mnist_jax.training.run_folder import learned_nothing, read_run_folder

    start_jax(parsed.execution, read_run_folder(parsed.run_dir.expanduser()).config.batch_size)
    run = load_run(parsed.run_dir, parsed.checkpoint)
    if warning := too_many(make_mesh(parsed.execution, None)):
        print(f"lstm-mnist: warning: {warning}", file=sys.stderr)
    moved = {"source": parsed.source, "data_dir": parsed.data_dir}
    evaluations, averaged = run.evaluate(parsed.execution, **moved), None
    if parsed.tta_shift_pixels:
        averaged = run.evaluate(parsed.execution, **moved, tta_shift_pixels=parsed.tta_shift_pixels)
    useless = learned_nothing(run.folder, evaluations["validation"].count)
    if parsed.json:
        found: dict[str, Any] = {"run_dir": str(parsed.run_dir), "step": run.step, "warning": useless}
        found["splits"] = _as_json(run.class_names, evaluations)
        if averaged is not None:
            found |= {"tta_shift_pixels": parsed.tta_shift_pixels, "tta_splits": _as_json(run.class_names, averaged)}
        print(json.dumps(found))
        return 0
    _print_evaluations(f"{parsed.run_dir}, checkpoint of step {run.step:,}", run.class_names, evaluations)
    if averaged is not None:
        count = (2 * parsed.tta_shift_pixels + 1) ** 2
        title = f"test-time augmentation: mean over {count} shifts of up to {parsed.tta_shift_pixels} pixels"
        _print_evaluations(title, run.class_names, averaged)
    if useless is not None:
        say(OutputConsole(), useless)
    return 0


def _as_json(class_names: tuple[str, ...], evaluations: "dict[str, Evaluation]") -> dict[str, Any]:
    return {
        split: {
            "examples": int(evaluation.count.sum()),
            "loss": evaluation.loss,
            "accuracy": evaluation.accuracy,
            "accuracy_by_class": dict(zip(class_names, _by_class(evaluation), strict=True)),
        }
        for split, evaluation in evaluations.items()
    }


def _by_class(evaluation: "Evaluation") -> list[float | None]:
    """Accuracy of each class; None for a class of which the split has no example."""
    pairs = zip(evaluation.correct.tolist(), evaluation.count.tolist(), strict=True)
    return [correct / count if count else None for correct, count in pairs]


def _print_evaluations(title: str, class_names: tuple[str, ...], evaluations: "dict[str, Evaluation]") -> None:
    console = OutputConsole()
    say(console, title)
    table = Table()
    table.add_column("")
    for split in evaluations:
        table.add_column(split, justify="right")
    table.add_row("examples", *(f"{int(e.count.sum()):,}" for e in evaluations.values()))
    table.add_row("loss", *(f"{e.loss:.4f}" for e in evaluations.values()))
    table.add_row("accuracy", *(f"{e.accuracy:.2%}" for e in evaluations.values()), end_section=True)
    columns = [_by_class(evaluation) for evaluation in evaluations.values()]
    for name, accuracies in zip(class_names, zip(*columns, strict=True), strict=True):
        table.add_row(Text(f"class {name}"), *("-" if a is None else f"{a:.2%}" for a in accuracies))
    print_table(console, table)
