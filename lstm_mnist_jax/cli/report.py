"""`lstm-mnist report`."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from lstm_mnist_jax.cli.parsing import parse, use_compilation_cache
from lstm_mnist_jax.errors import RunError, UserError
from lstm_mnist_jax.progress import say

if TYPE_CHECKING:
    from lstm_mnist_jax.report.comparison import Entry
    from lstm_mnist_jax.report.style import Picture


@dataclass(frozen=True)
class ReportArguments:
    """Show what a trained run learned and where it errs: numbers, curves and pictures, and on demand a page to draw on.

    Of several runs, or of a sweep: how they compare.
    """

    run_dirs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN_DIR ...")]
    """Folders of runs and of sweeps."""
    into: Path | None = None
    """The folder for the pictures, each as PNG and SVG. None is plots/ in the folder of the run or the sweep; where
    there are several, none are written then."""
    html: Path | None = None
    """Write a page too, of one file that needs no network: the pictures, and a pad to draw on for the network."""
    checkpoint: str | None = None
    """best (on validation), last, or the step of a checkpoint. None is best."""
    split: str | None = None
    """Of which examples: test, validation or train. None is test."""
    source: str | None = None
    """Where the run's data are now, if they have moved: see train --help."""
    data_dir: str | None = None
    """Where prepared TFDS data are now, if they have moved."""
    json: bool = False
    """Print one JSON object instead of words."""


def report(arguments: Sequence[str]) -> int:
    """`lstm-mnist report`."""
    parsed = parse(ReportArguments, arguments)
    if not parsed.run_dirs:
        raise UserError("There is no run. Name the folder of one, or several to compare.")
    if parsed.html is not None and parsed.html.expanduser().is_dir():
        raise RunError(f"--html {parsed.html} is a folder. Name a file, such as {parsed.html / 'report.html'}.")
    if parsed.into is not None and parsed.into.expanduser().is_file():
        raise RunError(f"{parsed.into} is a file, expected a folder for the pictures. Choose another --into.")
    from lstm_mnist_jax.config import Execution
    from lstm_mnist_jax.training.mesh import use_cpu_devices
    from lstm_mnist_jax.training.run_folder import read_run_folder

    use_compilation_cache()
    use_cpu_devices(Execution(devices=1), None)
    paths = [path.expanduser() for path in parsed.run_dirs]
    told = (
        _compare(paths, parsed) if len(paths) > 1 or read_run_folder(paths[0]).is_sweep else _report(paths[0], parsed)
    )
    if parsed.json:
        print(json.dumps(told))
    return 0


def _report(path: Path, parsed: ReportArguments) -> dict[str, Any]:
    from lstm_mnist_jax.report import in_words

    run, columns, diagnosis, dataset = _diagnosed(path, parsed)
    console = Console(quiet=parsed.json)
    in_words.print_run(console, run, columns, diagnosis)
    from lstm_mnist_jax.report.contents import run_pictures

    pictures = run_pictures(run, columns, diagnosis, dataset)
    told = in_words.as_json(run, diagnosis)
    told["pictures"] = _write(console, pictures, (parsed.into or run.folder.path / "plots").expanduser())
    if parsed.html is not None:
        from lstm_mnist_jax.report.page import write_page

        page = parsed.html.expanduser()
        write_page(page, run, pictures, in_words.facts(run, columns, diagnosis), dataset.splits[diagnosis.split])
        told["html"] = _tell_page(console, page)
    return told


def _diagnosed(path: Path, parsed: ReportArguments) -> Any:
    """(run, history, diagnosis, data set)."""
    from lstm_mnist_jax.inference import load_data, load_run
    from lstm_mnist_jax.report.diagnosis import diagnose

    run = load_run(path, parsed.checkpoint or "best")
    dataset = load_data(run.folder, parsed.source, parsed.data_dir)
    return run, run.history(), diagnose(run, dataset, parsed.split or "test"), dataset


def _compare(paths: Sequence[Path], parsed: ReportArguments) -> dict[str, Any]:
    from lstm_mnist_jax.report import in_words
    from lstm_mnist_jax.report.comparison import read_entries

    if parsed.checkpoint is not None or parsed.split is not None:
        raise UserError(
            "Runs are compared on validation and test, each at its best epoch on validation; leave out --checkpoint "
            "and --split, or name one run."
        )
    entries, notes = read_entries(paths, parsed.source, parsed.data_dir)
    best = next((entry for entry in entries if entry.best_epochs), None) if parsed.html is not None else None
    if parsed.html is not None and best is None:
        raise UserError("A page shows a network, but no epoch was finished yet in any of these runs.")
    console = Console(quiet=parsed.json)
    in_words.print_comparison(console, entries, notes)
    from lstm_mnist_jax.report.comparison_figures import comparison_pictures

    into = parsed.into or (paths[0] / "plots" if len(paths) == 1 else None)
    pictures = comparison_pictures(entries) if into is not None or best is not None else []
    told: dict[str, Any] = {"compared": [_entry_as_json(entry) for entry in entries], "notes": notes, "pictures": []}
    if into is not None:
        told["pictures"] = _write(console, pictures, into.expanduser())
    else:
        say(console, "For pictures of the comparison, say with --into which folder they belong in.")
    if best is not None and parsed.html is not None:
        from lstm_mnist_jax.report.contents import run_pictures
        from lstm_mnist_jax.report.page import write_page

        run, columns, diagnosis, dataset = _diagnosed(best.run, parsed)
        pictures = pictures + run_pictures(run, columns, diagnosis, dataset)
        facts = [("best run on validation", best.label), *in_words.facts(run, columns, diagnosis)]
        page = parsed.html.expanduser()
        write_page(page, run, pictures, facts, dataset.test)
        told["html"] = _tell_page(console, page)
        say(console, f"the page has the comparison, and the network of {best.label}")
    return told


def _write(console: Console, pictures: "Sequence[Picture]", folder: Path) -> list[str]:
    from lstm_mnist_jax.report.files import write_pictures

    if not pictures:
        say(console, "There is nothing to draw: no epoch was finished, or all runs diverged.")
        return []
    files = write_pictures(pictures, folder)
    say(console, f"{len(pictures)} pictures, each as PNG and SVG, in {folder}:")
    say(console, f"  {', '.join(picture.name for picture in pictures)}")
    return [str(file) for file in files]


def _tell_page(console: Console, page: Path) -> str:
    say(console, f"page: {page} ({page.stat().st_size / 1000:,.0f} kB; open it in a browser)")
    return str(page)


def _entry_as_json(entry: "Entry") -> dict[str, Any]:
    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

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
            "accuracy": known(result.value),
            "interval_95": [result.low, result.high] if result.kind else None,
            "kind": result.kind or None,
            "each": list(entry.accuracies[split]),
        }
        for split, result in results.items()
    }
