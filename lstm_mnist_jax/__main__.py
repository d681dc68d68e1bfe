"""The command `lstm-mnist`, which is also `python -m lstm_mnist_jax`."""

import signal


def main() -> None:
    """Runs `lstm_mnist_jax.cli.main`. A Ctrl-C while it imports, JAX included, ends the process at once.

    Python's own handler would print a traceback, or raise KeyboardInterrupt within an import of jaxlib, which aborts
    the process. `start_jax` sets it again.
    """
    # Else it is ignored, as in the background of a script, or of a program that Python is part of.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lstm_mnist_jax.cli.main import main

    main()


if __name__ == "__main__":
    main()
