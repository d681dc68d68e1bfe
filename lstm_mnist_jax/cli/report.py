"""`lstm-mnist report`."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lstm_mnist_jax.cli.arguments import Positional, wrapped
from lstm_mnist_jax.cli.parsing import OutputConsole, parse, start_jax
from lstm_mnist_jax.errors import RunError, UserError, os_errors_as
from lstm_mnist_jax.progress import say

if TYPE_CHECKING:
    from lstm_mnist_jax.report.style import Picture


@dataclass(frozen=True)
class ReportArguments:
    """Report on a trained run: numbers, curves, errors and figures, and with --html a page to draw on.

    Several runs, or a sweep, are compared.
    """

    run_dirs: Positional[tuple[Path, ...]]
    """Folders of runs and of sweeps."""
    into: Path | None = None
    """The folder for the figures, each as PNG and SVG. None is plots/ in the folder of the run or the sweep; of
    several, none are written then."""
    html: Path | None = None
    """Also write a page: one file that needs no network, with the figures, and a pad to draw on for the network."""
    checkpoint: str | None = None
    """best (on validation), last, or the step of a checkpoint. None is best."""
    split: str | None = None
    """The split to report on: test, validation or train. None is test."""
    source: str | None = None
    """Where the run's data are now, if they have moved: see train --help."""
    data_dir: str | None = None
    """Where prepared TFDS data are now, if they have moved."""
    json: bool = False
    """Print one JSON object instead of text."""


def report(arguments: Sequence[str]) -> int:
    """`lstm-mnist report`."""
    parsed = parse(ReportArguments, arguments)
    if not parsed.run_dirs:
        raise UserError("No run folder is given. Give one, or several to compare.")
    if parsed.html is not None:
        _refuse_other_file(parsed.html.expanduser())
    for option, folder in (("--into", parsed.into), ("--html", parsed.html and parsed.html.parent)):
        places = [] if folder is None else [folder.expanduser(), *folder.expanduser().parents]
        nearest = next(filter(os.path.exists, places), None)
        if nearest is not None and nearest.is_file():  # before anything is computed
            raise RunError(f"{nearest} is a file, expected a folder. Choose another {option}.")
    from lstm_mnist_jax.config import Execution
    from lstm_mnist_jax.training.run_folder import read_run_folder

    start_jax(Execution(devices=1))
    paths, console = [path.expanduser() for path in parsed.run_dirs], OutputConsole(quiet=parsed.json)
    is_comparison = len(paths) > 1 or read_run_folder(paths[0]).is_sweep
    found = _compare(console, paths, parsed) if is_comparison else _report(console, paths[0], parsed)
    if parsed.json:
        print(json.dumps(found))
    return 0


def _refuse_other_file(path: Path) -> None:
    """Raises RunError where there is something else than a page of this program, which would be lost."""
    if path.is_dir():
        raise RunError(f"--html {path} is a folder. Name a file, such as {path / 'report.html'}.")
    if not path.is_file():
        return
    with os_errors_as(RunError, path, "read"), path.open("rb") as file:
        start = file.read(1000)
    if start and b'<meta name="generator" content="lstm-mnist-jax ' not in start:
        raise RunError(f"--html {path} is there already and no page of a run: it stays. Name another file.")


def _report(
    console: Console, path: Path, parsed: ReportArguments, label: str = "", comparison: "Sequence[Picture]" = ()
) -> dict[str, Any]:
    """Reports on a run; with its `label` in a comparison, only writes the page, with the figures of the comparison."""
    import numpy as np

    from lstm_mnist_jax.inference import load_data, load_run
    from lstm_mnist_jax.report import text
    from lstm_mnist_jax.report.diagnosis import diagnose
    from lstm_mnist_jax.training.run_folder import learned_nothing

    run = load_run(path, parsed.checkpoint or "best")
    dataset, columns = load_data(run.folder, parsed.source, parsed.data_dir), run.history()
    diagnosis = diagnose(run, dataset, parsed.split or "test")
    found, facts = text.run_as_json(run, diagnosis), text.facts(run, columns, diagnosis)
    if not label:
        text.print_run(console, run, columns, diagnosis)
    found["warning"] = learned_nothing(run.folder, np.bincount(dataset.validation.labels), dataset.train.images)
    if found["warning"] is not None:
        say(console, found["warning"])
        facts.append(("warning", found["warning"]))
    from lstm_mnist_jax.report.figures import run_pictures

    pictures = run_pictures(run, columns, diagnosis, dataset)
    if label:
        pictures, facts = [*comparison, *pictures], [("best run on validation", label), *facts]
    else:
        found["pictures"] = _write(console, pictures, parsed.into or run.folder.path / "plots")
    if parsed.html is not None:
        from lstm_mnist_jax.report.page import write_page

        page = parsed.html.expanduser()
        write_page(page, run, pictures, facts, dataset.splits[diagnosis.split])
        say(console, f"page: {page} ({page.stat().st_size / 1000:,.0f} kB; open it in a browser)")
        found["html"] = str(page)
    return found


def _compare(console: Console, paths: Sequence[Path], parsed: ReportArguments) -> dict[str, Any]:
    from lstm_mnist_jax.report import text
    from lstm_mnist_jax.report.comparison import comparison_pictures, read_entries

    if parsed.checkpoint is not None or parsed.split is not None:
        raise UserError(
            "Runs are compared on validation and test, each at its best epoch on validation; leave out --checkpoint "
            "and --split, or name one run."
        )
    entries, notes = read_entries(paths, parsed.source, parsed.data_dir)
    best = next((entry for entry in entries if entry.best_epochs), None)
    if parsed.html is not None and best is None:
        raise UserError("A page shows a network, but none of these runs has finished an epoch yet.")
    text.print_comparison(console, entries, notes)
    found: dict[str, Any] = {"compared": list(map(text.entry_as_json, entries)), "notes": notes, "pictures": []}
    into = parsed.into or (paths[0] / "plots" if len(paths) == 1 else None)
    pictures = comparison_pictures(entries) if into or parsed.html else []
    if into:
        found["pictures"] = _write(console, pictures, into)
    else:
        say(console, "For figures of the comparison, name a folder with --into.")
    if best is not None and parsed.html is not None:
        found["html"] = _report(console, best.run, parsed, best.label, pictures)["html"]
        say(console, f"The page has the comparison, and the network of {best.label}.")
    return found


def _write(console: Console, pictures: "Sequence[Picture]", folder: Path) -> list[str]:
    from lstm_mnist_jax.report.style import write_pictures

    folder = folder.expanduser()
    if not pictures:
        say(console, "There is nothing to draw: no epoch was finished, or all runs diverged.")
        return []
    files = write_pictures(pictures, folder)
    say(console, f"{len(pictures)} figures, each as PNG and SVG, in {folder}:")
    for line in wrapped(", ".join(picture.name for picture in pictures), 2):
        say(console, line)
    return [str(file) for file in files]
