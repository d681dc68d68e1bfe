"""A rendezvous of processes before JAX starts: all connect to the coordinator's address and compare their settings.

`jax.distributed.initialize` aborts the process with a stack trace on any error. Here every process first connects to
process 0 and sends its number and its settings, and all get the same answer: an error, or that they can go on. One JSON
object a line, over TCP: a greeting; {"joined": true} at once; {"fault": ...} when all have connected.
"""

import contextlib
import errno
import ipaddress
import json
import os
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from lstm_mnist_jax.config import Processes
from lstm_mnist_jax.errors import ConfigError

ANSWER_SECONDS = 10.0
"""Seconds within which process 0 must answer a greeting."""

MAX_GREETING = 1 << 16
"""The most bytes of a greeting."""

BIND_VARIABLE = "JAX_COORDINATOR_BIND_ADDRESS"
"""JAX's environment variable for the address on which process 0 listens, if it is not the coordinator's."""


def rendezvous(processes: Processes, facts: Mapping[str, str]) -> None:
    """Returns when all processes have connected to process 0 and have the same settings.

    Args:
      processes: the coordinator's address, the number of processes, and the number of this one.
      facts: settings that must be the same in all of them, by name.

    Raises:
      ConfigError: the settings differ, or a process has not connected in time.
    """
    greeting = {"process_id": processes.process_id, "num_processes": processes.num_processes, **facts}
    deadline = time.monotonic() + processes.join_timeout
    if processes.process_id == 0:
        _wait_for_others(bind_address(processes), processes, greeting, deadline)
    else:
        _join_process_0(processes, greeting, deadline)


def bind_address(processes: Processes) -> str:
    """HOST:PORT on which process 0 listens: the coordinator's, unless JAX's environment variable names another."""
    return os.environ.get(BIND_VARIABLE) or str(processes.coordinator)


def _listen(address: str, deadline: float) -> list[socket.socket]:
    """Sockets on every address of this machine that HOST:PORT resolves to. Raises ConfigError where there is none."""
    host, port = _split(address)
    servers: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        try:
            found = _resolve(host, port, deadline)
            for family, where in dict.fromkeys((entry[0], entry[4]) for entry in found):
                try:
                    servers.append(stack.enter_context(socket.create_server(where, family=family)))
                except OSError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
        except OSError as error:  # the name is unknown, or the port is taken
            raise ConfigError(
                f"Process 0 cannot listen on {address} ({error.strerror or error}). Give all processes another "
                "--coordinator."
            ) from error
        if not servers:
            raise ConfigError(
                f"Process 0 cannot listen on {address}: {', '.join(sorted({str(entry[4][0]) for entry in found}))} is "
                "no address of this machine. Start process 0 on the coordinator's machine. If the others reach this "
                "machine by that address nevertheless (behind NAT, or a service of Kubernetes), set "
                f"{BIND_VARIABLE}=HOST:PORT for process 0, with an address of this machine; 0.0.0.0:{port} is all."
            )
        stack.pop_all()
    return servers


def _resolve(host: str, port: int, deadline: float) -> list[Any]:
    """The addresses of a name, which a cluster may make known only after its processes have started."""
    while True:
        try:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.2)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _wait_for_others(address: str, processes: Processes, own: dict[str, Any], deadline: float) -> None:
    """Process 0: waits until all others have connected, and sends them the result."""
    count = processes.num_processes or 1
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        servers = [stack.enter_context(server) for server in _listen(address, deadline)]
        for server in servers:
            server.setblocking(False)
            selector.register(server, selectors.EVENT_READ)
        received: dict[socket.socket, bytes] = {}  # of connections without a complete greeting
        joined: dict[socket.socket, Any] = {}
        fault = None
        try:
            while len(joined) < count - 1:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready and time.monotonic() >= deadline:
                    raise ConfigError(_absence(servers, address, processes, set(joined.values())))
                for key, _ in ready:
                    connection: Any = key.fileobj
                    if connection in servers:
                        with contextlib.suppress(OSError):  # it has closed again
                            visitor = stack.enter_context(connection.accept()[0])
                            visitor.setblocking(False)
                            received[visitor] = b""
                            selector.register(visitor, selectors.EVENT_READ)
                        continue
                    greeting = _receive(connection, received)
                    if greeting is None:
                        continue
                    if connection in joined:
                        raise ConfigError(
                            f"Process {joined[connection]} ended before all had connected. See its messages."
                        )
                    if not isinstance(greeting.get("process_id"), int):  # another program
                        del received[connection]
                        selector.unregister(connection)
                        connection.close()
                        continue
                    number = greeting["process_id"]
                    repeated = number == 0 or number in joined.values()
                    joined[connection] = number
                    _send(connection, {"joined": True})
                    if repeated:
                        raise ConfigError(f"Two processes have the number {number}. Each needs another --process-id.")
                    refuse_difference(own, greeting, number)
        except ConfigError as error:
            fault = str(error)
        for connection in joined:
            _send(connection, {"fault": fault})
        if fault is not None:
            raise ConfigError(fault)


