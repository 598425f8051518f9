"""Diffusion processes and their solvers: mathematics only, no network and no model config.

Importing the package registers every process in `base.PROCESSES`.
"""

from videomar_jax.diffusion.base import PROCESSES, Process, Timesteps, guide
from videomar_jax.diffusion.ddpm import DDPM
from videomar_jax.diffusion.flow import Flow

__all__ = ["DDPM", "PROCESSES", "Flow", "Process", "Timesteps", "guide"]
