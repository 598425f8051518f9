"""What may be said about the preparation of a folder of videos. Needs no JAX."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Literal

from videomar_jax.checks import BelowOne, Count, Natural, Positive, check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How videos become clips, and how the work is done.

    Raises:
        UserError: a field with a value that makes no sense, by name.
    """

    captions: str | None = None
    """A .csv or .jsonl of captions; by default one among the videos."""
    num_frames: Sequence[str] = ("49",)
    """Frames of a clip; of several, each video takes the largest number that it holds."""
    sizes: Sequence[str] = ("480x768",)
    """Pixel rows x columns; of several, each video takes the nearest."""
    fps: Positive = 12.0
    """Frames per second that videos are resampled to."""
    windows_per_clip: Natural = 0
    """Most clips of one video; 0: all that it holds, end to end."""
    holdout: BelowOne = 0.05
    """Share of the clips that go to the split "test"."""
    dtype: Literal["float16", "bfloat16"] = "float16"
    """Of latents and text features on disk."""
    clips_per_shard: Count = 256
    """Clips in one file: what a kill loses at most."""
    process_index: Natural | None = None
    """Which of the processes this is; by default as SLURM or MPI say."""
    process_count: Count | None = None
    """How many processes share the work and --output; by default as SLURM or MPI say."""
    batch_size: Count | None = None
    """Clips encoded at a time on all devices; by default one on each."""
    threads: Count = os.cpu_count() or 4
    """Threads that decode videos."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which Cosmos and Qwen2 compute."""
    beam: bool = False
    """Run as an Apache Beam pipeline."""
    beam_options: tuple[str, ...] = ()
    """Pipeline option, such as --runner=FlinkRunner."""

    def __post_init__(self):
        check_fields("", self)
