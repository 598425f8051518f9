"""Where the repository and its parts lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
GOLDEN = ROOT / "tests" / "golden"

CORE = [
    ROOT / "videomar_jax" / name
    for name in (
        "types.py",
        "models/patchify.py",
        "models/masking.py",
        "models/rope.py",
        "models/attention.py",
        "models/transformer.py",
        "models/videomar.py",
        "models/diffusion_head.py",
        "diffusion/base.py",
        "diffusion/ddpm.py",
        "diffusion/flow.py",
        "diffusion/solver.py",
        "training/draws.py",
        "training/loss.py",
        "sampling/schedules.py",
        "sampling/reference.py",
    )
]
"""The method itself, in reading order; README.md and docs/design.md show the same list."""
