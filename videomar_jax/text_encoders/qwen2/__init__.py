"""The Qwen2 text encoder."""
