"""Video to continuous latents and back."""
