"""VideoMAR in JAX: masked autoregressive image-to-video generation with continuous tokens.

Three levels of use: `VideoMARPipeline` (images and prompts in, videos out), `generate` (latents in,
latents out) and `VideoMAR` (the network). `load_pretrained` opens a trained run; `image_to_video`
is the first level for a model of one's own.

Names are imported when they are first used, so that a command can refuse a wrong flag without
loading JAX.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "PRESETS": "models.config",
    "ModelConfig": "models.config",
    "SamplingConfig": "sampling.config",
    "Video": "inference.video",
    "VideoMAR": "models.videomar",
    "VideoMARPipeline": "inference.pipeline",
    "generate": "sampling.generate",
    "generate_frames": "sampling.generate",
    "image_to_video": "inference.image_to_video",
    "load_pretrained": "pretrained.bundle",
}
"""Public name → the module that defines it."""
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'videomar_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"videomar_jax.{_MODULES[name]}"), name)
