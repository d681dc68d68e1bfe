"""What runs and sweeps came to, side by side: accuracies over seeds, and what it took. Chosen on validation alone."""

from lstm_mnist_jax.records.record import Record, make_records
from lstm_mnist_jax.records.runs import Run, read_runs
from lstm_mnist_jax.records.table import COLUMNS, merge, read_table, row, to_markdown

__all__ = ["COLUMNS", "Record", "Run", "make_records", "merge", "read_runs", "read_table", "row", "to_markdown"]
