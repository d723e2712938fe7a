"""How sure a mean of scores is: a bootstrap interval over examples."""

from collections.abc import Sequence

import numpy as np

_DRAWS, _PART = 2000, 100
_SEED = 0


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % percentile interval of the mean, of 2,000 samples of the examples with replacement; None of just one.

    The draws depend on the number of values alone, so the same results give the same interval.
    """
    values = np.asarray(values, "float64")
    if len(values) < 2:
        return None
    rng = np.random.default_rng(_SEED)
    parts = (rng.integers(len(values), size=(_PART, len(values))) for _ in range(_DRAWS // _PART))
    means = np.concatenate([values[part].mean(axis=1) for part in parts])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
