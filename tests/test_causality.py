"""Property 3: nothing flows back, and with FAM information flows further forward than BSWA reaches."""

import numpy as np
import pytest
from helpers.models import FAMILIES, VOCABULARY, fam_backbone, forward, token_ids

pytestmark = pytest.mark.shared_out


def changed_places(backbone, ids, place):
    other = ids.copy()
    other[:, place] = (other[:, place] + 1) % VOCABULARY
    difference = np.abs(forward(backbone, ids) - forward(backbone, other)).max(axis=(0, 2))
    return difference > 0


@pytest.mark.parametrize("place", [1, 4, 7, 13])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_changes_no_output_before_it(family, place):
    changed = changed_places(fam_backbone(family), token_ids(1, 22), place)
    assert not changed[:place].any()
    assert changed[place]


@pytest.mark.parametrize("memory_segments", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_fam_reaches_beyond_bswa(family, memory_segments):
    """Two layers reach at most 2 * (m+1) * B places back; FAM has no such edge."""
    block_size, reach = 4, 2 * (memory_segments + 1) * 4
    ids = token_ids(1, reach + 16)
    bswa = changed_places(fam_backbone(family, block_size, memory_segments, fam_length=0), ids, 1)
    assert not bswa[1 + reach :].any()
    assert bswa[2:block_size].any()
    fam = changed_places(fam_backbone(family, block_size, memory_segments, fam_length=3), ids, 1)
    assert fam[1 + reach :].any()


def test_the_window_s_edge_is_exact():
    """One layer: a token sees its block and m blocks before it whole, and not one token more."""
    backbone = fam_backbone("gemma", block_size=4, memory_segments=1, fam_length=0, stock={"num_layers": 1})
    ids = token_ids(1, 16)
    assert np.flatnonzero(changed_places(backbone, ids, 3)).tolist() == [3, 4, 5, 6, 7]
    assert np.flatnonzero(changed_places(backbone, ids, 4)).tolist() == list(range(4, 12))


def test_a_layer_s_own_sliding_window_is_kept():
    """Gemma 2's first layer: the intersection of its window of 5 and the block window."""
    backbone = fam_backbone("gemma2", block_size=4, memory_segments=2, fam_length=0, stock={"num_layers": 1})
    assert np.flatnonzero(changed_places(backbone, token_ids(1, 16), 6)).tolist() == [6, 7, 8, 9, 10]
