"""`python -m lstm_mnist_jax`: the same as the command `lstm-mnist`."""

from lstm_mnist_jax.cli.main import main

if __name__ == "__main__":
    main()
