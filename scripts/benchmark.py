"""Speed and memory beside other LSTMs, on the machine at hand: `python scripts/benchmark.py --help`."""

from lstm_mnist_jax.benchmark.command import main

if __name__ == "__main__":
    main()
