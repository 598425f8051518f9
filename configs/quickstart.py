"""A first VideoMAR: minutes on two CPU cores, no files, no downloads.

    python -m videomar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

trains a small model (1.4 M parameters) on captioned moving shapes, short to long and small to
large, then generates and scores held-out clips: see WORKDIR/report.md. It differs from the paper in
the flow head, in supervising every next frame at once (`loss.supervise = "all_frames"`), in Muon,
and in the auxiliary terms of the model preset; each made the small model learn faster.

`quickstart.py:videos` does the same on a folder of clips, and needs `--config.data.path=DIR`;
`quickstart.py:scenes` on captioned scenes of shaded objects at 64x64, in an hour or two;
`quickstart.py:tiny` runs through everything in a minute, for tests, and learns nothing much.
"""

from ml_collections import ConfigDict

from videomar_jax.experiment.config_files import sibling

VARIANTS = ("", "videos", "scenes", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    """variant: one of `VARIANTS`; "" for moving shapes."""
    if variant not in VARIANTS:
        known = ", ".join(map(repr, VARIANTS[1:]))
        raise ValueError(f"quickstart.py knows the variants {known}, not {variant!r}.")
    config = sibling(__file__, "base").get_config()
    config.model.preset = "quickstart"
    config.loss.update(supervise="all_frames", draws_per_token=2, regression_weight=1.0)
    config.optimizer.update(
        name="muon",
        schedule="cosine",
        final_fraction=0.03,
        weight_decay=0.01,
        clip_norm=1.0,
        ema_decay=0.99,
        ema_warmup=True,
        warmup_steps=100,
    )
    config.sampling.update(steps=4, head_steps="4", guidance=1.0, latent_clip=0.0)
    # A window of as many frames as training showed keeps longer videos from falling apart.
    config.sampling.update(window=4, keep_first=False)
    config.curriculum = (
        stage("16px_3f", frames=3, side=16, batch_size=32, steps=400),
        stage("24px_5f", frames=5, side=24, batch_size=16, steps=250),
        stage("32px_9f", frames=9, side=32, batch_size=8, steps=200),
    )
    if variant == "videos":
        use_footage(config)
    if variant == "scenes":
        use_scenes(config)
    if variant == "tiny":
        make_tiny(config)
    return config


def use_footage(config: ConfigDict) -> None:
    """What makes real clips work: see docs/footage.md."""
    learn_what_a_prior_leaves_over(config)
    # Clips that keep their place, such as a face, say more than the frame before does.
    config.model.forecast = ()
    config.data.update(kind="videos", split_cuts=True, flip="auto", augment_probability=0.75)
    config.curriculum = (
        stage("32px_3f", frames=3, side=32, batch_size=32, steps=300),
        stage("32px_5f", frames=5, side=32, batch_size=32, steps=300),
        stage("32px_9f", frames=9, side=32, batch_size=16, steps=500),
    )


def use_scenes(config: ConfigDict) -> None:
    """A world with an open future: see docs/scenes.md."""
    learn_what_a_prior_leaves_over(config)
    # Objects have as many pixels on the narrower canvas that training begins with.
    config.data.update(kind="scenes", open_captions=0.25, unit=64)
    # Four frames a token: half the tokens, and half as many frames that are drawn from drawn ones.
    config.tokenizer.update(temporal_stride=4, channels=192)
    # With more units the model would take more than 10 MB in bfloat16.
    config.model.update(latent_channels=192, bilinear_units=240)
    # As many latent frames as the last stage has, but one.
    config.sampling.window = 4
    # Captions have up to 15 words.
    config.text.tokens = 16
    config.model.text_tokens = 16
    config.curriculum = (
        stage("64x40px_5f", frames=5, side=64, width=40, batch_size=26, steps=3500),
        stage("64x40px_9f", frames=9, side=64, width=40, batch_size=13, steps=4500),
        stage("64px_17f", frames=17, side=64, batch_size=4, steps=5500),
    )


def learn_what_a_prior_leaves_over(config: ConfigDict) -> None:
    """The recipe of docs/footage.md, for any clips."""
    # Tokens of 8x8 pixels: a quarter of the tokens, and what belongs together is drawn together.
    config.tokenizer.update(patch=8, channels=160)
    config.model.update(
        latent_channels=160,
        head_width=256,
        linear_prior=True,
        previous_frame=True,
        residual=True,
        bilinear_units=512,
        history_levels=True,
    )
    # Low mask rates show the last reveal steps, in which most of a frame is known.
    config.loss.update(mask_rate_min=0.05, history_noise=0.3, draws_per_token=1)
    # Between the mean of all futures, which hardly moves, and a draw with a grain.
    config.sampling.temperature = 0.5
    config.sampling.still_detail = True


def stage(
    name: str, *, frames: int, side: int, batch_size: int, steps: int, width: int | None = None
) -> dict:
    """A row of the curriculum: clips of one shape, square ones without `width`."""
    return dict(
        name=name,
        num_frames=frames,
        height=side,
        width=width or side,
        batch_size=batch_size,
        steps=steps,
        learning_rate=1e-2,
    )


def make_tiny(config: ConfigDict) -> None:
    """Shrinks the run to two stages of three steps."""
    config.model.update(preset="tiny", latent_channels=16, text_tokens=8, text_width=64)
    config.loss.regression_weight = 0.0
    config.optimizer.warmup_steps = 2
    config.tokenizer.fit_clips = 40
    config.run.update(log_every=1, checkpoint_every=2)
    config.sampling.update(steps=2, head_steps="2")
    config.evaluation.update(clips=4, batch_size=4, linear_windows=50)
    config.curriculum = tuple(dict(row, batch_size=4, steps=3) for row in config.curriculum[:2])
