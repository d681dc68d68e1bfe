"""The command `lstm-mnist`, which is also `python -m lstm_mnist_jax`."""

from lstm_mnist_jax.cli import interrupts


def main() -> None:
    """Runs `lstm_mnist_jax.cli.main`. A Ctrl-C while it imports, JAX included, ends the process at once."""
    interrupts.end_at_once()
    from lstm_mnist_jax.cli.main import main

    main()


if __name__ == "__main__":
    main()
