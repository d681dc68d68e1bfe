"""This package's speed and memory beside those of other LSTMs, on the machine at hand: `scripts/benchmark.py`.

The parent process decides, alternates and writes; every peer works in a process of its own. Nothing else in the
package imports this.
"""
