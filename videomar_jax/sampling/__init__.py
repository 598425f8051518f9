"""Schedules, the decode loops, and what stands around them to turn an image into a video."""
