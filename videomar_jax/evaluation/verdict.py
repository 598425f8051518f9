"""What a person would say of a model, from its scores: one sentence for a case, one for the whole.

A table can say "30.8 dB" where the picture says that the moving part is gone. So each sentence says
first whether the model is worth more than doing nothing, then whether it beats the linear
predictor, then what becomes of the part that moves, of motion and of the caption, then what a
person would notice: a jump at the first new frame, colours that slip away, given frames that come
back changed, and how it looks to the networks of LPIPS and FVD. Every claim carries its numbers.

Scores are named as in a report: a row of METRICS, and "NAME_BASELINE" for a baseline's.
"""

from collections.abc import Mapping

Scores = Mapping[str, float]

COPIES = ("copy_first", "copy_last")
"""Suffixes of the scores of repeating the last given frame, which from one frame is the first."""

# Differences in dB below this are within what another seed changes.
_LEVEL = 0.1
# Shares and ratios at which a person sees that something is wrong.
_STILL, _MOVES, _WILD = 0.5, 0.8, 1.5
_FOLLOWS, _GUESSES = 0.75, 0.6
_LOST = 0.8
# A first step so much above the truth's, and the tokenizer's own, is seen as a jump.
_JUMP = 2.0
# Grey levels of drift that a person sees, and by how much it must exceed that of a still.
_DRIFTS, _MORE_DRIFT = 4.0, 2.0
# PSNR in dB below which a person tells the given frames from those in the video.
_CHANGED_GIVEN = 30.0


def verdict(scores: Scores) -> str:
    """One sentence of judgement on the clips of a case."""
    said = [_against_copy(scores), _against_linear(scores), _moving_part(scores)]
    said += [_amount_of_motion(scores), _caption(scores), _object(scores)]
    said += [_first_frames(scores), _drift(scores), _to_networks(scores)]
    sentence = "; ".join(part for part in said if part)
    return sentence[:1].upper() + sentence[1:] + "." if sentence else ""


def overall_verdict(cases: Mapping[int, Scores]) -> str:
    """The judgement on a run: its most important claims for each number of given frames."""
    said = []
    for given, scores in cases.items():
        parts = [_headline(scores), _moving_part(scores, only_if_lost=True)]
        text = "; ".join(part for part in parts if part)
        if text:
            said.append(f"From {given} frame{'s' if given > 1 else ''}: {text}.")
    return " ".join(said)


def copy_score(scores: Scores, name: str) -> float | None:
    """The score of repeating the last given frame."""
    for suffix in COPIES:
        if f"{name}_{suffix}" in scores:
            return scores[f"{name}_{suffix}"]
    return None


def _headline(scores: Scores) -> str:
    """Whether the model is worth its training, in the fewest words."""
    copy, linear = copy_score(scores, "psnr"), scores.get("psnr_linear")
    if copy is None or "psnr" not in scores:
        return ""
    if linear is None or scores["psnr"] < copy + _LEVEL:
        return _against_copy(scores)
    return _against_linear(scores)


def _against_copy(scores: Scores) -> str:
    copy = copy_score(scores, "psnr")
    if copy is None or "psnr" not in scores:
        return ""
    difference = scores["psnr"] - copy
    numbers = f"{scores['psnr']:.1f} dB, repeating {copy:.1f}"
    if "better_than_copy" in scores:
        numbers += f", better on {_percent(scores['better_than_copy'])}"
    if difference <= -_LEVEL:
        return f"worse than repeating the last frame ({numbers})"
    if difference < _LEVEL:
        return f"no better than repeating the last frame ({numbers})"
    return f"better than repeating the last frame by {difference:.1f} dB ({numbers})"


def _against_linear(scores: Scores) -> str:
    if "psnr_linear" not in scores or "psnr" not in scores:
        return ""
    difference = scores["psnr"] - scores["psnr_linear"]
    numbers = f"{scores['psnr_linear']:.1f} dB"
    if "better_than_linear" in scores:
        numbers += f", better on {_percent(scores['better_than_linear'])}"
    if difference <= -_LEVEL:
        return f"{-difference:.1f} dB worse than the linear predictor ({numbers})"
    if difference < _LEVEL:
        return f"level with the linear predictor ({numbers})"
    return f"beats the linear predictor by {difference:.1f} dB ({numbers})"


