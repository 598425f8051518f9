"""Stage 3 of 3: 49 frames of 480x768 and of other aspect ratios with as many tokens, from the
parameters of stage 2.

    python -m videomar_jax.main --config=configs/stage3.py --config.data.path=CLIPS
    --config.init_from=runs/stage2 \
        --workdir=runs/stage3

Each clip is cut to the size that is nearest to its own aspect ratio. `--config.init_from` also
takes a converted checkpoint, to train the published model on your clips. Everything that is not set
here is stage 1's. `stage3.py:tiny` goes on from a run of `stage2.py:tiny`.
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
        raise ValueError(f"stage3.py knows the variant 'tiny', not {variant!r}.")
    if variant == "tiny":
        config = stage1.tiny()
        sizes, frames, clips, steps, rate = ((20, 32), (32, 20), (24, 24)), 13, 2, 6, 1e-3
        share = 0.2
    else:
        config = stage1.full()
        config.optimizer.warmup_steps = 1000  # ours
        # 480x768 and 49 frames are the paper's; the other two, with about as many tokens, are ours:
        # portrait, square
        sizes, frames = ((480, 768), (768, 480), (608, 608)), 49
        # ours: as many tokens as in stage 2, MAR's rate for 64 clips, and a tenth of the steps for
        # images
        clips, steps, rate, share = 64, 20_000, 2.5e-5, 0.1
    images = dict(num_frames=1, sizes=sizes, batch_size=4 * clips, weight=share)
    videos = dict(num_frames=frames, sizes=sizes, batch_size=clips, weight=1 - share)
    config.curriculum = (
        dict(name="full_size", mix=(images, videos), steps=steps, learning_rate=rate),
    )
    return config
