"""From published files of all three families to a video, through the public commands, and back to
published names."""

import dataclasses
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.helpers.paths import ROOT
from tests.helpers.tiny_run import start, tiny
from tests.helpers.weight_files import write
from videomar_jax.checkpoints.streamed import stored_types
from videomar_jax.checks import UserError
from videomar_jax.commands.field_flags import FieldFlags
from videomar_jax.inference.metadata import model_digests
from videomar_jax.interop import videomar
from videomar_jax.interop.formats.files import open_tensors
from videomar_jax.interop.formats.rules import expected, exported, nested
from videomar_jax.interop.videomar import write_checkpoint
from videomar_jax.interop.videomar_sizes import HEADER_FIELDS
from videomar_jax.io.log import log
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.pretrained.bundle import (
    load_bundle,
    load_config,
    load_params,
    load_pretrained,
    save_settings,
)
from videomar_jax.pretrained.convert import (
    _reserved,
    export_official,
    flags_that_restore,
    import_official,
)
from videomar_jax.pretrained.open import open_text_encoder, open_tokenizer
from videomar_jax.pretrained.options import ComponentOptions, ExportOptions, ImportOptions
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.tokenizers.cosmos.config import CosmosConfig
from videomar_jax.tokenizers.cosmos.rules import cosmos_rules, parameter_shapes
from videomar_jax.tokenizers.cosmos.tokenizer import CosmosTokenizer

COSMOS = CosmosConfig(
    temporal_stride=4,
    spatial_stride=8,
    patch=2,
    width=4,
    encoder_mults=(1, 2, 2),
    decoder_mults=(1, 2, 2),
    blocks=1,
    z_channels=4,
    latent_channels=4,
)


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Parameters that are nowhere zero and everywhere different, so that a swapped or forgotten one
    shows."""
    rng = np.random.default_rng(seed)
    shapes = videomar.parameter_shapes(config)
    return nested(
        {
            path: path.endswith("/scale") + 0.15 * rng.standard_normal(shape, np.float32)
            for path, shape in shapes.items()
        }
    )


def write_cosmos(path: Path) -> Path:
    """A Cosmos file under official names, with its sizes in the header."""
    tokenizer = CosmosTokenizer.random(COSMOS)
    slots = expected(cosmos_rules(COSMOS), parameter_shapes(COSMOS))
    leaves = {
        "/".join(str(k.key) for k in path): leaf
        for path, leaf in jax.tree.leaves_with_path(tokenizer.params)
    }
    specs, make = exported(slots, leaves)
    header = {"cosmos_config": json.dumps(dataclasses.asdict(COSMOS))}
    save_file({key: np.ascontiguousarray(make(key)) for key in specs}, path, metadata=header)
    return path


def write_qwen2(folder: Path) -> Path:
    """A Qwen2 folder as on Hugging Face: the small random model of the recordings."""
    golden = ROOT / "tests" / "golden"
    spec = importlib.util.spec_from_file_location("record_qwen2", golden / "record_qwen2.py")
    recorder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recorder)
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(golden / "qwen2" / name, folder / name)
    save_file(recorder.random_weights(), folder / "model.safetensors")
    return folder


@dataclasses.dataclass
class Official:
    weights: Path
    tokenizer: str
    text_encoder: str
    config: ModelConfig
    params: dict

    @property
    def plain(self) -> dict:
        """For conversions of which only the parameters matter: no language model."""
        return {"text_encoder": f"hashed:10x{self.config.text_width}"}


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Official:
    folder = tmp_path_factory.mktemp("official")
    text_width = json.loads((ROOT / "tests/golden/qwen2/config.json").read_text())["hidden_size"]
    config = ModelConfig(
        latent_channels=4,
        width=32,
        depth=2,
        num_heads=2,
        text_tokens=10,
        text_width=text_width,
        head_width=32,
        head_depth=2,
    )
    params = random_params(config)
    write_checkpoint(params, config, folder / "videomar.pth", container="ema")
    cosmos, qwen2 = write_cosmos(folder / "tokenizer.safetensors"), write_qwen2(folder / "qwen2")
    return Official(folder / "videomar.pth", f"cosmos:{cosmos}", f"qwen2:{qwen2}", config, params)


def convert(official: Official, output: Path, **changes) -> Path:
    """`changes` are fields of the options, `file` for another file of weights, or `settings`."""
    names = {field.name for field in dataclasses.fields(ComponentOptions)}
    values = {
        "file": official.weights,
        "tokenizer": official.tokenizer,
        "text_encoder": official.text_encoder,
        "text_tokens": 10,
        "num_frames": 5,
        "height": 16,
        "width": 24,
    } | changes
    file, settings = values.pop("file"), values.pop("settings", None)
    components = ComponentOptions(**{key: values[key] for key in names & set(values)})
    options = ImportOptions(**{key: values[key] for key in set(values) - names})
    import_official(file, output, components, options, settings)
    return output


@pytest.fixture(scope="module")
def converted(official, tmp_path_factory) -> Path:
    """The converted model; look, do not touch."""
    return convert(official, tmp_path_factory.mktemp("converted") / "model")


def command(module: str, *flags: str, home: Path | None = None) -> subprocess.CompletedProcess:
    """A command started in `home`, which is the home folder too; None: in the repository."""
    arguments = [sys.executable, "-m", f"videomar_jax.{module}", *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | ({"HOME": str(home)} if home else {})
    return subprocess.run(
        arguments, capture_output=True, text=True, cwd=home or ROOT, timeout=300, env=env
    )


def logged(act) -> list[str]:
    """The warnings while `act` runs."""
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    log.addHandler(handler)
    try:
        act()
    finally:
        log.removeHandler(handler)
    return lines


def assert_same(ours, theirs) -> None:
    """The same tree, value by value; types may differ."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(
            np.asarray(a, np.float32), np.asarray(b, np.float32), jax.tree_util.keystr(path)
        )