def _receive(connection: socket.socket, received: dict[socket.socket, bytes]) -> dict[str, Any] | None:
    """The greeting, once it is complete; None before. {} where the connection has closed or sent something else."""
    try:
        data = connection.recv(MAX_GREETING)
    except BlockingIOError:
        return None
    except OSError:
        data = b""
    line, end, _ = (received.get(connection, b"") + data).partition(b"\n")
    if data and not end and len(line) < MAX_GREETING:
        received[connection] = line
        return None
    return _parse(line) or {}


def _absence(servers: list[socket.socket], address: str, processes: Processes, joined: set[Any]) -> str:
    """The error where some processes have not connected in time."""
    host, port = _split(address)
    count = processes.num_processes or 1
    absent = sorted(set(range(1, count)) - joined)
    message = (
        f"{len(absent)} of {count} processes have not connected to port {port} within {processes.join_timeout:g} s: "
        f"{', '.join(map(str, absent))}. Are they started, and can they reach this machine?"
    )
    local = [server.getsockname()[0] for server in servers]
    if host != "localhost" and host not in local and all(ipaddress.ip_address(each).is_loopback for each in local):
        message += (
            f" On this machine, {host} is {', '.join(local)}, which no other machine reaches: give all processes an "
            f"address as --coordinator, or set {BIND_VARIABLE}=HOST:PORT for process 0."
        )
    return message


def _join_process_0(processes: Processes, greeting: dict[str, Any], deadline: float) -> None:
    """The other processes: connects to process 0, sends the greeting, and waits for the result."""
    reason: object = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        answer = None
        try:
            address = _split(str(processes.coordinator))
            with socket.create_connection(address, timeout=left) as connection, connection.makefile("rb") as lines:
                _send(connection, greeting)
                if _read(connection, lines, min(left, ANSWER_SECONDS)) is None:
                    reason = "another program listens there: is the port taken?"
                else:  # after its own timeout it reports which processes are missing
                    answer = _read(connection, lines, processes.join_timeout + ANSWER_SECONDS)
        except OSError as error:
            reason = error.strerror or error
        if answer is not None:
            if answer.get("fault") is not None:
                raise ConfigError(answer["fault"])
            return
        time.sleep(0.2)
    raise ConfigError(
        f"Process 0 was not reached at {processes.coordinator} within {processes.join_timeout:g} s ({reason}). Is it "
        "started, is this its address, and can it be reached from here?"
    )


def _send(connection: socket.socket, values: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a lost process is noticed when its greeting is awaited
        connection.sendall(json.dumps(values).encode() + b"\n")


def _read(connection: socket.socket, lines: BinaryIO, patience: float) -> dict[str, Any] | None:
    """The JSON object in the next line that the other side sends, or None where it sends something else."""
    connection.settimeout(patience)
    try:
        return _parse(lines.readline(MAX_GREETING))
    except OSError:
        return None


def _parse(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None where it is something else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def refuse_difference(expected: Mapping[str, Any], other: Mapping[str, Any], number: object) -> None:
    """Raises ConfigError where the settings of process `number` are not those of process 0."""
    for name in expected:
        if name != "process_id" and other.get(name) != expected[name]:
            raise ConfigError(
                f"The processes differ: {name} is {expected[name]} for process 0 and {other.get(name)} for process "
                f"{number}. Start all with the same command (but for --process-id), or with --num-processes 1 if each "
                "is to train alone."
            )
