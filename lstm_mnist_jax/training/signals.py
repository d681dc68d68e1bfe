"""Ctrl-C and SIGTERM as a wish that a training fulfils at its next pause."""

import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is noted in `signal`; a second one ends the process at once.

    At once, because unwinding would wait for a save under way; a checkpoint is made to survive that. A signal that
    the process ignores (SIGHUP under nohup) stays ignored. Outside the main thread, where Python allows no
    handlers, nothing is ever noted.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._former: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for caught in self._former:
            signal.signal(caught, signal.SIG_DFL)
