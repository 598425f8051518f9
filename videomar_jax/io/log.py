"""The one logger of the package, and how the commands show it.

Modules write to it with `from videomar_jax.io.log import log`. Used as a library, the package says
nothing unless the program that uses it shows the logger "videomar_jax".
"""

import logging

log = logging.getLogger("videomar_jax")

_NOISY = ("jax", "orbax", "absl", "grain", "tensorboardX")


_warned: set[str] = set()


def warn_once(text: str, *values: object) -> None:
    """Logs a warning, unless this process did so before.

    For facts that are met again wherever the same files are opened again, as a folder of clips is
    for training and for measuring.
    """
    message = text % values if values else text
    if message not in _warned:
        _warned.add(message)
        log.warning("%s", message)


def show_log() -> None:
    """Shows the package's messages on stderr, each with its time; of libraries only warnings."""
    # Late: absl changes the logging of the whole program, which is for the commands to decide.
    from absl import logging as absl_logging

    absl_logging.use_absl_handler()
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    absl_logging.set_verbosity(absl_logging.INFO)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