def test_published_files_of_every_family_make_a_video_through_the_commands(official, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8))
    image.save(tmp_path / "first.png")
    made = command(
        "convert",
        f"--checkpoint={official.weights}",
        f"--tokenizer={official.tokenizer}",
        f"--text_encoder={official.text_encoder}",
        "--text_tokens=10",
        "--num_frames=5",
        "--height=16",
        "--width=24",
        "--output=model",
        home=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    assert "width 32, depth 2, 2 heads of 16" in made.stderr and "wrote" in made.stderr
    made = command(
        "sample",
        "--checkpoint=~/model",
        "--image=first.png",
        "--prompt=red circle",
        "--steps=2",
        "--head_steps=ddim5",
        "--output=~/out",
        home=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "first.mp4",
        "first.gif",
        "first.png",
        "first.json",
    }


def test_converted_parameters_and_parts_are_the_published_ones(official, converted):
    pretrained = load_pretrained(converted)
    _, params, step = load_params(converted)
    assert step == 0 and pretrained.bundle.config == official.config
    assert_same(params, official.params)
    tokenizer, theirs = pretrained.bundle.tokenizer, open_tokenizer(official.tokenizer)
    assert (tokenizer.config, tokenizer.scale, tokenizer.dtype) == (
        theirs.config,
        theirs.scale,
        theirs.dtype,
    )
    assert_same(tokenizer.params, theirs.params)
    ours = pretrained.bundle.text_encoder.encode(["red circle"])
    theirs = open_text_encoder(official.text_encoder, tokens=10).encode(["red circle"])
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])


