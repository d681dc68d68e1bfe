"""What came of runs and sweeps, as a table in Markdown: `python scripts/results.py RUN_DIR... [--into FILE]`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from lstm_mnist_jax.errors import UserError
from lstm_mnist_jax.records import make_records, merge, read_runs, read_table, row, to_markdown
from lstm_mnist_jax.training.run_folder import write_atomically

BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


@dataclass(frozen=True)
class ResultsArguments:
    """Mean and standard deviation over seeds of the test accuracy, of each run at its best epoch on validation."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs and sweeps. Trainings that differ in nothing but the seed make one row."""
    into: Path | None = None
    """A Markdown file with such a table between its two marks. Rows of the same trainings, whatever their seeds, are
    replaced; the others stay."""


def main() -> None:
    arguments = tyro.cli(ResultsArguments)
    try:
        if not arguments.run_dirs:
            raise UserError("Name the folders of runs or sweeps.")
        runs = [run for path in arguments.run_dirs for run in read_runs(path.expanduser())]
        rows = [row(record) for record in make_records(runs)]
        if arguments.into is None:
            print(to_markdown(rows), end="")
            return
        before, begin, rest = arguments.into.read_text("utf-8").partition(BEGIN)
        table, end, after = rest.partition(END)
        if not begin or not end:
            raise UserError(
                f"{arguments.into} has no place for the table: a line {BEGIN.strip()} and one {END.strip()}."
            )
        text = to_markdown(merge(read_table(table), rows))
        write_atomically(arguments.into, f"{before}{begin}\n{text}\n{end}{after}")
    except (UserError, OSError) as error:
        print(f"results.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
