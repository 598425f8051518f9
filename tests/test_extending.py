"""The examples of docs/extending.md: their edits are applied to a copy of the package and run."""

import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTION = re.compile(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)

CHECKS = {
    "A tokenizer": """
        import jax, jax.numpy as jnp, numpy as np
        from videomar_jax.experiment.sections import TokenizerConfig
        from videomar_jax.pretrained.open import open_tokenizer
        from videomar_jax.tokenizers import Tokenizer, fingerprint, load_tokenizer

        TokenizerConfig(kind="blocks", path="4")
        tokenizer = open_tokenizer("blocks:4")
        assert isinstance(tokenizer, Tokenizer)
        pixels = jnp.asarray(np.random.default_rng(0).random((1, 2, 8, 12, 3)), jnp.float32)
        latents = jax.jit(lambda tokenizer, x: tokenizer.encode(x))(tokenizer, pixels)
        mean = pixels[0, 1, :4, 8:].mean((0, 1))
        np.testing.assert_allclose(latents[0, 1, 0, 2], mean, atol=1e-6)
        np.testing.assert_allclose(tokenizer.encode(tokenizer.decode(latents)), latents, atol=1e-6)
        tokenizer.save("saved")
        assert fingerprint(load_tokenizer("saved")) == fingerprint(tokenizer)
    """,
    "A diffusion process": """
        import jax, jax.numpy as jnp, numpy as np
        from tests.helpers.tiny_model import GRID, tiny_model, tiny_text
        from videomar_jax import generate
        from videomar_jax.diffusion import PROCESSES, Process
        from videomar_jax.sampling.config import SamplingConfig
        from videomar_jax.training.config import LossConfig
        from videomar_jax.training.draws import Batch, draw
        from videomar_jax.training.loss import next_frame_loss

        process = PROCESSES["circle"]()
        assert isinstance(process, Process)
        x_0, eps = np.float32([[2.0, -1.0]]), np.float32([[0.3, 0.8]])
        plan, x = process.timesteps("5"), process.init_noise(eps, 1.0)
        for i in range(5):  # with the true velocity every step stays on the path
            now = jax.tree.map(lambda value: value[i], plan)
            np.testing.assert_allclose(x, process.add_noise(x_0, now.time[None], eps), atol=1e-5)
            angle = now.time * jnp.pi / 2
            velocity = jnp.cos(angle) * eps - jnp.sin(angle) * x_0
            x = process.step(x, velocity, None, now, None, 1.0, 1.0)
        np.testing.assert_allclose(x, x_0, atol=1e-5)

        model = tiny_model(head="circle")
        latents = jax.random.normal(jax.random.key(0), (2, 3, *GRID, 3))
        batch, loss_config = Batch(latents, *tiny_text()), LossConfig()
        draws = draw(jax.random.key(1), model, (2, 3, 6), loss_config)
        assert np.isfinite(next_frame_loss(model, batch, draws, loss_config)[0])
        config = SamplingConfig(steps=2, head_steps="2", guidance=2.0)
        given, keys = latents[:, :1], jax.random.split(jax.random.key(2), 2)
        video = generate(model, given, *tiny_text(), num_frames=2, config=config, keys=keys)
        assert video.shape == (2, 2, *GRID, 3) and np.isfinite(video).all()
    """,
    "A data source": """
        import os
        import numpy as np
        from videomar_jax.data.loader import fixed_clips
        from videomar_jax.data.sources import ClipShape, ClipSource
        from videomar_jax.experiment.data_sources import DATA_KINDS, DataConfig, SourceRequest

        os.makedirs("clips")
        for number in range(6):
            np.save(f"clips/clip_{number}.npy", np.full((5, 20, 30, 3), 10 * number, np.uint8))
        config = DataConfig(kind="arrays", path="clips", fps=8.0)
        request = dict(seed=0, min_frames=3, shortest=(3, 3), drawn=1)
        open_split = lambda split: DATA_KINDS["arrays"].open(
            config, SourceRequest(split=split, **request)
        )
        source = open_split("train")
        assert isinstance(source, ClipSource) and source.fps == 8.0
        assert len(source) == 4 and len(open_split("test")) == 2
        shape = ClipShape(num_frames=3, height=16, width=16)
        batch = fixed_clips(source, [0, 3], shape=shape, seed=0)
        assert batch["video"].shape == (2, 3, 16, 16, 3)
        assert (batch["video"][1] == 40).all() and list(batch["caption"]) == ["clip 1", "clip 4"]
    """,
    "A metric": """
        import numpy as np
        from videomar_jax.evaluation.report import quality

        truth = np.full((2, 3, 16, 16, 3), 100, np.uint8)
        truth[:, 2] = 130
        scores = quality(np.where(truth == 130, 120, truth).astype(np.uint8), truth, truth)
        assert scores["absolute_error"] == 5 and scores["absolute_error_ceiling"] == 0
        assert scores["absolute_error_copy_first"] == 15
    """,
    "A sampling option": """
        import numpy as np
        from videomar_jax.checks import field_docs
        from videomar_jax.experiment.settings import default_config
        from videomar_jax.sampling.config import SamplingConfig
        from videomar_jax.sampling.schedules import temperatures

        config = SamplingConfig(temperature_decay=0.5)
        np.testing.assert_allclose(temperatures(3, config), [1, 0.5, 0.25])
        assert field_docs(SamplingConfig)["temperature_decay"].startswith("Factor on")
        assert default_config().sampling.temperature_decay == 1.0
    """,
}


def edits(section: str) -> list[tuple[str, str, str]]:
    """(file, kind of block, text) of each code block, in order."""
    found = []
    for kind, text in BLOCK.findall(section):
        head, _, rest = text.partition("\n")
        file = head.removeprefix("# ").removeprefix("+++ ")
        assert file.startswith("videomar_jax/"), f"no file is named above\n{text}"
        found.append((file, kind, rest))
    return found


def apply(source: str, diff: str) -> str:
    """`source` with the lines of one diff changed; the lines it names must be there once."""
    lines = diff.splitlines()
    before = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
    after = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
    assert ("\n" + source).count("\n" + before) == 1, f"these lines are not there once:\n{before}"
    return ("\n" + source).replace("\n" + before, "\n" + after)[1:]


SECTIONS = {title: edits(text) for title, text in SECTION.findall(PAGE)}


def test_every_example_is_checked():
    assert set(SECTIONS) == set(CHECKS)


@pytest.mark.parametrize("title", CHECKS)
def test_an_example_takes_as_many_files_as_the_page_says(title):
    anchor = title.lower().replace(" ", "-")
    (count,) = re.findall(rf"\(#{anchor}\) \| (\d+) \|", PAGE)
    assert len({file for file, _, _ in SECTIONS[title]}) == int(count)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the package with all examples in it."""
    folder = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "videomar_jax", folder / "videomar_jax", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "helpers", folder / "tests" / "helpers", ignore=ignored)
    for blocks in SECTIONS.values():
        for file, kind, text in blocks:
            path = folder / file
            if kind == "diff":
                text = apply(path.read_text(encoding="utf-8"), text)
            else:
                assert not path.exists(), f"{file} exists; choose another name for the example"
            path.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("title", CHECKS)
def test_an_example_works(extended, tmp_path, title):
    shutil.copytree(extended, tmp_path, dirs_exist_ok=True)
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHECKS[title])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert ran.returncode == 0, ran.stderr
