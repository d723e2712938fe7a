"""Texts of which training would read little: one warning, and none where most is read."""

import warnings

import keras
import numpy as np
import pytest
from helpers.presets import gpt2_preset

import keras_fam

pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="texts are looked at before any backend")
LONG = "the quick brown fox " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return gpt2_preset(tmp_path_factory.mktemp("preset") / "gpt2")


@pytest.fixture
def lm(folder):
    return keras_fam.FAMCausalLM.from_preset(folder, block_size=4, fam_length=2)


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if "sequence_length" in str(each.message)]


@pytest.mark.parametrize("method, form", [("fit", list), ("evaluate", np.array)])
def test_one_warning_for_long_texts(lm, method, form):
    texts, reads = form([LONG, "short", LONG * 3]), getattr(lm, method)
    found = warned(lambda: [reads(texts, batch_size=2, verbose=0) for _ in range(2)])
    assert len(found) == 1 and "sequence_length=16" in found[0] and "DocumentStream" in found[0]
    tokens = [len(lm.preprocessor.tokenizer(text)) for text in texts]
    share = sum(min(16, count) for count in tokens) / sum(tokens)
    assert f"about {share:.0%}" in found[0]


def test_the_warning_names_the_line(lm):
    with pytest.warns(UserWarning, match="sequence_length") as caught:
        lm.fit([LONG], verbose=0)
    assert [each.filename for each in caught if "sequence_length" in str(each.message)] == [__file__]


def test_no_warning_where_most_is_read(lm):
    text = LONG[:120]
    count = len(lm.preprocessor.tokenizer(text))
    for length in (count - 1, count // 2 + 1):
        lm.preprocessor.sequence_length = length
        assert not warned(lambda: lm.evaluate([text] * 2, verbose=0))
    lm.preprocessor.sequence_length = count // 2 - 1
    assert warned(lambda: lm.evaluate([text] * 2, verbose=0))


def test_no_warning_for_ids(lm):
    ids = np.ones((2, 8), "int32")
    assert not warned(lambda: lm.fit({"token_ids": ids, "padding_mask": ids}, ids, verbose=0))
