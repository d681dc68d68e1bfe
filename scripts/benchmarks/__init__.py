"""The parts of scripts/benchmark.py. Each library runs in its own process."""
