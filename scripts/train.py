"""The classic entry point: `python scripts/train.py ...` is `lstm-mnist train ...`."""

import sys

from lstm_mnist_jax.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
