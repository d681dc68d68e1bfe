"""How processes that were told of each other meet before JAX starts, and find what does not fit together.

JAX's own start of a distributed program ends the process where anything is wrong, with a stack trace. Here they come to
the coordinator's address first, each with what it knows of itself, and all hear the same: what is wrong, or that they
can go on. One JSON object a line, over TCP: a greeting; {"met": true} at once; {"fault": ...} when all have come.
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from lstm_mnist_jax.config import Processes
from lstm_mnist_jax.errors import ConfigError

GREETING_SECONDS = 10.0
"""How long somebody who comes to the coordinator's port may take to say who it is."""


def meet(processes: Processes, facts: Mapping[str, str]) -> None:
    """Returns when all processes have come to the coordinator's address and agree.

    Raises:
      ConfigError: what does not fit together, or who has not come.
    """
    assert processes.coordinator is not None
    assert processes.num_processes is not None
    greeting = {"process_id": processes.process_id, "num_processes": processes.num_processes, **facts}
    deadline = time.monotonic() + processes.join_timeout
    host, _, port = processes.coordinator.rpartition(":")
    if processes.process_id == 0:
        _receive(int(port), processes.num_processes, greeting, deadline, processes.join_timeout)
    else:
        _come(host.strip("[]"), int(port), greeting, deadline, processes)


def _receive(port: int, num_processes: int, own: dict[str, Any], deadline: float, patience: float) -> None:
    with contextlib.ExitStack() as stack:
        try:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            server = stack.enter_context(socket.create_server(("", port), family=family, dualstack_ipv6=both))
        except OSError as error:
            raise ConfigError(
                f"Port {port} of this machine, where the coordinator is to listen, cannot be opened "
                f"({error.strerror or error}). Give all processes another --coordinator."
            ) from error
        arrived: set[object] = set()
        visitors: list[socket.socket] = []
        fault = None
        try:
            while len(arrived) < num_processes - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                visitor = stack.enter_context(server.accept()[0])
                with visitor.makefile("rb") as lines:
                    greeting = _read(visitor, lines, GREETING_SECONDS)
                if greeting is None or "process_id" not in greeting:
                    continue  # somebody else, by accident
                visitors.append(visitor)
                _tell(visitor, {"met": True})
                number = greeting["process_id"]
                if number in arrived or number == 0:
                    raise ConfigError(f"Two processes came as process {number}. Each needs a --process-id of its own.")
                refuse_difference(own, greeting, number)
                arrived.add(number)
            if any(select.select([visitor], [], [], 0)[0] for visitor in visitors):  # nobody has more to say
                raise ConfigError("A process came and ended before all had come. Its own messages say why.")
        except TimeoutError:
            absent = sorted(set(range(1, num_processes)) - arrived)
            fault = (
                f"{len(absent)} of {num_processes} processes have not come to port {port} within {patience:g} s: "
                f"{', '.join(map(str, absent))}. Are they started, and can they reach this machine?"
            )
        except ConfigError as error:
            fault = str(error)
        for visitor in visitors:
            _tell(visitor, {"fault": fault})
        if fault is not None:
            raise ConfigError(fault)


def _come(host: str, port: int, greeting: dict[str, Any], deadline: float, processes: Processes) -> None:
    reason: object = "nobody answered"
    while (left := deadline - time.monotonic()) > 0:
        answer = None
        try:
            with socket.create_connection((host, port), timeout=left) as connection, connection.makefile("rb") as lines:
                _tell(connection, greeting)
                if _read(connection, lines, min(left, GREETING_SECONDS)) is None:
                    reason = "something listens there, but it is not process 0: is the port taken?"
                else:  # it knows who is missing, and says so when its own patience ends
                    answer = _read(connection, lines, processes.join_timeout + GREETING_SECONDS)
        except OSError as error:
            reason = error.strerror or error
        if answer is not None:
            if answer.get("fault") is not None:
                raise ConfigError(answer["fault"])
            return
        time.sleep(0.2)
    raise ConfigError(
        f"Process 0 was not met at {processes.coordinator} within {processes.join_timeout:g} s ({reason}). Is it "
        "started, is this its address, and can it be reached from here?"
    )


def _tell(connection: socket.socket, values: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who is gone is noticed when it is waited for
        connection.sendall(json.dumps(values).encode() + b"\n")


def _read(connection: socket.socket, lines: BinaryIO, patience: float) -> dict[str, Any] | None:
    """The JSON object in the next line that the other side sends, or None where it sends something else."""
    connection.settimeout(patience)
    try:
        value = json.loads(lines.readline(1 << 16))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def refuse_difference(expected: Mapping[str, Any], other: Mapping[str, Any], number: object) -> None:
    """Raises ConfigError where what process `number` says of itself is not what the first one says."""
    for name in expected:
        if name != "process_id" and other.get(name) != expected[name]:
            raise ConfigError(
                f"The processes differ: {name} is {expected[name]} for process 0 and {other.get(name)} for process "
                f"{number}. Start all with the same command (but for --process-id), or with --num-processes 1 if each "
                "is to train alone."
            )
