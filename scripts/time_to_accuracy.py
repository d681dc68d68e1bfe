"""How soon a preset reaches 98 and 99 %, beside PyTorch: `python scripts/time_to_accuracy.py --help`."""

from lstm_mnist_jax.benchmark.time_to_accuracy import main

if __name__ == "__main__":
    main()
