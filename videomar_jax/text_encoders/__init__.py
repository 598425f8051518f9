"""Captions to text features."""
