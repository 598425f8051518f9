"""Stage 1 of 3: from images to short clips at 256x256, the 1.4 B model from random parameters.

    python -m videomar_jax.main --config=configs/stage1.py --workdir=runs/stage1 \
        --config.data.path=CLIPS

CLIPS is a folder of videos with captions; a corpus is better prepared once (`videomar_jax.prepare`)
and read as latents with `--config.data.kind=shards --config.data.path=SHARDS`. The Cosmos tokenizer
and Qwen2-VL's language model are downloaded by name; name local folders with
--config.tokenizer.path and --config.text.path.

The paper gives the order (images; then videos, short to long; then large ones), the tokenizer, the
text encoder and the clips of the end (49 frames of 480x768 at 12 fps). Steps, batches, rates and
mixtures are not published: what is marked "ours" is our choice, by the rules of the code base it
grew from (MAR: rate 1e-4 for 256 clips). docs/curriculum.md has the three stages in one table, with
what they cost.

`stage1.py:tiny` is the same in minutes on a CPU, with moving shapes: a test of the whole path,
which learns little.
"""

from ml_collections import ConfigDict

from videomar_jax.experiment.config_files import sibling

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" (the 1.4 B model) or "tiny"."""
    if variant not in VARIANTS:
        raise ValueError(f"stage1.py knows the variant 'tiny', not {variant!r}.")
    if variant == "tiny":
        config = tiny()
        side, clips, steps, rate = 16, 8, 3, 1e-3
        images, short, medium, long = 1, 3, 5, 7
    else:
        config = full()
        side = 256  # the paper's
        clips, steps, rate = 256, 20_000, 1e-4  # ours
        images, short, medium, long = 1, 9, 17, 25  # the paper's, of the tokenizer's form 1 + 8 k
    many = 4 * clips  # ours: as many tokens in a batch of images as in one of long clips

    def entry(frames: int, weight: float) -> dict:
        batch = many if frames == images else clips
        return dict(num_frames=frames, height=side, width=side, batch_size=batch, weight=weight)

    def row(name: str, steps: int, *mix: dict) -> dict:
        return dict(name=name, mix=mix, steps=steps, learning_rate=rate)

    # The weights are shares of the steps, and ours: what was learnt before stays in the mix.
    config.curriculum = (
        row("images", 2 * steps, entry(images, 1.0)),
        row("short", steps, entry(images, 0.2), entry(short, 0.8)),
        row("medium", steps, entry(images, 0.2), entry(short, 0.2), entry(medium, 0.6)),
        row(
            "long",
            steps,
            entry(images, 0.2),
            entry(short, 0.1),
            entry(medium, 0.2),
            entry(long, 0.5),
        ),
    )
    return config


def full() -> ConfigDict:
    """What the three stages have in common."""
    config = sibling(__file__, "base").get_config()
    # Parameters are in float32; remat is ours.
    config.model.update(preset="videomar_1p4b", dtype="bfloat16", remat="full")
    # holdout and threads are ours. Clips whose last 2 % is shorter than a test clip are held out,
    # or trained on, as a whole.
    config.data.update(kind="videos", fps=12.0, holdout=0.02, threads=8)
    config.tokenizer.update(kind="cosmos", path="nvidia/Cosmos-0.1-Tokenizer-CV8x16x16", scale=0.5)
    # The language model of Qwen2-VL-2B, of 1.5 B parameters.
    config.text.update(kind="qwen2", path="Qwen/Qwen2-VL-2B-Instruct", tokens=300)
    # Ours: the frames after the supervised one are never computed, nor counted in what the loss is
    # divided by.
    config.loss.update(truncate=True, normaliser="supervised")
    config.optimizer.update(warmup_steps=2000)  # ours; all else of the optimizer is MAR's (base.py)
    config.mesh.update(data=1, fsdp=-1)  # ours: parameters and optimizer are cut over all devices
    # Ours.
    config.run.update(log_every=50, checkpoint_every=500, keep_every=10_000, validate_every=2000)
    config.evaluation.update(clips=64, batch_size=8)
    return config


def tiny() -> ConfigDict:
    """The same with a model, clips and schedules that take seconds.

    The loss keeps whole clips (`loss.truncate` False), so that fewer programs are compiled.
    """
    config = sibling(__file__, "base").get_config()
    config.model.update(preset="tiny", latent_channels=16, text_tokens=8, text_width=64)
    config.tokenizer.fit_clips = 40
    config.optimizer.warmup_steps = 2
    config.sampling.update(steps=2, head_steps="2", guidance=1.0, latent_clip=0.0)
    config.run.update(log_every=1, checkpoint_every=4)
    config.evaluation.update(clips=4, batch_size=4)
    return config
