"""Latents to tokens and back, and the position of each token.

A token is a p x p patch of all latent channels. Tokens are ordered frame, row, column, and the
values of a token channel, patch row, patch column (the published layout):

    token[t, y W + x, (c p + i) p + j] = latent[t, y p + i, x p + j, c]                     (1)
"""

import jax.numpy as jnp
from einops import rearrange

from videomar_jax.types import Latents, Positions, Tokens


def patchify(latents: Latents, patch_size: int = 1) -> Tokens:
    """[B, T, H*p, W*p, C] → [B, T, H*W, C*p*p], equation (1).

    Raises:
        ValueError: the latent size is not a multiple of the patch size.
    """
    rows, columns = latents.shape[2:4]
    p = patch_size
    if rows % p or columns % p:
        raise ValueError(f"Latents of {rows}x{columns} cannot be cut into patches of {p}x{p}.")
    return rearrange(latents, "b t (H i) (W j) c -> b t (H W) (c i j)", i=p, j=p)


def unpatchify(tokens: Tokens, grid: tuple[int, int], patch_size: int = 1) -> Latents:
    """The inverse of `patchify`; `grid` is (H, W), the token rows and columns of a frame."""
    height, p = grid[0], patch_size
    return rearrange(tokens, "b t (H W) (c i j) -> b t (H i) (W j) c", H=height, i=p, j=p)


def positions(frames: jnp.ndarray | int, grid: tuple[int, int]) -> Positions:
    """Integer (frame, row, column) of every token, [T, H*W, 3].

    Args:
        frames: a number of frames, or an array [T] of frame numbers.
        grid: (H, W).
    """
    frames = jnp.arange(frames) if isinstance(frames, int) else frames
    mesh = jnp.meshgrid(frames, jnp.arange(grid[0]), jnp.arange(grid[1]), indexing="ij")
    return jnp.stack(mesh, axis=-1).reshape(len(frames), -1, 3)
