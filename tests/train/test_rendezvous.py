"""The rendezvous of processes at the coordinator's address: who joins, who is refused, and who only disturbs."""

import socket
import threading
import time

import pytest
from programs import free_port

from lstm_mnist_jax.config import Processes
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.training.rendezvous import _listen, rendezvous


def processes_of(number, count=2, timeout=5.0, port=0, host="127.0.0.1"):
    return Processes(f"{host}:{port}", count, number, join_timeout=timeout)


def rendezvous_of(*greetings):
    """The error of each process, [(processes, facts)], at their rendezvous; None where there is none."""
    errors = [None] * len(greetings)

    def one(place, together, facts):
        try:
            rendezvous(together, facts)
        except ConfigError as error:
            errors[place] = str(error)

    threads = [threading.Thread(target=one, args=(n, *greeting)) for n, greeting in enumerate(greetings)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return errors


def test_processes_with_the_same_settings_join_in_any_order():
    port = free_port()
    facts = {"the config": "same"}
    assert rendezvous_of(*((processes_of(n, 4, port=port), facts) for n in (2, 3, 0, 1))) == [None] * 4


def test_all_processes_report_a_different_config():
    port = free_port()
    configs = enumerate(("one", "two"))
    errors = rendezvous_of(*((processes_of(n, port=port), {"the config": config}) for n, config in configs))
    message = "The processes differ: the config is one for process 0 and two for process 1. Start all with the same"
    assert errors == [errors[0]] * 2
    assert errors[0].startswith(f"{message} command (but for --process-id)")


def test_all_processes_report_a_different_number_of_processes():
    port = free_port()
    errors = rendezvous_of((processes_of(0, 2, port=port), {}), (processes_of(2, 3, port=port), {}))
    assert errors == [errors[0]] * 2
    assert "num_processes is 2 for process 0 and 3 for process 2" in errors[0]


def test_two_processes_with_one_number_are_refused():
    port = free_port()
    errors = rendezvous_of(*((processes_of(n, 3, port=port), {}) for n in (0, 1, 1)))
    assert errors[0] == "Two processes have the number 1. Each needs another --process-id."
    assert errors == [errors[0]] * 3


def test_missing_processes_are_named():
    port = free_port()
    errors = rendezvous_of((processes_of(0, 4, 0.3, port), {}), (processes_of(2, 4, 5.0, port), {}))
    assert errors[0] == errors[1]
    assert "2 of 4 processes have not connected" in errors[0]
    assert "within 0.3 s: 1, 3" in errors[0]


def test_an_unreachable_coordinator_is_reported_in_time():
    for coordinator in (f"127.0.0.1:{free_port()}", "nowhere.invalid:4567"):
        began = time.monotonic()
        with pytest.raises(ConfigError, match=f"Process 0 was not reached at {coordinator} within 0.2 s"):
            rendezvous(Processes(coordinator, 2, 1, join_timeout=0.2), {})
        assert time.monotonic() - began < 20  # a resolver has its own patience


def test_a_port_in_use_is_reported():
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Process 0 cannot listen on 127.0.0.1:{port} .*in use"):
            rendezvous(processes_of(0, port=port), {})


def test_other_clients_at_the_port_are_ignored():
    port = free_port()

    def stranger():
        time.sleep(0.3)
        for words in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"[1, 2]\n",
            b"[" * 60_000 + b"\n",
            b'{"process_id": [1]}\n',
            b"\xff\xfe\n",
            b"",
        ):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(words)

    thread = threading.Thread(target=stranger)
    thread.start()
    first = threading.Thread(target=rendezvous, args=(processes_of(0, timeout=20.0, port=port), {}))
    first.start()
    thread.join()
    rendezvous(processes_of(1, timeout=20.0, port=port), {})
    first.join(timeout=20)
    assert not first.is_alive()


@pytest.mark.parametrize("words", [b"", b'{"process_id": '], ids=["nothing", "half a line"])
def test_a_silent_client_does_not_delay_the_processes(words):
    port = free_port()
    first = threading.Thread(target=rendezvous, args=(processes_of(0, timeout=60.0, port=port), {}))
    first.start()
    silent = connect_when_open(port)
    with silent:
        silent.sendall(words)
        began = time.monotonic()
        rendezvous(processes_of(1, timeout=60.0, port=port), {})
        first.join(timeout=60)
        assert not first.is_alive()
        assert time.monotonic() - began < 5


def connect_when_open(port):
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_process_that_ends_before_all_have_come_ends_the_wait():
    port = free_port()
    errors = []

    def wait():
        try:
            rendezvous(processes_of(0, 3, timeout=60.0, port=port), {})
        except ConfigError as error:
            errors.append(str(error))

    first = threading.Thread(target=wait)
    first.start()
    with connect_when_open(port) as other:
        other.sendall(b'{"process_id": 2, "num_processes": 3}\n')
        assert other.recv(100) == b'{"joined": true}\n'
    first.join(timeout=20)
    assert errors == ["Process 2 ended before all had connected. See its messages."]


LOOPBACK = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_process_0_listens_on_the_coordinators_address_alone(host):
    try:
        servers = _listen(f"{host}:{free_port()}", 0.0)
    except ConfigError:
        if host != "[::1]":
            raise
        pytest.skip("no IPv6 here")
    expected = {entry[4][0] for entry in LOOPBACK} if host == "localhost" else {host.strip("[]")}
    try:
        assert {server.getsockname()[0] for server in servers} <= expected
        port = servers[0].getsockname()[1]
        for elsewhere in ("127.0.0.2", socket.gethostname()):
            if elsewhere != "127.0.0.2" and socket.gethostbyname(elsewhere) in expected:
                continue
            with pytest.raises(OSError, match=r".*"):
                socket.create_connection((elsewhere, port), timeout=2).close()
    finally:
        for server in servers:
            server.close()


def test_a_coordinators_address_of_another_machine_is_refused_with_what_to_do(monkeypatch):
    port = free_port()
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 is no address of this machine.*JAX_COORDINATOR_BIND_ADDRESS"):
        rendezvous(processes_of(0, port=port, host="192.0.2.1"), {})
    # An address behind NAT: the environment variable names the address to listen on.
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", f"127.0.0.1:{port}")
    first = processes_of(0, 2, port=port, host="192.0.2.1")
    assert rendezvous_of((first, {}), (processes_of(1, port=port), {})) == [None, None]


def test_a_host_name_that_resolves_only_after_a_while(monkeypatch):
    resolve, tried = socket.getaddrinfo, []

    def late(host, *rest, **options):
        if host == "node1" and len(tried) < 2:
            tried.append(host)
            raise socket.gaierror("Name or service not known")
        return resolve("127.0.0.1", *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", late)
    port = free_port()
    first, second = (processes_of(number, port=port, host="node1") for number in range(2))
    assert rendezvous_of((first, {}), (second, {})) == [None, None]


def test_a_timeout_names_a_host_name_that_resolves_to_the_loopback(monkeypatch):
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **options: resolve("127.0.0.1", *rest, **options))
    with pytest.raises(ConfigError, match=r"On this machine, node1 is 127\.0\.0\.1, which no other machine reaches"):
        rendezvous(processes_of(0, timeout=0.1, port=free_port(), host="node1"), {})
