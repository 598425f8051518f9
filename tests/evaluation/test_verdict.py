"""The sentence says what the numbers mean, so that a table cannot say "learnt" where the picture
says that the moving part is gone."""

import pytest

from videomar_jax.evaluation.verdict import overall_verdict, verdict

WORSE = {
    "psnr": 25.0,
    "psnr_copy_first": 29.1,
    "psnr_linear": 30.0,
    "changed_psnr": 14.1,
    "changed_psnr_copy_first": 15.0,
    "motion": 0.3,
    "better_than_copy": 0.03,
}
BETTER = {
    "psnr": 33.4,
    "psnr_copy_last": 32.8,
    "psnr_linear": 33.0,
    "changed_psnr": 25.2,
    "changed_psnr_copy_last": 23.2,
    "changed_psnr_linear": 25.0,
    "motion": 0.94,
    "better_than_copy": 0.69,
    "better_than_linear": 0.55,
    "right_caption_better": 0.84,
}


def test_a_model_that_is_worth_less_than_nothing():
    said = verdict(WORSE)
    assert said.startswith("Worse than repeating the last frame (25.0 dB, repeating 29.1, better")
    assert "5.0 dB worse than the linear predictor (30.0 dB)" in said
    assert "the moving part is missing: changed pixels 14.1 dB, repeating 15.0" in said
    assert "hardly moves (30 % of the truth's motion)" in said


def test_a_model_that_has_learnt_the_footage():
    said = verdict(BETTER)
    assert said.startswith("Better than repeating the last frame by 0.6 dB (33.4 dB, repeating")
    assert "beats the linear predictor by 0.4 dB (33.0 dB, better on 55 %)" in said
    assert "the moving part is there: changed pixels 25.2 dB, repeating 23.2, linear 25.0" in said
    assert "follows the caption (the right one is better than another on 84 %)" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"psnr": 32.85}, "No better than repeating the last frame"),
        ({"psnr": 33.05}, "level with the linear predictor"),
        ({"motion": 2.0}, "too wildly (200 %"),
        ({"changed_psnr": 23.0, "motion": 1.2}, "the moving part is wrong: changed pixels 23.0 dB"),
        ({"right_caption_better": 0.5}, "does not look at the caption"),
        ({"direction_accuracy": 0.98}, "98 % go where the caption says"),
        ({"object_present": 0.4}, "the object is lost in 60 %"),
        ({"given_psnr": 26.3}, "the given frames come back changed (26.3 dB)"),
        ({"first_step": 3.1}, "it jumps at the first new frame (310 % of the truth's step)"),
        (
            {"mean_drift": 7.1, "mean_drift_copy_last": 1.2},
            "brightness or colour drifts (7.1 grey levels off, repeating 1.2)",
        ),
        ({"contrast_drift": 5.0}, "contrast drifts (5.0 grey levels off, repeating 0.0)"),
        ({"lpips": 0.12, "lpips_copy_last": 0.2}, "LPIPS 0.120, repeating 0.200."),
        ({"lpips": 0.3, "lpips_copy_last": 0.2}, "repeating 0.200, which is closer"),
        ({"fvd": 120.4, "fvd_copy_last": 340.0}, "FVD 120, repeating 340"),
    ],
)
def test_claims(change, says):
    assert says in verdict(BETTER | change)


def test_a_sentence_says_nothing_that_was_not_measured():
    said = verdict({"psnr": 30.0, "psnr_copy_first": 28.0})
    assert "no pixel changes visibly" in said
    for word in ("linear", "caption", "motion"):
        assert word not in said
    assert verdict({"clips": 4.0}) == ""


def test_the_whole_is_judged_for_each_number_of_given_frames():
    assert overall_verdict({1: WORSE, 3: BETTER}) == (
        "From 1 frame: worse than repeating the last frame (25.0 dB, repeating 29.1, better on "
        "3 %); the moving part is missing: changed pixels 14.1 dB, repeating 15.0. "
        "From 3 frames: beats the linear predictor by 0.4 dB (33.0 dB, better on 55 %)."
    )
    assert "better than repeating the last frame by 0.6 dB" in overall_verdict(
        {1: {key: value for key, value in BETTER.items() if "linear" not in key}}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"given_psnr": 100.0, "first_step": 1.3},
        # The tokenizer's own blur is a step, too.
        {"first_step": 5.0, "first_step_ceiling": 3.0},
        # The truth itself becomes darker, which a still misses as well.
        {"mean_drift": 7.1, "mean_drift_copy_last": 6.0},
        {"contrast_drift": 2.0, "contrast_drift_copy_last": 0.0},
    ],
)
def test_what_nobody_would_notice_is_not_said(change):
    assert verdict(BETTER | change) == verdict(BETTER)
