"""Hardware that may be absent: its data, and devices to compile programs for."""
import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from conic_jax.errors import UserError

GIB = 2**30
# Share of memory that libraries, communication and fragmentation take.
KEPT_BACK = 0.08
_GPUS_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Hardware:
  """One kind of device, from its maker's data sheet.

  Attributes:
    memory: bytes.
    bandwidth: of the memory, bytes/s; 0 if unknown.
    half_flops, single_flops: FLOP/s of dense products, with 16-bit factors and with float32 ones.
    link: bytes/s that a device sends to the others of its host (NVLink) or slice (ICI).
    network: bytes/s that a host sends to other hosts, as for the large clouds' machines of this kind.
    capability: CUDA compute capability; 0 for others.
    cores, units: multiprocessors of a GPU, and float32 units per multiprocessor.
    shared: bytes of shared memory per multiprocessor.
    cache: bytes of the last-level cache.
    clock: GHz.
  """
  memory: int
  bandwidth: float = 0
  half_flops: float = 0
  single_flops: float = 0
  link: float = 0
  network: float = 0
  capability: float = 0
  cores: int = 0
  units: int = 0
  shared: int = 0
  cache: int = 0
  clock: float = 0


_V100 = Hardware(32 * GIB, 898e9, 125e12, 15.7e12, 150e9, 12.5e9, 7.0, 80, 64, 98304, 6 << 20, 1.53)
_A100 = Hardware(80 * GIB, 2039e9, 312e12, 19.5e12, 300e9, 50e9, 8.0, 108, 64, 167936, 40 << 20, 1.41)
_H100 = Hardware(80 * GIB, 3352e9, 989e12, 67e12, 450e9, 400e9, 9.0, 132, 128, 233472, 50 << 20, 1.98)
GPUS = {
  'V100-16GB': dataclasses.replace(_V100, memory=16 * GIB),
  'V100-32GB': _V100,
  'A100-40GB': dataclasses.replace(_A100, memory=40 * GIB, bandwidth=1555e9),
  'A100-80GB': _A100,
  'H100-80GB': _H100,
  'H200-141GB': dataclasses.replace(_H100, memory=141 * GIB, bandwidth=4800e9),
}
# A float32 product at full precision takes six passes of bfloat16.
TPUS = {
  'v4': Hardware(32 * GIB, 1228e9, 275e12, 275e12 / 6, 300e9),
  'v5e': Hardware(16 * GIB, 819e9, 197e12, 197e12 / 6, 200e9),
  'v5p': Hardware(95 * GIB, 2765e9, 459e12, 459e12 / 6, 600e9),
  'v6e': Hardware(32 * GIB, 1638e9, 918e12, 918e12 / 6, 400e9),
}
_TORUS_AXES = {'v4': 3, 'v5e': 2, 'v5p': 3, 'v6e': 2}
_INSTALL = {'cuda': 'plan-gpu', 'tpu': 'tpu'}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Connected devices of one kind.

  Attributes:
    name: as requested.
    platform: 'cuda', 'tpu' or 'cpu', as the compiler calls it.
    num_devices: number of devices, each with one program.
    hosts: machines that share them; 1 if all devices are linked to each other.
    hardware: the kind of device.
  """
  name: str
  platform: str
  num_devices: int
  hosts: int
  hardware: Hardware

  @property
  def limit_bytes(self) -> int:
    """Device memory that a program may use."""
    return int(self.hardware.memory * (1 - KEPT_BACK))


def parse(name: str) -> Topology:
  """Parses a topology: '64xV100-32GB', 'v5e:8x8', or 'cpu:8' for devices of this machine.

  Raises:
    UserError: for an unknown name; lists the available ones.
  """
  gpu = re.fullmatch(r'([1-9]\d*)x(.+)', name)
  if gpu and gpu.group(2) in GPUS:
    count = int(gpu.group(1))
    return Topology(name, 'cuda', count, -(-count // _GPUS_A_HOST), GPUS[gpu.group(2)])
  tpu = re.fullmatch(r'(\w+):([1-9]\d*(?:x[1-9]\d*)*)', name)
  if tpu and tpu.group(1) in TPUS:
    sides = [int(side) for side in tpu.group(2).split('x')]
    axes = _TORUS_AXES[tpu.group(1)]
    if len(sides) != axes:
      raise UserError(f"--topology={name}: a slice of {tpu.group(1)} has {axes} sides, such as "
                      f"{tpu.group(1)}:{'x'.join('4' * axes)}.")
    return Topology(name, 'tpu', math.prod(sides), 1, TPUS[tpu.group(1)])
  if tpu and tpu.group(1) == 'cpu' and tpu.group(2).isdigit():
    count = int(tpu.group(2))
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return Topology(name, 'cpu', count, 1, Hardware(memory // count))
  raise UserError(f"There is no topology '{name}'; available: COUNTxGPU such as 64xV100-32GB, with "
                  f'{", ".join(GPUS)}; {", ".join(TPUS)} with sides such as v5e:8x8 or v4:4x4x4; cpu:COUNT.')


def prepare(topology: Topology) -> None:
  """Makes this process a compiler for the topology; must run before anything else uses JAX.

  Accelerators of this machine are left alone: the CPU is the only device.
  """
  # libtpu would ask the cloud's metadata server which TPU this is, and lock out other processes.
  os.environ.update(TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', ALLOW_MULTIPLE_LIBTPU_LOAD='1')
  # XLA warns about programs that are too large, and about a missing GPU.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  jax.config.update('jax_platforms', 'cpu')
  if topology.platform == 'cpu':
    jax.config.update('jax_num_cpu_devices', topology.num_devices)


def devices(topology: Topology) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
  """The devices to compile for; nothing runs on them.

  Raises:
    UserError: if the compiler is not installed or does not know the topology.
  """
  if topology.platform == 'cpu':
    local = jax.devices('cpu')
    if len(local) < topology.num_devices:
      raise UserError(f'--topology={topology.name}: this process has {len(local)} CPU devices; set '
                      f'XLA_FLAGS=--xla_force_host_platform_device_count={topology.num_devices}.')
    return local[:topology.num_devices]
  check_compiler(topology)
  try:
    return list(_description(topology).devices)
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f'--topology={topology.name}: the compiler knows no such topology '
                    f'({str(error).splitlines()[0]}).') from error


def check_compiler(topology: Topology) -> None:
  """Raises a UserError if the topology's compiler is not installed."""
  needs = {'cuda': ('jax_plugins.xla_cuda12', 'nvidia.cuda_nvcc'), 'tpu': ('libtpu',)}[topology.platform]
  if not all(map(_is_installed, needs)):
    extra = _INSTALL[topology.platform]
    raise UserError(f'--topology={topology.name} needs the compiler for {topology.platform.upper()}, which '
                    f"is not installed: pip install 'conic_jax[{extra}]' (the hardware is not needed).")


