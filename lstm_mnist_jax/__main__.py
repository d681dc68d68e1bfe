"""The command `lstm-mnist`, which is also `python -m lstm_mnist_jax`."""

import signal


def main() -> None:
    """Runs `lstm_mnist_jax.cli.main`. A Ctrl-C while that is imported ends the process at once, without a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else it is ignored, as in the background of a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lstm_mnist_jax.cli.main import main

    signal.signal(signal.SIGINT, handler)
    main()


if __name__ == "__main__":
    main()
