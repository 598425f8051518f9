"""The networks that scores need, opened as the options of `evaluate` name them."""

from videomar_jax.evaluation.i3d import I3D
from videomar_jax.evaluation.i3d_weights import load_i3d
from videomar_jax.evaluation.lpips import LPIPS
from videomar_jax.evaluation.lpips_weights import load_lpips
from videomar_jax.evaluation.networks import Networks
from videomar_jax.experiment.comparison_options import NetworkOptions
from videomar_jax.io.paths import user_path

NO_FVD = (
    "FVD was not computed: `evaluate` takes --i3d=FILE, the weights of its network, which "
    "docs/evaluation.md says how to get."
)
NO_LPIPS = (
    "LPIPS was not computed: `evaluate` takes --lpips=DIR, the weights of its network, which "
    "docs/evaluation.md says how to get."
)


def open_i3d(options: NetworkOptions) -> I3D | None:
    """The network of FVD; None if its weights are not named."""
    if options.i3d is None:
        return None
    return I3D(params=load_i3d(user_path(options.i3d, "--i3d")))


def open_lpips(options: NetworkOptions) -> LPIPS | None:
    """The network of LPIPS; None if its weights are not named."""
    if options.lpips is None:
        return None
    return load_lpips(user_path(options.lpips, "--lpips"), options.lpips_network)


def open_networks(options: NetworkOptions) -> Networks:
    """Both.

    Raises:
        FileNotFoundError, UserError: weights are missing or are those of another network.
    """
    return Networks(i3d=open_i3d(options), lpips=open_lpips(options))


def missing_networks(networks: Networks) -> list[str]:
    """What is not computed for want of weights."""
    notes = []
    if networks.i3d is None:
        notes.append(NO_FVD)
    if networks.lpips is None:
        notes.append(NO_LPIPS)
    return notes