def _is_installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:
    return False


def _description(topology: Topology):
  if topology.platform == 'tpu':
    # v4 and v5p have two cores per chip, which act as one device.
    cores = {'chip_config_name': 'megacore'} if topology.name.startswith(('v4', 'v5p')) else {}
    return topologies.get_topology_desc(platform='tpu', topology_name=topology.name, **cores)
  hosts = topology.hosts if topology.num_devices % topology.hosts == 0 else 1
  return topologies.get_topology_desc(
    platform='cuda', topology_name=topology.name, target_config=target_config(topology),
    topology=f'1x{hosts}x{topology.num_devices // hosts}')


def target_config(topology: Topology) -> str:
  """A GPU's description for XLA's compiler, as a text proto.

  JAX 0.11 lowers Triton kernels for the GPU that the maker's name says.
  """
  gpu, major = topology.hardware, int(topology.hardware.capability)
  name = topology.name.split('x', 1)[1]
  # Since Ampere, a block may use all shared memory but one KiB.
  block = gpu.shared - (1024 if major >= 8 else 0)
  extension = 'feature_extension: ACCELERATED_FEATURES' if major >= 9 else ''
  return f'''
    gpu_device_info {{
      threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
      core_count: {gpu.cores}  fpus_per_core: {gpu.units}  clock_rate_ghz: {gpu.clock}
      shared_memory_per_block: 49152  shared_memory_per_core: {gpu.shared}
      shared_memory_per_block_optin: {block}
      registers_per_core_limit: 65536  registers_per_block_limit: 65536
      thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
      block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
      memory_bandwidth: {gpu.bandwidth:.0f}  l2_cache_size: {gpu.cache}  device_memory_size: {gpu.memory}
      cuda_compute_capability {{ major: {major}  minor: {round(gpu.capability * 10) % 10} {extension} }}
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 1 patch: 0 }}
    device_description_str: "NVIDIA {name}"
  '''
