"""The table of VideoMAR's weights: one rule for each kind of key of the published file."""

from videomar_jax.interop.formats.rules import ONE_AXIS, TRANSPOSE, TWO_AXES, Rule


def _kernel(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (Rule(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSE),)


def _linear(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (*_kernel(theirs, ours), Rule(f"{theirs}.bias", f"{ours}/bias"))


def _rms(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (Rule(f"{theirs}.weight", f"{ours}/scale"),)


def _norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (*_rms(theirs, ours), Rule(f"{theirs}.bias", f"{ours}/bias"))


_BLOCK = "decoder_blocks.{}"
_OURS = "transformer/blocks"
_HEAD = "diffloss.net"
_RES = "diffloss.net.res_blocks.{}"
_OUR_RES = "head/blocks"

RULES: tuple[Rule, ...] = (
    Rule("fake_latent", "null_context", ONE_AXIS),
    Rule("mask_token", "mask_token", TWO_AXES),
    *_linear("context_embed", "context_embed"),
    *_linear("z_proj", "z_proj"),
    Rule(f"{_BLOCK}.scale_shift_table", f"{_OURS}/scale_shift_table"),
    *_norm(f"{_BLOCK}.norm1", f"{_OURS}/norm1"),
    *_kernel(f"{_BLOCK}.attn1.wqkv", f"{_OURS}/self_attention/qkv"),
    *_kernel(f"{_BLOCK}.attn1.wo", f"{_OURS}/self_attention/out"),
    *_rms(f"{_BLOCK}.attn1.q_norm", f"{_OURS}/self_attention/q_norm"),
    *_rms(f"{_BLOCK}.attn1.k_norm", f"{_OURS}/self_attention/k_norm"),
    *_norm(f"{_BLOCK}.norm2", f"{_OURS}/norm2"),
    *_kernel(f"{_BLOCK}.attn2.wq", f"{_OURS}/cross_attention/q"),
    *_kernel(f"{_BLOCK}.attn2.wkv", f"{_OURS}/cross_attention/kv"),
    *_kernel(f"{_BLOCK}.attn2.wo", f"{_OURS}/cross_attention/out"),
    *_rms(f"{_BLOCK}.attn2.q_norm", f"{_OURS}/cross_attention/q_norm"),
    *_rms(f"{_BLOCK}.attn2.k_norm", f"{_OURS}/cross_attention/k_norm"),
    *_kernel(f"{_BLOCK}.ff.net.0.proj", f"{_OURS}/feed_forward/up"),
    *_kernel(f"{_BLOCK}.ff.net.2", f"{_OURS}/feed_forward/down"),
    *_norm("decoder_norm", "transformer/norm"),
    *_linear(f"{_HEAD}.time_embed.mlp.0", "head/time1"),
    *_linear(f"{_HEAD}.time_embed.mlp.2", "head/time2"),
    *_linear(f"{_HEAD}.cond_embed", "head/cond_embed"),
    *_linear(f"{_HEAD}.input_proj", "head/input_proj"),
    *_norm(f"{_RES}.in_ln", f"{_OUR_RES}/norm"),
    *_linear(f"{_RES}.mlp.0", f"{_OUR_RES}/linear1"),
    *_linear(f"{_RES}.mlp.2", f"{_OUR_RES}/linear2"),
    *_linear(f"{_RES}.adaLN_modulation.1", f"{_OUR_RES}/modulation"),
    *_linear(f"{_HEAD}.final_layer.linear", "head/final"),
    *_linear(f"{_HEAD}.final_layer.adaLN_modulation.1", "head/final_modulation"),
)
"""Every parameter of a published model, in the order of its state dict."""
