"""Recording a profile of a few training steps (`jax.profiler`)."""

import dataclasses
from pathlib import Path

import jax

from videomar_jax.checks import UserError
from videomar_jax.io.log import log
from videomar_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Which steps to record."""

    start: int
    """The first step."""
    steps: int
    """The number of steps."""

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Reads "START:STEPS".

        Raises:
            UserError: the text has another form.
        """
        start, colon, steps = text.partition(":")
        if not (colon and start.isdecimal() and steps.isdecimal() and int(steps)):
            raise UserError(
                f"--profile={text} must be START:STEPS, such as 20:5 for the steps 20 to 24."
            )
        return cls(start=int(start), steps=int(steps))


class Profiler:
    """Starts and ends the recording of a `Profile`.

    Use it as a context manager: a recording that is still running at the end is ended.

    Args:
        profile: None records nothing.
        folder: where the trace is written.
        first_step, total_steps: the step that the run starts or continues at, and its length.
    Raises:
        UserError: the run has no step `profile.start`.
    """

    def __init__(self, profile: Profile | None, folder: Path, first_step: int, total_steps: int):
        self._profile, self._folder = profile, folder
        self._recording = False
        if profile is None:
            return
        if profile.start >= total_steps:
            raise UserError(
                f"--profile={profile.start}:{profile.steps} starts after the last step of the run, "
                f"{total_steps - 1}."
            )
        if profile.start < first_step:
            # Only a warning: a script that restarts a stopped run repeats all of its flags.
            log.warning(
                "no profile is recorded: --profile=%d:%d starts before step %d, from which this "
                "run is continued; choose a START of at least %d",
                profile.start,
                profile.steps,
                first_step,
                first_step,
            )

    def before_step(self, step: int, state: TrainState) -> None:
        """To be called before each step, with the state that the step starts from."""
        if self._profile is None:
            return
        if step == self._profile.start:
            jax.profiler.start_trace(str(self._folder))
            self._recording = True
        elif step == self._profile.start + self._profile.steps:
            self.stop(step, state)

    def stop(self, step: int, state: TrainState) -> None:
        """Ends the recording, if there is one, after the work on `state` is done."""
        if self._profile is None or not self._recording:
            return
        # Dispatch is asynchronous: without waiting, the trace would end before its steps do.
        jax.block_until_ready(state)
        self.close()
        log.info("profile from step %d to %d: %s", self._profile.start, step, self._folder)

    def close(self) -> None:
        """Ends the recording at once, if there is one."""
        if self._recording:
            self._recording = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
