"""Saving and restoring training state; knows no model."""
