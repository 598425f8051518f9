"""Old names of settings, and what they are called now.

Files of earlier versions (`config.json`, `model.json`, generation records, manifests, `plan.json`)
and old flags and config keys pass through this one table. An entry stays for one version.
"""

from collections.abc import Mapping, Sequence
from typing import Any

RENAMED: dict[str, dict[str, str]] = {
    "loss": {"frames": "supervise", "layout": "truncate"},
    "sampling": {
        "clip": "latent_clip",
        "positions": "first_frame_position",
        "position_scaling": "spatial_rope_scaling",
        "frame_scaling": "temporal_rope_scaling",
    },
}
"""Section → old key → new key."""

CHANGED: dict[str, dict[str, dict[Any, Any]]] = {
    "loss": {
        "supervise": {"one": "one_frame", "all": "all_frames"},
        "truncate": {"full": False, "truncated": True},
        "normaliser": {"mask": "all_masked", "loss_mask": "supervised"},
    },
}
"""Section → new key → old value → new value."""


def current(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one section under today's names; what is current already stays as it is."""
    renamed = RENAMED.get(section, {})
    changed = CHANGED.get(section, {})
    result = {}
    for key, value in values.items():
        key = renamed.get(key, key)
        if isinstance(value, str):
            value = changed.get(key, {}).get(value, value)
        result[key] = value
    return result


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A whole config (section → values) under today's names."""
    return {
        key: current(key, value) if isinstance(value, Mapping) else value
        for key, value in config.items()
    }


def current_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Command-line arguments under today's names, and a line for each that was renamed.

    `--config.SECTION.KEY=VALUE` follows the table; `--KEY=VALUE` follows its section "sampling".
    """
    result = []
    notes = []
    for argument in arguments:
        now = _current_flag(argument)
        if now != argument:
            notes.append(
                f"{argument} is now written {now}; the old form will go in the next version."
            )
        result.append(now)
    return result, notes


def _current_flag(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    prefix, _, key = name.rpartition(".")
    if not prefix:
        # A flag of `sample`. Only old names are looked at: other commands have flags too.
        section = "sampling" if key in RENAMED["sampling"] else ""
    else:
        section = prefix.removeprefix("config.")
    if section not in RENAMED:
        return argument
    ((key, value),) = current(section, {key: value}).items()
    return f"--{prefix}.{key}{equals}{value}" if prefix else f"--{key}{equals}{value}"
