"""One frame, many tokens at a time: the compiled reveal steps (paper, section 3.3).

    for each reveal step:                                       one scan
        z = predict_frame(model, tokens, mask, cache)           with text, and without for guidance
        draw the tokens that this step reveals, given z         the head's diffusion

`sampling.reference` says the same without what is done here for speed. All shapes are static: a
step works on as many tokens as the next of a few buckets holds, and the surplus is dropped. Which
bucket, how many head steps, and whether the branch without text is run, are data, so that other
values run the same program. Noise is indexed by token position; each position is drawn once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.diffusion.plans import SolverPlan, evaluations
from videomar_jax.models import incremental
from videomar_jax.models.attention import TextKV
from videomar_jax.models.incremental import VisibleCache
from videomar_jax.models.linear_prior import Standardised, complete, frame_hint, frame_prior
from videomar_jax.models.masking import ranks
from videomar_jax.models.rope import PositionScale
from videomar_jax.models.transformer import take_tokens
from videomar_jax.models.videomar import Context, VideoMAR
from videomar_jax.sampling.draws import FrameDraws
from videomar_jax.sampling.fused_head import FusedHead, cut_chunks, draw_tokens_fused
from videomar_jax.sampling.reference import draw_tokens
from videomar_jax.sampling.schedules import RevealPlan
from videomar_jax.sampling.sharding import Placement, with_whole_rows
from videomar_jax.sampling.speed import SpeedOptions, chunk_size
from videomar_jax.types import Array, Bool, Float

# Latents are of the order of 1: such values come from damaged weights or absurd settings.
_EXPLODED = 1e6


class FrameSettings(NamedTuple):
    """The values of one generated frame; none of them changes the compiled program."""

    number: Any
    """int32: the frame's number in the video."""
    temperature: Any
    """float32: scale of the noise."""
    bound: Any
    """float32: tokens are clipped to [-bound, bound]."""
    history_noise: Any
    """float32: share of noise in the frame before, as this frame sees it."""


class FrameTrace(NamedTuple):
    """What happened at each reveal step, for comparison with recorded runs."""

    z: Float[Array, "I G S D"]
    """The transformer's output; G = 2B with guidance (text first), B without."""
    tokens: Float[Array, "I B S P"]
    """The frame after the step."""
    hidden: Bool[Array, "I B S"]
    """Which tokens were hidden before the step."""


