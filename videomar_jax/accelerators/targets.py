"""Machines that need not be here: devices to compile for, from JAX's compile-only topologies.

    tpu:v5e:16x16     256 chips; needs libtpu, no TPU
    tpu:v5p:4x4x4     64 chips
    gpu:h100:8        8 GPUs in machines of 8; needs JAX's CUDA plugin and cuDNN, no GPU, no driver

The devices take the place of real ones in a mesh; nothing can be placed on them or run.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from videomar_jax.accelerators.chips import Chip, chip_of
from videomar_jax.checks import UserError, did_you_mean

GPUS_IN_A_MACHINE = 8
TPUS = ("v5e", "v5p", "v6e")
_FORM = "tpu:GENERATION:AxB[xC] (such as tpu:v5e:16x16 or tpu:v5p:4x4x4) or gpu:h100:NUMBER"

# What XLA asks of a card: NVIDIA's data sheet of the H100 SXM and the limits of compute capability
# 9.0 in the CUDA programming guide. The version of cuDNN decides which of its kernels are used.
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: 84978434048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Raises:
        UserError: not a name of the forms above.
    """

    name: str
    platform: str
    """ "tpu" or "gpu"."""
    model: str
    """The generation of the chips."""
    shape: tuple[int, ...]
    """Chips along each axis of the network; of GPUs their number alone."""

    @classmethod
    def parse(cls, name: str) -> "Target":
        """The target of a name."""
        match = re.fullmatch(r"(tpu|gpu):(\w+):(\d+(?:x\d+)*)", name)
        if match is None:
            raise UserError(f"{name!r} names no machine to compile for; write {_FORM}.")
        platform, model = match[1], match[2]
        known = TPUS if platform == "tpu" else ("h100",)
        if model not in known:
            hint = did_you_mean(model, known)
            raise UserError(f"No {platform} {model!r} is known here.{hint} Write {_FORM}.")
        shape = tuple(int(size) for size in match[3].split("x"))
        axes = {"v5e": 2, "v5p": 3, "v6e": 2, "h100": 1}[model]
        if len(shape) != axes or min(shape) < 1:
            raise UserError(f"{name!r}: {model} needs {axes} sizes of at least 1; write {_FORM}.")
        in_a_machine = min(shape[0], GPUS_IN_A_MACHINE)
        if platform == "gpu" and shape[0] % in_a_machine:
            raise UserError(f"{name!r}: more than 8 GPUs must be a multiple of 8.")
        return cls(name, platform, model, shape)

    @property
    def compiler(self) -> str:
        """JAX's name of the platform to lower for."""
        return "cuda" if self.platform == "gpu" else self.platform

    def require(self) -> None:
        """Checks that the compiler is installed.

        Raises:
            UserError: it is not; the text holds the line that installs it.
        """
        version = jax.__version__
        if self.platform == "tpu":
            needed, install = ("libtpu",), f'"jax[tpu]=={version}"'
        else:
            needed = ("jax_plugins.xla_cuda12", "nvidia.cudnn")
            install = f"jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version} nvidia-cudnn-cu12"
        missing = [module for module in needed if not _is_installed(module)]
        if missing:
            raise UserError(
                f"Compiling for {self.name} needs {' and '.join(missing)}, which "
                f"{'is' if len(missing) == 1 else 'are'} not installed: pip install {install}"
            )

    def devices(self) -> Sequence[jax.Device]:
        """The machine's devices.

        Raises:
            UserError: the compiler is not installed, or knows no such machine.
        """
        self.require()
        # Outside of Google's cloud libtpu would wait for a server that says where it runs.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        # It lets one process use a machine's TPUs; none is used here.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        try:
            return self._topology().devices
        except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"There is no machine {self.name}: {reason}") from error

    def _topology(self) -> topologies.TopologyDescription:
        if self.platform == "tpu":
            sizes = "x".join(map(str, self.shape))
            return topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.model}:{sizes}"
            )
        (count,) = self.shape
        in_a_machine = min(count, GPUS_IN_A_MACHINE)
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name=self.model,
            target_config=_H100,
            topology=f"1x{count // in_a_machine}x{in_a_machine}",
        )


def chip_of_devices(devices: Sequence[jax.Device]) -> Chip:
    """What one of the devices can do.

    Raises:
        UserError: it is not in the table of chips.
    """
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        raise UserError(f"{devices[0].device_kind} is not in the table of accelerators.chips.")
    return chip


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package
        return False
