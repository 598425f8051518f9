"""Qwen2 as a text encoder."""
