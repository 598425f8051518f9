"""Stage 3 of 3: 49 frames of 480x768, and of other aspect ratios with as many tokens.

    python -m videomar_jax.main --config=configs/stage3.py --workdir=runs/stage3 \
        --config.data.path=CLIPS --config.init_from=runs/stage2

It starts from the parameters of stage 2. Each clip is cut to the size that is nearest to its own
aspect ratio. `--config.init_from` also takes a converted checkpoint, to train the published model
on your clips. Everything that is not set here is stage 1's. `stage3.py:tiny` continues from a run
of `stage2.py:tiny`.
"""

from ml_collections import ConfigDict

from videomar_jax.experiment.config_files import sibling


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" (the 1.4 B model) or "tiny"."""
    stage1 = sibling(__file__, "stage1")
    if variant not in stage1.VARIANTS:
        raise ValueError(f"stage3.py knows the variant 'tiny', not {variant!r}.")
    if variant == "tiny":
        config = stage1.tiny()
        sizes, frames = ((20, 32), (32, 20), (24, 24)), 13
        clips, steps, rate, share = 2, 6, 1e-3, 0.2
    else:
        config = stage1.full()
        config.optimizer.warmup_steps = 1000  # ours
        # 480x768 and 49 frames are the paper's; portrait and square, with about as many tokens,
        # are ours.
        sizes, frames = ((480, 768), (768, 480), (608, 608)), 49
        # Ours: as many tokens as in stage 2, MAR's rate for 64 clips, and a tenth of the steps for
        # images.
        clips, steps, rate, share = 64, 20_000, 2.5e-5, 0.1
    images = dict(num_frames=1, sizes=sizes, batch_size=4 * clips, weight=share)
    videos = dict(num_frames=frames, sizes=sizes, batch_size=clips, weight=1 - share)
    config.curriculum = (
        dict(name="full_size", mix=(images, videos), steps=steps, learning_rate=rate),
    )
    return config