def _moving_part(scores: Scores, only_if_lost: bool = False) -> str:
    changed, copy = scores.get("changed_psnr"), copy_score(scores, "changed_psnr")
    if changed is None or copy is None:
        nothing = "psnr" in scores and copy_score(scores, "psnr") is not None
        return "no pixel changes visibly in these clips, so they tell little" if nothing else ""
    numbers = f"changed pixels {changed:.1f} dB, repeating {copy:.1f}"
    if "changed_psnr_linear" in scores:
        numbers += f", linear {scores['changed_psnr_linear']:.1f}"
    if changed < copy + _LEVEL:
        # What moves as much as the truth, and is no nearer to it than a still, moves wrongly.
        state = "missing" if scores.get("motion", 0.0) < _MOVES else "wrong"
        return f"the moving part is {state}: {numbers}"
    return "" if only_if_lost else f"the moving part is there: {numbers}"


def _amount_of_motion(scores: Scores) -> str:
    motion = scores.get("motion")
    if motion is None:
        return ""
    if motion < _STILL:
        return f"it hardly moves ({_percent(motion)} of the truth's motion)"
    if motion > _WILD:
        return f"it moves too wildly ({_percent(motion)} of the truth's motion)"
    return f"it moves as much as it should ({_percent(motion)} of the truth's motion)"


def _caption(scores: Scores) -> str:
    share = scores.get("right_caption_better")
    if share is None:
        return ""
    numbers = f"the right one is better than another on {_percent(share)}"
    if share >= _FOLLOWS:
        return f"it follows the caption ({numbers})"
    if share <= _GUESSES:
        return f"it does not look at the caption ({numbers})"
    return f"it follows the caption now and then ({numbers})"


def _object(scores: Scores) -> str:
    """Of captioned moving shapes."""
    said = []
    if "direction_accuracy" in scores:
        said.append(f"{_percent(scores['direction_accuracy'])} go where the caption says")
    if scores.get("object_present", 1.0) < _LOST:
        said.append(f"the object is lost in {_percent(1 - scores['object_present'])}")
    return ", ".join(said)


def _first_frames(scores: Scores) -> str:
    """Whether the video takes up the given frames; "" if it does."""
    said = []
    if scores.get("given_psnr", _CHANGED_GIVEN) < _CHANGED_GIVEN:
        said.append(f"the given frames come back changed ({scores['given_psnr']:.1f} dB)")
    step = scores.get("first_step", 1.0)
    if step > _JUMP * max(1.0, scores.get("first_step_ceiling", 1.0)):
        said.append(f"it jumps at the first new frame ({_percent(step)} of the truth's step)")
    return ", ".join(said)


def _drift(scores: Scores) -> str:
    """What slips away over time; "" if nothing visible does."""
    said = []
    for name, words in (("mean_drift", "brightness or colour"), ("contrast_drift", "contrast")):
        drift, copy = scores.get(name), copy_score(scores, name) or 0.0
        if drift is not None and drift > max(_DRIFTS, copy + _MORE_DRIFT):
            said.append(f"{words} drifts ({drift:.1f} grey levels off, repeating {copy:.1f})")
    return ", ".join(said)


def _to_networks(scores: Scores) -> str:
    """How it looks to the networks of LPIPS and FVD, beside repeating."""
    said = []
    for name, digits in (("lpips", 3), ("fvd", 0)):
        value, copy = scores.get(name), copy_score(scores, name)
        if value is None:
            continue
        numbers = f"{value:.{digits}f}"
        if copy is not None:
            numbers += f", repeating {copy:.{digits}f}"
        closer = copy is None or value < copy
        said.append(f"{name.upper()} {numbers}" + ("" if closer else ", which is closer"))
    return ", ".join(said)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
