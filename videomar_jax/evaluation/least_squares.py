"""Ridge regression and principal components, in closed form."""

import numpy as np
import scipy.linalg

from videomar_jax.types import Float

SMALLEST_VARIANCE = 1e-6
"""Components with less variance than this share of the first one's are numerical noise."""


def ridge_regression(
    squares: Float[np.ndarray, "n n"],
    products: Float[np.ndarray, "n m"],
    ridge: float,
    *,
    free_constant: bool = False,
) -> Float[np.ndarray, "n m"]:
    """W = argmin |Y - X W|^2 + penalty |W|^2, in float64.

    Args:
        squares, products: X'X and X'Y.
        ridge: the penalty as a multiple of the mean square of an input, summed over the rows.
        free_constant: the last input is a constant, which is not penalised.
    """
    size = len(squares)
    penalty = np.full(size, max(ridge * np.trace(squares) / size, 1e-9))
    if free_constant:
        # Just enough to keep the system solvable.
        penalty[-1] = 1e-6
    matrix = squares.astype(np.float64) + np.diag(penalty)
    return scipy.linalg.solve(matrix, products, assume_a="pos")


def principal_components(
    rows: Float[np.ndarray, "N n"], most: int
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "k"]]:
    """The k <= `most` leading right singular vectors as columns, and the root mean square of the
    rows along each; float32.

    Through the products of the rows with each other: meant for fewer rows than values.
    """
    values, vectors = scipy.linalg.eigh(np.asarray(rows @ rows.T, np.float64))
    order = np.argsort(-values)[:most]
    order = order[values[order] > SMALLEST_VARIANCE * max(values[order[0]], 1e-12)]
    norms = np.sqrt(values[order])
    directions = rows.T @ (vectors[:, order] / norms).astype(np.float32)
    return directions.astype(np.float32), (norms / np.sqrt(len(rows))).astype(np.float32)
