"""The masked autoregressive transformer, its attention, its diffusion head: pure Flax NNX."""
