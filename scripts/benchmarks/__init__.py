"""What scripts/benchmark.py runs: this package's LSTM beside those of other libraries, each in a process of its own."""
