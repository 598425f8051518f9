"""Models on disk: opening, saving and converting them."""
