"""Diffusion processes: mathematics only."""
