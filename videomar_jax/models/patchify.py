"""Latents to tokens and back, and where each token stands (spec: the order is frame, row, column).

A token holds a p x p patch of all latent channels, its values ordered channel, patch row, patch
column.
"""

import jax.numpy as jnp
from einops import rearrange

from videomar_jax.types import Latents, Positions, Tokens


def patchify(latents: Latents, patch_size: int = 1) -> Tokens:
    """[B, T, H*p, W*p, C] → [B, T, H*W, C*p*p].

    Raises:
        ValueError: the latent size is not a multiple of the patch size.
    """
    rows, columns = latents.shape[2:4]
    if rows % patch_size or columns % patch_size:
        raise ValueError(
            f"Latents of {rows}x{columns} cannot be cut into patches of {patch_size}x{patch_size}."
        )
    return rearrange(
        latents, "b t (H py) (W px) c -> b t (H W) (c py px)", py=patch_size, px=patch_size
    )


def unpatchify(tokens: Tokens, grid: tuple[int, int], patch_size: int = 1) -> Latents:
    """The inverse of `patchify`; `grid` is (H, W), the token rows and columns of a frame."""
    rows, columns = grid
    return rearrange(
        tokens,
        "b t (H W) (c py px) -> b t (H py) (W px) c",
        H=rows,
        W=columns,
        py=patch_size,
        px=patch_size,
    )


def positions(frames: jnp.ndarray | int, grid: tuple[int, int]) -> Positions:
    """Integer (frame, row, column) of every token, [T, H*W, 3].

    Args:
        frames: the number of frames, or an integer array [T] of frame numbers (which may be
            traced).
        grid: (H, W).
    """
    frames = jnp.arange(frames) if isinstance(frames, int) else frames
    mesh = jnp.meshgrid(frames, jnp.arange(grid[0]), jnp.arange(grid[1]), indexing="ij")
    return jnp.stack(mesh, axis=-1).reshape(len(frames), -1, 3)
