"""A first VideoMAR: minutes on two CPU cores, no files, no downloads.

    python -m videomar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

trains a small model (1.4 M parameters) on captioned moving shapes, short to long and small to
large, then draws and scores held-out clips: see WORKDIR/report.md. What differs from the paper: the
flow head, every next frame at once (`loss.supervise = "all"`), Muon, and the auxiliary terms of the
model preset; each made the small model learn faster.

`quickstart.py:videos` does the same on a folder of clips, and needs `--config.data.path=DIR`;
`quickstart.py:tiny` runs through everything in a minute, for tests, and learns nothing much.
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
    """variant: "" (shapes), "videos" or "tiny"."""
    if variant not in ("", "videos", "tiny"):
        raise ValueError(f"quickstart.py knows the variants 'videos' and 'tiny', not {variant!r}.")
    config = load("base").get_config()
    config.model.preset = "quickstart"
    config.loss.update(supervise="all_frames", draws_per_token=2, regression_weight=1.0)
    config.optimizer.update(
        name="muon",
        schedule="cosine",
        final_fraction=0.03,
        weight_decay=0.01,
        clip_norm=1.0,
        ema_decay=0.99,
        ema_warmup=True,
        warmup_steps=100,
    )
    config.sampling.update(steps=4, head_steps="4", guidance=1.0, latent_clip=0.0)
    config.sampling.update(
        window=4, keep_first=False
    )  # as many frames as training showed: longer videos hold
    rate = 1e-2
    config.curriculum = (
        dict(
            name="16px_3f",
            num_frames=3,
            height=16,
            width=16,
            batch_size=32,
            steps=400,
            learning_rate=rate,
        ),
        dict(
            name="24px_5f",
            num_frames=5,
            height=24,
            width=24,
            batch_size=16,
            steps=250,
            learning_rate=rate,
        ),
        dict(
            name="32px_9f",
            num_frames=9,
            height=32,
            width=32,
            batch_size=8,
            steps=200,
            learning_rate=rate,
        ),
    )
    if variant == "videos":
        config.data.kind = "videos"
        config.sampling.temperature = (
            0.25  # little noise: what is sure, rather than what is possible
        )
    if variant == "tiny":
        config.model.update(preset="tiny", latent_channels=16, text_tokens=8, text_width=64)
        config.loss.regression_weight = 0.0
        config.optimizer.warmup_steps = 2
        config.tokenizer.fit_clips = 40
        config.run.update(log_every=1, checkpoint_every=2)
        config.sampling.update(steps=2, head_steps="2")
        config.evaluation.update(clips=4, batch_size=4)
        config.curriculum = tuple(dict(row, batch_size=4, steps=3) for row in config.curriculum[:2])
    return config
