"""Clips: where they come from, how they are cut, how they are batched."""
