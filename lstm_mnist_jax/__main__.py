"""The command `lstm-mnist`, which is also `python -m lstm_mnist_jax`."""

import signal


def main() -> None:
    """Runs `lstm_mnist_jax.cli.main`. A Ctrl-C while that is imported ends the process at once, without a traceback."""
    # Else it is ignored, as in the background of a script, or of a program that Python is part of.
    has_usual_handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if has_usual_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lstm_mnist_jax.cli.main import main

    if has_usual_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


if __name__ == "__main__":
    main()
