"""VideoMAR in JAX: masked autoregressive image-to-video generation with continuous tokens.

Three levels of use: `VideoMARPipeline` (images and prompts in, videos out), `generate` (latents),
    `VideoMAR` (the
network). `load_pretrained` opens a trained run; `image_to_video` is the first level for a model of
one's own. Names are imported when they are first used, so that a command answers a wrong flag
without loading JAX.
"""

import importlib

_HOME = {
    "PRESETS": "models.config",
    "ModelConfig": "models.config",
    "SamplingConfig": "sampling.config",
    "Video": "video",
    "VideoMAR": "models.videomar",
    "VideoMARPipeline": "pipeline",
    "generate": "sampling.decode",
    "generate_frames": "sampling.decode",
    "image_to_video": "sampling.image_to_video",
    "load_pretrained": "pretrained",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'videomar_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"videomar_jax.{_HOME[name]}"), name)