def test_export_gives_the_published_tensors_back_bit_by_bit(official, converted, tmp_path):
    write_checkpoint(official.params, official.config, tmp_path / "before.safetensors")
    export_official(converted, tmp_path / "after.safetensors", ExportOptions())
    before, after = (
        load_file(tmp_path / "before.safetensors"),
        load_file(tmp_path / "after.safetensors"),
    )
    assert set(before) == set(after)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_what_is_in_the_way_of_an_export_and_the_flag_that_helps(official, tmp_path):
    """The readout alone can be left out; where more is in the way, the flag would be no help."""
    readout = dataclasses.replace(official.config, regression=True)
    with pytest.raises(ValueError, match=r"cannot be exported; .*--drop_regression of the command"):
        write_checkpoint(random_params(readout), readout, tmp_path / "x.safetensors")
    both = dataclasses.replace(readout, pooled_text=True)
    with pytest.raises(
        ValueError, match=r"no pooled_embed/kernel, regression/.*cannot be exported\.$"
    ):
        write_checkpoint(random_params(both), both, tmp_path / "x.safetensors")


def test_the_command_exports_as_its_flags_say(converted, tmp_path):
    """Into the dictionary of published files; the flags of an export are refused with an import."""
    done = command(
        "convert",
        f"--checkpoint={converted}",
        f"--export={tmp_path / 'x.pth'}",
        "--container=ema",
        "--drop_regression",
    )
    assert done.returncode == 0, done.stderr
    with open_tensors(tmp_path / "x.pth") as file:
        assert file.specs and all(name.startswith("model_ema.") for name in file)
    done = command(
        "convert", "--checkpoint=x.pth", f"--output={tmp_path / 'model'}", "--drop_regression"
    )
    assert done.returncode == 2 and "--drop_regression belongs to --export=FILE" in done.stderr


def test_the_digest_of_a_model_stays_where_its_text_encoder_moves_to(official, converted, tmp_path):
    loaded = load_pretrained(converted)

    def digests(encoder):
        return model_digests(loaded.model, dataclasses.replace(loaded.bundle, text_encoder=encoder))

    moved = shutil.copytree(official.text_encoder.removeprefix("qwen2:"), tmp_path / "moved")
    assert digests(open_text_encoder(f"qwen2:{moved}", tokens=10)) == digests(
        loaded.bundle.text_encoder
    )
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    other = digests(open_text_encoder(f"qwen2:{moved}", tokens=10))
    assert other["text encoder"] != digests(loaded.bundle.text_encoder)["text encoder"]


# ---- the type of the parameters


@pytest.fixture(scope="module")
def half(official, tmp_path_factory) -> tuple[Path, Path, dict]:
    """(official file in bfloat16, its conversion for bfloat16 products, its parameters); look, do
    not touch."""
    folder = tmp_path_factory.mktemp("half")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), official.params)
    write_checkpoint(params, official.config, folder / "half.safetensors")
    model = convert(
        official,
        folder / "model",
        file=folder / "half.safetensors",
        **official.plain,
        dtype="bfloat16",
    )
    return folder / "half.safetensors", model, params


def types(tree) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path): leaf.dtype.name
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def test_a_file_in_bfloat16_stays_so_on_disk_and_comes_back_bit_by_bit(half, tmp_path):
    file, model, params = half
    assert set(stored_types(model / "checkpoints", 0, "ema").values()) == {np.dtype(jnp.bfloat16)}
    export_official(model, tmp_path / "back.safetensors", ExportOptions())
    with open_tensors(file) as before, open_tensors(tmp_path / "back.safetensors") as after:
        assert {name: after[name].tobytes() for name in after} == {
            name: before[name].tobytes() for name in before
        }
    stored, master = load_params(model, dtype=None)[1], load_params(model)[1]
    assert set(types(stored).values()) == {"bfloat16"} and set(types(master).values()) == {
        "float32"
    }
    assert_same(stored, params)
    assert_same(master, params)


