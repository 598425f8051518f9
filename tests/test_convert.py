"""From published files of all three families to a video, through the public commands, and back to published names."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from videomar_jax.conversion import export_official, import_official
from videomar_jax.experiment import Experiment
from videomar_jax.interop.cosmos_rules import cosmos_rules, parameter_shapes
from videomar_jax.interop.rules import expected, exported
from videomar_jax.interop.videomar import write_checkpoint
from videomar_jax.models.config import ModelConfig
from videomar_jax.parts import local_folder, open_text_encoder, open_tokenizer
from videomar_jax.pretrained import load_params, load_pretrained
from videomar_jax.runs import run
from videomar_jax.tokenizers.cosmos import CosmosTokenizer
from videomar_jax.tokenizers.cosmos_config import CosmosConfig
from videomar_jax.training.state import init_params

ROOT = Path(__file__).parents[1]
COSMOS = CosmosConfig(
    temporal_stride=4, spatial_stride=8, patch=2, width=4, encoder_mults=(1, 2, 2), decoder_mults=(1, 2, 2), blocks=1,
    z_channels=4, latent_channels=4,
)  # fmt: skip


def random_params(config: ModelConfig, seed: int = 0):
    """Parameters that are nowhere zero, so that a swapped or forgotten one shows."""
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [np.asarray(x) + 0.05 * rng.normal(size=x.shape).astype("f4") for x in leaves])


def write_cosmos(path: Path) -> Path:
    """A Cosmos file under official names, with its sizes in the header."""
    tokenizer = CosmosTokenizer.random(COSMOS)
    slots = expected(cosmos_rules(COSMOS), parameter_shapes(COSMOS))
    leaves = {"/".join(str(k.key) for k in path): leaf for path, leaf in jax.tree.leaves_with_path(tokenizer.params)}
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


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Official:
    folder = tmp_path_factory.mktemp("official")
    text_width = json.loads((ROOT / "tests/golden/qwen2/config.json").read_text())["hidden_size"]
    config = ModelConfig(latent_channels=4, width=32, depth=2, num_heads=2, text_tokens=10, text_width=text_width,
                         head_width=32, head_depth=2)  # fmt: skip
    params = random_params(config)
    write_checkpoint(params, config, folder / "videomar.pth", container="ema")
    cosmos, qwen2 = write_cosmos(folder / "tokenizer.safetensors"), write_qwen2(folder / "qwen2")
    return Official(folder / "videomar.pth", f"cosmos:{cosmos}", f"qwen2:{qwen2}", config, params)


def convert(official: Official, output: Path, **changes) -> Path:
    options = {"tokenizer": official.tokenizer, "text_encoder": official.text_encoder, "shape": (5, 16, 24),
               "text_options": {"tokens": 10}} | changes  # fmt: skip
    import_official(official.weights, output, **options)
    return output


def command(module: str, *flags: str) -> subprocess.CompletedProcess:
    arguments = [sys.executable, "-m", f"videomar_jax.{module}", *flags]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_published_files_of_every_family_make_a_video_through_the_commands(official, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8))
    image.save(tmp_path / "first.png")
    made = command(
        "convert", f"--checkpoint={official.weights}", f"--tokenizer={official.tokenizer}",
        f"--text_encoder={official.text_encoder}", "--text_tokens=10", "--num_frames=5", "--height=16", "--width=24",
        f"--output={tmp_path / 'model'}",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "width 32, depth 2, 2 heads of 16" in made.stderr and "wrote" in made.stderr
    made = command(
        "sample", f"--checkpoint={tmp_path / 'model'}", f"--image={tmp_path / 'first.png'}", "--prompt=red circle",
        "--steps=2", "--head_steps=ddim5", f"--output={tmp_path / 'out'}",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"first.mp4", "first.gif", "first.png"}


def test_converted_parameters_and_parts_are_the_published_ones(official, tmp_path):
    pretrained = load_pretrained(convert(official, tmp_path / "model"))
    _, params, step = load_params(tmp_path / "model")
    assert step == 0 and pretrained.card.config == official.config
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(official.params), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=jax.tree_util.keystr(path))
    pixels = jax.random.uniform(jax.random.key(1), (1, 5, 16, 24, 3), minval=-1, maxval=1)
    np.testing.assert_array_equal(
        pretrained.card.tokenizer.encode(pixels), open_tokenizer(official.tokenizer).encode(pixels)
    )
    ours = pretrained.card.text_encoder.encode(["red circle"])
    theirs = open_text_encoder(official.text_encoder, tokens=10).encode(["red circle"])
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])


def test_export_gives_the_published_tensors_back_bit_by_bit(official, tmp_path):
    write_checkpoint(official.params, official.config, tmp_path / "before.safetensors")
    export_official(convert(official, tmp_path / "model"), tmp_path / "after.safetensors")
    before, after = load_file(tmp_path / "before.safetensors"), load_file(tmp_path / "after.safetensors")
    assert set(before) == set(after)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_training_begins_with_converted_parameters(official, tmp_path):
    from ml_collections import ConfigDict

    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "configs" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config: ConfigDict = module.get_config("tiny")
    folder = convert(official, tmp_path / "model", tokenizer=official.tokenizer)
    place = official.tokenizer.removeprefix("cosmos:")
    config.init_from = str(folder)
    config.model.update(latent_channels=4, text_tokens=10, text_width=official.config.text_width, head="ddpm")
    config.tokenizer.update(kind="cosmos", path=place)
    config.text.update(kind="qwen2", path=official.text_encoder.removeprefix("qwen2:"), tokens=10)
    config.sampling.head_steps = "ddim2"
    config.optimizer.update(name="adamw", warmup_steps=0)
    row = dict(config.curriculum[0], num_frames=5, steps=1, learning_rate=1e-12)
    config.curriculum = (row,)
    run(Experiment.from_config(config), tmp_path / "run", config.to_dict())
    _, params, step = load_params(tmp_path / "run", "params")
    assert step == 1
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(official.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9, err_msg=jax.tree_util.keystr(path))


def test_nothing_is_left_behind_by_a_conversion_that_fails(official, tmp_path):
    with pytest.raises(ValueError, match="text of 10 tokens"):
        convert(official, tmp_path / "model", text_options={"tokens": 11})
    with pytest.raises(ValueError, match="does not hold VideoMAR's weights"):
        import_official(official.tokenizer.removeprefix("cosmos:"), tmp_path / "model", tokenizer=official.tokenizer,
                        text_encoder=official.text_encoder)  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        convert(official, tmp_path / "model")
    assert (tmp_path / "model" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    "spec, message", [("pca", "pca:PLACE or cosmos:PLACE"), ("vae:here", "cosmos:PLACE"), ("cosmos:", "cosmos:PLACE")]
)
def test_a_tokenizer_that_is_not_understood(spec, message):
    with pytest.raises(ValueError, match=message):
        open_tokenizer(spec)


def test_a_repo_that_cannot_be_fetched_says_how_to_go_on_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"hf download nobody/nothing --local-dir DIR"):
        local_folder("nobody/nothing", ["*"])
    with pytest.raises(FileNotFoundError, match=r"no file or folder \./nowhere"):
        local_folder("./nowhere/at/all", ["*"])
