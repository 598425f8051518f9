"""What a person would say of a model, from its scores: one sentence for a case, one for the whole.

A table can say "30.8 dB" where the picture says that the moving part is gone. So each sentence says
first whether the model is worth more than doing nothing, then whether it beats the linear
predictor, then what becomes of the part that moves, of motion and of the caption. Every claim
carries its numbers.

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


def verdict(scores: Scores) -> str:
    """One sentence of judgement on the clips of a case."""
    said = [_against_copy(scores), _against_linear(scores), _moving_part(scores)]
    said += [_amount_of_motion(scores), _caption(scores), _object(scores)]
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


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