class SharedInputs(NamedTuple):
    """The arrays that all frames of a request share."""

    context: Context
    """The text's keys and values; 2B rows with guidance, those with text first."""
    head: FusedHead
    timesteps: SolverPlan
    """The head's diffusion, with the embeddings of its times; `reveal.head` names the row of each
    reveal step."""
    reveal: RevealPlan
    """What each reveal step does, the same for every frame."""
    scale: PositionScale | None
    """How positions beyond the training range are folded back."""
    keys: Array | None
    """One random key for each sample; None where draws are handed in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaticConfig:
    """What the compiled program of a frame depends on, beside the shapes of its arguments."""

    grid: tuple[int, int]
    """(H, W): token rows and columns."""
    buckets: tuple[int, ...]
    """Sizes that the tokens of a reveal step are rounded up to, ascending."""
    branches: tuple[bool, ...] = (True,)
    """Whether steps are guided; two entries: some are, and some are not."""
    token_dtype: str = "float32"
    """Drawn tokens are rounded to it."""
    trace: bool = False
    """Also return what happened at every reveal step."""
    speed: SpeedOptions
    cache_length: int
    """L, the slots of the cache."""
    visible_length: int
    """The slots that this frame looks at, from the first."""
    all_visible: bool = False
    """All of these hold a frame, so that none is masked."""
    keep_first: bool = False
    """Frame 0 stays in slot 0 for good."""
    shift_first: bool = False
    """Frame 0 is moved forward in time, to stay right behind the window."""
    history_noise: bool = False
    """Some frame is seen with noise."""
    placement: Placement | None = None


class FrameInputs(NamedTuple):
    """What stays the same over the reveal steps of one frame."""

    model: VideoMAR
    shared: SharedInputs
    visible: VisibleCache
    settings: FrameSettings
    static: StaticConfig
    previous: Float[Array, "B S P"]
    """The finished frame before this one, as this frame sees it."""

    @property
    def batch(self) -> int:
        return len(self.previous)


def reveal_frame(inputs: FrameInputs, draws: FrameDraws) -> tuple[Array, FrameTrace | None]:
    """Draws all tokens of one frame, float32 [B, S, P]; returns the trace too, if asked for."""
    static = inputs.static
    batch, num_tokens, _ = draws.noise.shape
    most = static.buckets[-1]
    ranks_in_order = ranks(draws.order)
    # Past the end of the order stands an index that no token has: writes to it are dropped.
    padded_order = jnp.pad(draws.order, ((0, 0), (0, most)), constant_values=num_tokens)
    sample = jnp.arange(batch)[:, None]
    place = (inputs.previous, inputs.settings.number, static.grid, inputs.shared.context)
    prior = frame_prior(inputs.model, *place)
    hint = frame_hint(inputs.model, *place)
    predictors = [predictor(inputs, guided, hint) for guided in static.branches]
    drawers = []
    for guided in static.branches:
        drawers += [drawer(inputs, guided, bucket) for bucket in static.buckets]

    def reveal(tokens: Array, step: RevealPlan):
        hidden = ranks_in_order >= step.start
        chosen = jax.lax.dynamic_slice_in_dim(padded_order, step.start, most, axis=1)
        chosen = jnp.where(jnp.arange(most) < step.count, chosen, num_tokens)
        branch = jnp.where(step.guided == static.branches[0], 0, 1)
        z, z_chosen = _switch(branch, predictors, tokens, hidden, chosen)
        # Noise belongs to positions: the same token gets the same noise in any order of work.
        noise = jnp.take_along_axis(draws.noise, chosen[..., None], axis=1, mode="clip")
        step_noise = jnp.take_along_axis(
            draws.step_noise, chosen[None, ..., None], axis=2, mode="clip"
        )
        # The number of buckets that are too small is the index of the first that is not.
        bucket = jnp.sum(step.count > jnp.asarray(static.buckets[:-1], jnp.int32))
        choice = branch * len(static.buckets) + bucket
        take = functools.partial(
            jnp.take_along_axis, indices=chosen[..., None], axis=1, mode="clip"
        )
        prior_chosen = None if prior is None else _of_tokens(prior, take)
        new = _switch(choice, drawers, z_chosen, noise, step_noise, step, prior_chosen)
        # Clipping would make a plain picture of values that have exploded: NaN is noticed later.
        exploded = ~(jnp.abs(new) < _EXPLODED)
        new = jnp.clip(new, -inputs.settings.bound, inputs.settings.bound)
        new = jnp.where(exploded, jnp.nan, new)
        new = new.astype(static.token_dtype).astype(new.dtype)
        tokens = tokens.at[sample, chosen].set(new, mode="drop")
        return tokens, FrameTrace(z, tokens, hidden) if static.trace else None

    start = jnp.zeros_like(draws.noise)
    return jax.lax.scan(reveal, start, inputs.shared.reveal)


def _switch(index: Array, branches: list[Callable], *operands):
    if len(branches) == 1:
        return branches[0](*operands)
    return jax.lax.switch(index, branches, *operands)


def _of_tokens(prior: Standardised, pick: Callable[[Array], Array]) -> Standardised:
    """The prior of the tokens that `pick` leaves of [B, S, ...]; all share its spread."""
    units = None if prior.units is None else pick(prior.units)
    return prior._replace(mean=pick(prior.mean), units=units)


def predictor(
    inputs: FrameInputs, guided: bool, hint: Float[Array, "B S D"] | None = None
) -> Callable:
    """(tokens, hidden, chosen) → z of all tokens (where traced), z of the chosen ones.

    Where some steps are guided and others are not, both return rows for the branch without text;
    in the steps that are not guided these are copies.
    """
    model, shared, visible, settings, static, _ = inputs
    batch = inputs.batch
    context = shared.context
    copies = 2 if guided else 1
    if not guided:
        context = _text_rows(context, batch)
        visible = visible._replace(cache=_first_rows(visible.cache, batch))
    if hint is not None:
        visible = visible._replace(hint=jnp.tile(hint, (copies, 1, 1)))
    layers = None
    if static.speed.unstack_layers:
        assert isinstance(context.tokens, TextKV)
        layers = incremental.unstacked_layers(model, context.tokens, visible.cache)
    # A trace wants z of every token.
    only_chosen = static.speed.skip_unused_tokens and not static.trace

    def predict(tokens, hidden, chosen):
        tokens = jnp.tile(tokens, (copies, 1, 1))
        hidden = jnp.tile(hidden, (copies, 1))
        chosen = jnp.tile(chosen, (copies, 1))
        z = incremental.predict_frame(
            model,
            tokens,
            hidden,
            incremental.frame_rotary(model, settings.number, static.grid, shared.scale),
            context,
            visible,
            token_indices=chosen if only_chosen else None,
            layers=layers,
        )
        z_chosen = z if only_chosen else take_tokens(z[:, None], chosen)[:, 0]
        if True in static.branches and not guided:
            z, z_chosen = jnp.tile(z, (2, 1, 1)), jnp.tile(z_chosen, (2, 1, 1))
        return z if static.trace else None, z_chosen

    return predict


def drawer(inputs: FrameInputs, guided: bool, bucket: int) -> Callable:
    """(z, noise, step noise, step, prior) → new tokens; the first `bucket` of them are drawn."""
    model, shared, _, settings, static, _ = inputs
    batch = inputs.batch
    timesteps = shared.timesteps
    rows = 2 * batch if guided else batch
    varying = len(timesteps.count) > 1
    chunk = chunk_size(evaluations(timesteps), rows * bucket, varying)

    def draw(z, noise, step_noise, step, prior):
        z = with_whole_rows(static.placement, z[:rows, :bucket])
        noise_used = noise[:, :bucket]
        if prior is not None:
            prior = _of_tokens(prior, lambda values: values[:, :bucket])
        step_noise = step_noise[:, :, :bucket]
        values = (step.guidance, settings.temperature)
        if static.speed.fused_head:
            schedule = cut_chunks(timesteps, step.head, chunk)
            new = draw_tokens_fused(
                shared.head, model.process, z, noise_used, step_noise, schedule, *values
            )
            new = complete(model, new, z, step.guidance, prior)
        else:
            row = jax.tree.map(lambda table: table[step.head], timesteps.steps)
            new = draw_tokens(model, z, noise_used, step_noise, row, *values, prior)
        return jnp.pad(new, ((0, 0), (0, noise.shape[1] - bucket), (0, 0)))

    return draw


def _first_rows(stack, batch: int):
    """The first rows of arrays with layers in front."""
    return jax.tree.map(lambda x: x[:, :batch], stack)


def _text_rows(context: Context, batch: int) -> Context:
    """The context of the rows with text; its tokens are keys and values already."""
    tokens = _first_rows(context.tokens, batch)
    mask = None if context.mask is None else context.mask[:batch]
    pooled = None if context.pooled is None else context.pooled[:batch]
    return Context(tokens, mask, pooled)
