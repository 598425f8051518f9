"""All settings of a config: their defaults as a ConfigDict, and their documentation.

Each setting is described once, by the text below its dataclass field. `configs/base.py` takes the
defaults from here, and docs/settings.md is made by

    python -m videomar_jax.experiment.settings > docs/settings.md
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from videomar_jax.checks import field_docs
from videomar_jax.experiment.config import SECTIONS
from videomar_jax.experiment.config_files import packaged_configs, sibling
from videomar_jax.experiment.data_sources import DATA_KINDS
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.text_encoders.base import TEXT_ENCODERS
from videomar_jax.tokenizers.base import TOKENIZERS

TOP_LEVEL = {
    "seed": "Of the initial parameters, the order of the data and all random draws.",
    "init_from": "Where the initial parameters come from: a run, one of its checkpoints/STEP, or a "
    "converted model, whose averaged parameters are taken; empty: random ones. The optimizer is "
    "new and the step is 0. Its tokenizer and text encoder are taken over where tokenizer.path "
    "and text.path name none.",
    "curriculum": "The stages, one row each: name, num_frames, height, width, batch_size, steps, "
    "learning_rate; or for batches of several shapes name, mix, steps, learning_rate, where mix "
    "has entries of num_frames, sizes (or height and width), batch_size and weight.",
}
"""Settings that belong to no section."""

PRESET_DOC = "The sizes to start from; the other keys of this section replace what they set."

KINDS: Mapping[str, Mapping[str, Any]] = {
    "data.kind": DATA_KINDS,
    "tokenizer.kind": TOKENIZERS,
    "text.kind": TEXT_ENCODERS,
    "model.preset": PRESETS,
}
"""Settings whose choices are the keys of a registry."""


# Defaults


def default_config() -> ConfigDict:
    """Every setting with its default; the curriculum is empty, which is no run yet.

    A setting that may be None is a placeholder of its type, so that flags can set it. All of the
    model's are None: they keep what the preset says.
    """
    config = ConfigDict()
    config.seed = 0
    config.init_from = ""
    config.curriculum = ()
    config.model = ConfigDict()
    config.model.preset = "videomar_1p4b"
    for name, annotation in _annotations(ModelConfig).items():
        config.model[name] = placeholder(_plain_type(annotation))
    for section, kind in SECTIONS.items():
        config[section] = ConfigDict()
        for field in dataclasses.fields(kind):
            value = field.default
            if value is None:
                value = placeholder(_plain_type(_annotations(kind)[field.name]))
            config[section][field.name] = value
    return config


def _annotations(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _plain_type(annotation: Any) -> type:
    """int, float, bool, str or tuple: the type of the values that an annotation allows."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _plain_type(arguments[0])
    if origin in (Union, types.UnionType):
        return _plain_type(next(member for member in arguments if member is not type(None)))
    if origin is Literal:
        return type(arguments[0])
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return tuple
    return annotation


# Documentation


def settings_page() -> str:
    """docs/settings.md: every setting with the value of configs/base.py and its meaning."""
    base = sibling(packaged_configs() / "settings", "base").get_config().to_dict()
    lines = [
        "# Settings",
        "",
        "Every setting of a config, with its default in `configs/base.py`. Change one on the "
        "command line with `--config.SECTION.KEY=VALUE`, or in a config file of your own.",
        "",
        "This page is generated: `python -m videomar_jax.experiment.settings > docs/settings.md`.",
        "",
        *_table("", {key: base[key] for key in TOP_LEVEL}, TOP_LEVEL),
    ]
    model_docs = {"preset": PRESET_DOC, **field_docs(ModelConfig)}
    lines += _section("model", ModelConfig, base["model"], model_docs)
    for section, kind in SECTIONS.items():
        lines += _section(section, kind, base[section], field_docs(kind))
        if section == "data":
            lines += _kinds_of_data()
    return "\n".join(lines) + "\n"


def _section(
    name: str, kind: type, values: Mapping[str, Any], docs: Mapping[str, str]
) -> Iterator[str]:
    keys = [field.name for field in dataclasses.fields(kind)]
    if "preset" in values:
        keys.insert(0, "preset")
    yield from ("", f"## {name}", "", _first_sentence(kind), "")
    yield from _table(name, {key: values[key] for key in keys}, docs, _annotations(kind))


def _first_sentence(kind: type) -> str:
    paragraph = (kind.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split())


def _table(
    section: str,
    values: Mapping[str, Any],
    docs: Mapping[str, str],
    annotations: Mapping[str, Any] = types.MappingProxyType({}),
) -> Iterator[str]:
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    for key, value in values.items():
        meaning = docs.get(key, "")
        choices = KINDS.get(f"{section}.{key}") or _choices(annotations.get(key))
        if choices:
            meaning += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
        cells = (f"`{key}`", f"`{_shown(value)}`", meaning.strip().replace("|", r"\|"))
        yield "| " + " | ".join(cells) + " |"


def _choices(annotation: Any) -> Sequence[Any]:
    """The values of a Literal, also of one that may be None."""
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    for member in typing.get_args(annotation):
        if typing.get_origin(member) is Literal:
            return typing.get_args(member)
    return ()


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return '""' if value == "" else str(value)


def _kinds_of_data() -> Iterator[str]:
    yield from ("", "Kinds of data:", "")
    for name, kind in DATA_KINDS.items():
        yield f"- `{name}`: {kind.facts.description}"


if __name__ == "__main__":
    print(settings_page(), end="")
