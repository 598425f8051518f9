"""Every setting at its default: the paper's model. The other configs are small changes of this one.

docs/settings.md lists all settings with their meaning. A value of None means what the model preset,
the data or the paper say. Override settings on the command line, for instance
`--config.optimizer.name=muon "--config.curriculum[0].steps=200"`; a misspelt name is answered with
the nearest one.
"""

from ml_collections import ConfigDict

from videomar_jax.experiment.settings import default_config


def get_config(variant: str = "") -> ConfigDict:
    """The paper's model on the embedded shapes; no run by itself (see quickstart.py, stage1.py)."""
    if variant:
        raise ValueError(f"base.py has no variant {variant!r}.")
    config = default_config()
    config.optimizer.warmup_steps = 100
    return config