def test_a_model_in_bfloat16_keeps_its_kernels_and_computes_as_with_float32_parameters(half):
    _, path, params = half
    model = load_pretrained(path).model
    dtypes = types(nnx.to_pure_dict(nnx.state(model)))
    assert {
        name.endswith("['kernel']") for name, dtype in dtypes.items() if dtype == "bfloat16"
    } == {True}
    assert {
        name.endswith("['kernel']") for name, dtype in dtypes.items() if dtype == "float32"
    } == {False}
    exact = nnx.merge(
        nnx.graphdef(model), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    )
    tokens, c = jax.random.normal(jax.random.key(0), (1, 2, 4, 4)), model.config
    text = jax.random.normal(jax.random.key(1), (1, c.text_tokens, c.text_width))

    @jax.jit
    def outputs(model: VideoMAR):
        context = model.context(text, jnp.ones(text.shape[:2], bool), drop=None)
        z = model(tokens, jnp.ones(tokens.shape[:3], bool).at[:, :, 1].set(False), context, (2, 2))
        return z, model.head(tokens, jnp.full(tokens.shape[:3], 7), z)

    for ours, theirs in zip(outputs(model), outputs(exact), strict=True):
        assert ours.std() > 0.01
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("stored", "asked", "written"),
    [
        ("float64", None, "float32"),
        ("float16", None, "float16"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
def test_other_types(official, tmp_path, stored, asked, written):
    params = jax.tree.map(lambda leaf: leaf.astype(stored), official.params)
    file = tmp_path / "x.safetensors"
    write_checkpoint(params, official.config, file)
    model = convert(official, tmp_path / "model", file=file, **official.plain, param_dtype=asked)
    loaded = load_params(model, dtype=None)[1]
    assert set(types(loaded).values()) == {written}
    assert_same(loaded, jax.tree.map(lambda leaf: leaf.astype(written), params))
    running = types(nnx.to_pure_dict(nnx.state(load_pretrained(model).model)))
    assert set(running.values()) == {"float32"}, "it computes in float32"


def test_training_begins_with_converted_parameters(official, half, tmp_path):
    """At a rate of almost nothing; whatever the type of the conversion, training has float32
    parameters."""
    _, model, params = half
    config = tiny(
        init_from=str(model),
        optimizer=dict(name="adamw", warmup_steps=0),
        sampling=dict(head_steps="ddim2"),
        model=dict(
            latent_channels=4, text_tokens=10, text_width=official.config.text_width, head="ddpm"
        ),
        tokenizer=dict(kind="cosmos", path=official.tokenizer.removeprefix("cosmos:")),
        text=dict(kind="qwen2", path=official.text_encoder.removeprefix("qwen2:"), tokens=10),
    )
    config.curriculum = (dict(config.curriculum[0], num_frames=5, steps=1, learning_rate=1e-12),)
    start(config, tmp_path / "run")
    _, trained, step = load_params(tmp_path / "run", "params", dtype=None)
    assert step == 1 and set(types(trained).values()) == {"float32"}
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(trained), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(
            ours, theirs.astype("f4"), atol=1e-9, err_msg=jax.tree_util.keystr(path)
        )


def test_nothing_is_left_behind_by_a_conversion_that_fails(official, tmp_path):
    with pytest.raises(ValueError, match="text of 10 tokens"):
        convert(official, tmp_path / "model", text_tokens=11)
    with pytest.raises(ValueError, match="does not hold VideoMAR's weights"):
        convert(official, tmp_path / "model", file=official.tokenizer.removeprefix("cosmos:"))
    cut = tmp_path.parent / "cut.pth"
    data = bytearray(official.weights.read_bytes())
    place = data.index(official.params["null_context"].tobytes()[:64])
    data[place] ^= 1
    cut.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        convert(official, tmp_path / "model", file=cut, **official.plain)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        convert(official, tmp_path / "model")
    assert (tmp_path / "model" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    "spec, message",
    [
        ("pca", "pca:PLACE or cosmos:PLACE"),
        ("vae:here", "cosmos:PLACE"),
        ("cosmos:", "cosmos:PLACE"),
    ],
)
def test_a_tokenizer_that_is_not_understood(spec, message):
    with pytest.raises(ValueError, match=message):
        open_tokenizer(spec)


# One process at a time, and what killed ones leave


KILLED = """
import os, sys
from pathlib import Path
from videomar_jax.pretrained.convert import _reserved
with _reserved(Path(sys.argv[1])) as part:
    (part / "checkpoints").mkdir(parents=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("name", ["model", "x" * 255])
def test_the_next_conversion_clears_what_a_killed_one_left(official, tmp_path, name):
    output = tmp_path / name
    done = subprocess.run([sys.executable, "-c", KILLED, str(output)], cwd=ROOT, check=False)
    assert done.returncode == -9 and len(list(tmp_path.iterdir())) == 2, "a folder and a lock"
    convert(official, output)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_earlier_versions_left_is_cleared_and_nothing_else(official, tmp_path):
    old, young = tmp_path / ".model.abcd_123", tmp_path / ".model.young123"
    mine, other = tmp_path / ".model.settings", tmp_path / ".other.abcd_123"
    for folder in (old, young, mine, other):
        (folder / "model").mkdir(parents=True)
    (mine / "notes.txt").touch()
    for folder in (old, mine, other):
        os.utime(folder, (1, 1))
    convert(official, tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {
        "model",
        young.name,
        mine.name,
        other.name,
    }


def test_a_second_conversion_to_one_place_is_refused(official, converted, tmp_path):
    with _reserved(tmp_path / "model") as part:
        part.mkdir()
        with pytest.raises(UserError, match=rf"model is in use by process {os.getpid()} on "):
            convert(official, tmp_path / "model")
        assert part.is_dir()
        convert(official, tmp_path / "elsewhere")
    with _reserved(tmp_path / "x.pth"):
        with pytest.raises(UserError, match=r"x\.pth is in use by process"):
            export_official(converted, tmp_path / "x.pth", ExportOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_an_export_clears_what_a_killed_one_left(converted, tmp_path):
    (tmp_path / ".x.pth.123.part").touch()
    (tmp_path / ".y.pth.123.part").touch()
    export_official(converted, tmp_path / "x.pth", ExportOptions())
    assert {path.name for path in tmp_path.iterdir()} == {"x.pth", ".y.pth.123.part"}


def test_a_folder_where_checkpoints_would_be_lost_is_refused(official, tmp_path):
    with pytest.raises(UserError, match="rename the folder, or choose another"):
        convert(official, tmp_path / "a[1]")
    assert not list(tmp_path.iterdir())


# ---- what a file of weights does not carry


def read_flags(words: list[str]) -> tuple[dict, dict]:
    """(fields of ImportOptions, model settings) that `convert` reads from these flags."""
    values = flags.FlagValues()
    groups = [
        FieldFlags(ImportOptions, flag_values=values),
        FieldFlags(ModelConfig, HEADER_FIELDS, flag_values=values),
    ]
    values(["convert", *words])
    return groups[0].given(), groups[1].given()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_an_export_prints_the_flags_that_restore_what_it_cannot_carry(official, tmp_path, suffix):
    odd = dataclasses.replace(
        official.config,
        patch_size=2,
        rope_split=(4, 8, 4),
        rope_base=60.0,
        rope_frame_origin="restart",
        text_mask=False,
        null_text_mask="ones",
        dtype="bfloat16",
    )
    write_checkpoint(random_params(odd), odd, tmp_path / "odd.safetensors")
    sizes = {"num_frames": 9, "height": 16, "width": 32, "fps": 8.0, "dtype": "bfloat16"}
    first = convert(
        official, tmp_path / "first", file=tmp_path / "odd.safetensors", **sizes, **official.plain
    )
    assert load_config(first) == odd
    sampling = SamplingConfig(steps=7, guidance_interval=(0.25, 1.0), clip_first=True)
    bundle = dataclasses.replace(load_bundle(first), sampling=sampling)
    save_settings(bundle, first)

    file = tmp_path / f"export.{suffix}"
    lines = logged(lambda: export_official(first, file, ExportOptions()))
    importing, of_sample = flags_that_restore(bundle, has_header=suffix == "safetensors")
    assert any(" ".join(importing) in line and "convert" in line for line in lines)
    assert of_sample == ["--steps=7", "--guidance_interval=0.25,1.0", "--clip_first"]
    assert any(" ".join(of_sample) in line for line in lines)

    given, settings = read_flags(importing)
    assert (settings == {}) == (suffix == "safetensors"), settings
    again = convert(
        official, tmp_path / "again", file=file, settings=settings, **given, **official.plain
    )
    restored = dataclasses.replace(load_bundle(again), sampling=sampling)
    for field in ("config", "num_frames", "height", "width", "fps"):
        assert getattr(restored, field) == getattr(bundle, field), field
    assert_same(load_params(again)[1], load_params(first)[1])


def test_a_model_with_the_published_settings_needs_no_flags(converted):
    published = dataclasses.replace(load_bundle(converted), num_frames=49, height=480, width=768)
    assert flags_that_restore(published, has_header=False) == ([], [])


def without_last_block(file: Path, prefix: str, path: Path) -> Path:
    """The same bare file without the last of the blocks `prefix.N.`."""
    with open_tensors(file) as tensors:
        last = max(int(n[len(prefix) + 1 :].split(".")[0]) for n in tensors if prefix in n)
        kept = {n: tensors[n] for n in tensors if not n.startswith(f"{prefix}.{last}.")}
        metadata = dict(tensors.metadata)
    return write(path, kept, metadata=metadata)


@pytest.mark.parametrize("prefix", ["decoder_blocks", "diffloss.net.res_blocks"])
def test_a_file_without_its_last_block(official, tmp_path, prefix):
    tiny_config = dataclasses.replace(
        PRESETS["tiny"], text_tokens=10, text_width=official.config.text_width
    )
    whole = tmp_path / "whole.safetensors"
    write_checkpoint(random_params(tiny_config), tiny_config, whole)
    assert not [
        line
        for line in logged(lambda: convert(official, tmp_path / "a", file=whole))
        if "incomplete" in line
    ]
    # An export of ours says in its header how many there were.
    cut = without_last_block(whole, prefix, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"not all of the model that was exported .*depth 1, not 2"):
        convert(official, tmp_path / "b", file=cut)
    # A published file says nothing: the count is unusual.
    bare = without_last_block(whole, prefix, tmp_path / "cut.pth")
    lines = logged(lambda: convert(official, tmp_path / "c", file=bare))
    assert any("found; tiny 2 and 2. If your model has more" in line for line in lines)
    with pytest.raises(UserError, match=r"not hold a model of the size tiny .*depth 1, not 2"):
        convert(official, tmp_path / "d", file=bare, preset="tiny")
    assert not (tmp_path / "d").exists()


def test_two_sets_of_weights_with_different_numbers_of_blocks(official, tmp_path):
    slots = expected(videomar.RULES, videomar.parameter_shapes(official.config))
    tensors = {}
    for container in ("model", "model_ema"):
        for name, slot in slots.items():
            tensors[f"{container}.{name}"] = np.ones(slot.shape, np.float32)
    cut = {n: x for n, x in tensors.items() if not n.startswith("model_ema.decoder_blocks.1.")}
    words = (
        "of decoder_blocks there are 2 in 'model', 1 in 'model_ema'|1 in 'model_ema', 2 in 'model'"
    )
    with pytest.raises(UserError, match=words):
        convert(official, tmp_path / "m", file=write(tmp_path / "cut.pth", cut))


def test_a_preset_fills_in_what_the_file_does_not_say(official, tmp_path):
    """Its rotary split, for example; whatever is asked for or in the header comes first."""
    preset = dataclasses.replace(
        PRESETS["quickstart"], pooled_text=False, regression=False, latent_channels=4
    )
    file = tmp_path / "q.pth"
    write_checkpoint(random_params(preset), preset, file)
    with pytest.raises(UserError, match=r"size quickstart \(latent_channels 4, not 16\)"):
        convert(official, tmp_path / "a", file=file, preset="quickstart")
    with pytest.raises(UserError, match="Did you mean 'quickstart'"):
        ImportOptions(preset="quickstrat")
