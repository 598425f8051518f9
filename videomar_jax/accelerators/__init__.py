"""Programs compiled for accelerators that need not be here, and what they cost."""
