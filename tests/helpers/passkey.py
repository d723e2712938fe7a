"""What PassKey texts hold, read back from their tokens, and the sizes that are tried."""

import keras
import numpy as np
from hypothesis import strategies as st


def marked(task, row, marker):
    """`(place, digits)` of each of a marker's occurrences in one row; the last may lack its digits."""
    for place in np.flatnonzero(row == marker):
        yield int(place), row[place + 1 : place + 1 + task.key_length] - task.digit_ids[0]


def equal(left, right):
    keras.tree.map_structure(np.testing.assert_array_equal, left, right)


def check_filler(task, ids):
    """Without noise, what is left of the filler goes round the sentence; returns each row's phase."""
    filler = ids >= task.filler_ids[0]
    phase = (ids - task.filler_ids[0] - np.arange(ids.shape[1])) % task.filler_length
    found = np.array([row[mask][0] if mask.any() else 0 for row, mask in zip(phase, filler)])
    assert (np.where(filler, phase, found[:, None]) == found[:, None]).all()
    return found


SIZES = dict(
    key_length=st.integers(1, 4),
    room=st.integers(0, 5),
    blocks=st.integers(1, 4),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32),
)
