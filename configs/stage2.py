"""Stage 2 of 3: 256x256 at full length, 49 frames, from the parameters of stage 1.

    python -m videomar_jax.main --config=configs/stage2.py --config.data.path=CLIPS
    --config.init_from=runs/stage1 \
        --workdir=runs/stage2

Parameters and their average both begin with the averaged parameters of stage 1; optimizer and step
are new. Everything that is not set here is stage 1's. `stage2.py:tiny` goes on from a run of
`stage1.py:tiny`.
"""

import importlib.util
import os

from ml_collections import ConfigDict


def load(name: str):
    """Another config file of this folder."""
    spec = importlib.util.spec_from_file_location(
        name, os.path.join(os.path.dirname(__file__), f"{name}.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" (the 1.4 B model) or "tiny"."""
    stage1 = load("stage1")
    if variant not in stage1.VARIANTS:
        raise ValueError(f"stage2.py knows the variant 'tiny', not {variant!r}.")
    if variant == "tiny":
        config = stage1.tiny()
        side, frames, clips, steps, rate, share = 16, 13, 4, 4, 1e-3, 0.5
    else:
        config = stage1.full()
        config.optimizer.warmup_steps = 1000  # ours
        side, frames = 256, 49
        # ours: MAR's rate for 256 clips, and a tenth of the steps for images
        clips, steps, rate, share = 256, 20_000, 1e-4, 0.1
    images = dict(num_frames=1, height=side, width=side, batch_size=4 * clips, weight=share)
    videos = dict(num_frames=frames, height=side, width=side, batch_size=clips, weight=1 - share)
    config.curriculum = (
        dict(name="full_length", mix=(images, videos), steps=steps, learning_rate=rate),
    )
    return config
