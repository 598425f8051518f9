"""Which steps of a long schedule a sampler visits, by the published notation."""

from videomar_jax.checks import UserError


def kept_steps(respacing: str | int, steps: int = 1000) -> list[int]:
    """The steps that a respacing keeps of `steps`, ascending.

    "N" or "N1,N2,...": as many equal sections as numbers, the steps spread evenly over each
    section, both ends included. "ddimN": every s-th step, with a whole stride s that gives exactly
    N. "": all of them.

    Raises:
        UserError: the respacing cannot be met, or keeps fewer than two steps.
    """
    text = str(respacing).strip()
    if not text:
        return list(range(steps))
    counts = text.removeprefix("ddim").split(",")
    strided = text.startswith("ddim")
    if not all(count.isdecimal() for count in counts) or (strided and len(counts) > 1):
        raise UserError(
            f"Head steps {text!r} are not understood: use a number, numbers with commas, or "
            "'ddimN'."
        )
    if strided:
        return _strided_steps(int(counts[0]), steps)
    kept: set[int] = set()
    start = 0
    for i, count in enumerate(map(int, counts)):
        # The first sections take what does not divide.
        size = steps // len(counts) + (i < steps % len(counts))
        if not 1 <= count <= size:
            raise UserError(
                f"Head steps {text!r} ask for {count} of the {size} steps of section {i + 1}."
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        # A running sum, rounded half to even: the published steps depend on its rounding errors.
        place = 0.0
        for _ in range(count):
            kept.add(start + round(place))
            place += stride
        start += size
    if len(kept) < 2:
        raise UserError(
            f"Head steps {text!r} keep a single step; the learned variance needs at least two."
        )
    return sorted(kept)


def _strided_steps(wanted: int, steps: int) -> list[int]:
    for stride in range(1, steps if wanted > 1 else 1):
        kept = range(0, steps, stride)
        if len(kept) == wanted:
            return list(kept)
    raise UserError(
        f"No whole stride over {steps} steps keeps exactly {wanted}; try plain '{wanted}'."
    )
