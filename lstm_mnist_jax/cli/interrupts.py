"""Ctrl-C while the program imports JAX. Imported before everything else."""

import signal
import threading

_is_default = False


def end_at_once() -> None:
    """From here on, until `raise_again`, a Ctrl-C ends the process.

    Python's own handler would print a traceback, or raise KeyboardInterrupt within an import of jaxlib, which aborts
    the process.
    """
    global _is_default
    # Else it is ignored, as in the background of a script, or of a program that Python is part of.
    if _is_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _is_default = True


def raise_again() -> None:
    """After `end_at_once`, sets Python's handler again, which raises KeyboardInterrupt."""
    global _is_default
    if _is_default and _is_main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _is_default = False


def _is_main_thread() -> bool:
    """Whether this is the thread in which Python takes handlers."""
    return threading.current_thread() is threading.main_thread()
