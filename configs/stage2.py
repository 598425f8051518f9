"""Stage 2 of 3: 256x256 at full length, 49 frames, from the parameters of stage 1.

    python -m videomar_jax.main --config=configs/stage2.py --workdir=runs/stage2 \
        --config.data.path=CLIPS --config.init_from=runs/stage1

Parameters and their average both start from the averaged parameters of stage 1; optimizer and step
are new. Everything that is not set here is stage 1's. `stage2.py:tiny` continues from a run of
`stage1.py:tiny`.
"""

from ml_collections import ConfigDict

from videomar_jax.experiment.config_files import sibling


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" (the 1.4 B model) or "tiny"."""
    stage1 = sibling(__file__, "stage1")
    if variant not in stage1.VARIANTS:
        raise ValueError(f"stage2.py knows the variant 'tiny', not {variant!r}.")
    if variant == "tiny":
        config = stage1.tiny()
        side, frames, clips, steps, rate, share = 16, 13, 4, 4, 1e-3, 0.5
    else:
        config = stage1.full()
        config.optimizer.warmup_steps = 1000  # ours
        side, frames = 256, 49
        # Ours: MAR's rate for 256 clips, and a tenth of the steps for images.
        clips, steps, rate, share = 256, 20_000, 1e-4, 0.1
    images = dict(num_frames=1, height=side, width=side, batch_size=4 * clips, weight=share)
    videos = dict(num_frames=frames, height=side, width=side, batch_size=clips, weight=1 - share)
    config.curriculum = (
        dict(name="full_length", mix=(images, videos), steps=steps, learning_rate=rate),
    )
    return config
