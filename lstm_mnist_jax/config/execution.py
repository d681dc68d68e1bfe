"""How a run is executed: on which devices, by which processes. Changes no result beyond rounding."""

from dataclasses import dataclass

from lstm_mnist_jax.config.checked import Checked, require
from lstm_mnist_jax.errors import ConfigError


@dataclass(frozen=True)
class Execution(Checked):
    """On which devices to run, and with how much of their memory. Changes no result beyond rounding.

    Raises:
      ConfigError: a value is impossible.

    Examples:
      >>> from lstm_mnist_jax import Execution
      >>> Execution(devices=1).device_data_limit
      4.0
    """

    devices: int | None = None
    """How many devices share a batch: CPU cores, GPUs or TPU cores. None chooses."""
    device_data_limit: float = 4.0
    """GiB. Training images that take more are not kept on the devices, but stream to them."""
    memory_limit: float | None = None
    """GiB of each device that many trainings at once may take. None is nearly all that is free."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.devices is None or self.devices > 0, "devices", self.devices, "1 or more, or None")
        memory = self.memory_limit
        require(memory is None or memory > 0, "memory_limit", memory, "GiB, above 0, or None")
        require(self.device_data_limit > 0, "device_data_limit", self.device_data_limit, "GiB, above 0")


@dataclass(frozen=True)
class Processes(Checked):
    """The processes that train together, on several machines or one. Under SLURM, Open MPI, in an indexed job of
    Kubernetes and on Cloud TPU they find each other; elsewhere each is told.
    """

    coordinator: str | None = None
    """HOST:PORT of process 0, which must be free there; the same for all."""
    num_processes: int | None = None
    """How many processes there are. 1 by itself trains alone, whatever the environment says."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    join_timeout: float = 300.0
    """Seconds to wait at the start until all have come."""

    def __post_init__(self) -> None:
        super().__post_init__()
        told = {"coordinator": self.coordinator, "num_processes": self.num_processes, "process_id": self.process_id}
        missing = [name for name, value in told.items() if value is None]
        if self.num_processes == 1 and self.coordinator is None and not self.process_id:
            return  # alone, whatever the environment says
        if missing and len(missing) < len(told):
            raise ConfigError(
                f"{', '.join(missing)} must be given as well: either all of {', '.join(told)}, or none of them."
            )
        require(self.join_timeout > 0, "join_timeout", self.join_timeout, "seconds, above 0")
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        valid = bool(host) and port.isdecimal() and 0 < int(port) < 65536
        require(valid, "coordinator", repr(self.coordinator), "HOST:PORT, with a port from 1 to 65535")
        require(self.num_processes > 0, "num_processes", self.num_processes, "1 or more")
        in_range = 0 <= self.process_id < self.num_processes
        require(in_range, "process_id", self.process_id, f"0 to {self.num_processes - 1}, of {self.num_processes}")
