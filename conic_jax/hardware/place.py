"""A process's place in its cluster, from the flags or from the environment."""
import dataclasses
import os

from conic_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Place:
  """A process's place in a cluster.

  Attributes:
    host, port: where process 0 listens.
    count: processes of the cluster.
    index: this process, from 0.
    devices: the local devices it uses; None for all.
  """
  host: str
  port: int
  count: int
  index: int
  devices: tuple[int, ...] | None = None

  @property
  def address(self) -> str:
    """Where process 0 listens, as the user gave it."""
    return f'[{self.host}]:{self.port}' if ':' in self.host else f'{self.host}:{self.port}'

  def named(self, index: int, host: str = '') -> str:
    """A process's name in a message."""
    return f'Process {index} of {self.count}{f" on {host}" if host else ""}'


_ENVIRONMENTS = 'Slurm, Open MPI, Kubernetes or a TPU pod'


def find_place(coordinator: str | None, count: int | None, index: int | None, timeout: float) -> Place:
  """This process's place; what is None is taken from the environment.

  Args:
    coordinator: host:port of process 0.
    count: processes of the cluster.
    index: this process.
    timeout: seconds that the environment may take to answer.

  Raises:
    UserError: if something is missing or wrong.
  """
  given = (coordinator, count, index)
  coordinator, count, index, devices = _from_environment(coordinator, count, index, timeout)
  if coordinator is None:
    raise UserError(f'--distributed finds no cluster in the environment (it knows {_ENVIRONMENTS}): give '
                    '--coordinator=HOST:PORT of process 0, --num_processes and --process_id, or leave '
                    '--distributed out to train on this machine alone.')
  missing = [flag for flag, value in (('--num_processes', count), ('--process_id', index)) if value is None]
  if missing or count is None or index is None:
    raise UserError(f'--coordinator needs {" and ".join(missing)} too: the environment does not tell them.')
  host, port = _host_and_port(coordinator)
  if count < 1:
    raise UserError(f'--num_processes is {count}: it must be the number of processes, at '
                    'least 1.')
  if not 0 <= index < count:
    source = '--process_id' if given[2] is not None else "the environment's process number"
    raise UserError(f'{source} is {index}: with {count} processes it must be from 0 to {count - 1}, another '
                    'number for each process.')
  return Place(host, port, count, index, devices)


def _host_and_port(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(':')
  host = host.removeprefix('[').removesuffix(']')
  if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 2**16:
    raise UserError(f"--coordinator is '{address}': it must be HOST:PORT of process 0, such as node0:1234, "
                    'the same for all processes.')
  return host, int(port)


def _from_environment(coordinator: str | None, count: int | None, index: int | None, timeout: float):
  """The three, completed from the environment as JAX would, and the local devices."""
  coordinator = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
  try:
    from jax._src.clusters import ClusterEnv
    detect = ClusterEnv.auto_detect_unset_distributed_params
  except (ImportError, AttributeError):  # Private to JAX: without it, all is given by flags.
    return coordinator, count, index, None
  try:
    coordinator, count, index, devices = detect(coordinator, count, index, None, None, round(timeout))
  except Exception as error:
    raise UserError(f'The cluster cannot be read from the environment ({str(error).splitlines()[0]}): give '
                    '--coordinator=HOST:PORT of process 0, --num_processes and --process_id.') from error
  if devices is None or 'JAX_LOCAL_DEVICE_IDS' in os.environ:
    return coordinator, count, index, None
  return coordinator, count, index, tuple(devices)
