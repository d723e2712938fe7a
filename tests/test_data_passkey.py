"""PassKey texts in token form: where statements and questions lie, what counts, and what is refused."""

import numpy as np
import pytest
from helpers.passkey import SIZES, check_filler, equal, marked
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_fam
from keras_fam.data import PassKeyTask

pytestmark = pytest.mark.shared_out


@settings(max_examples=60, deadline=None)
@given(**SIZES, introduce=st.lists(st.booleans(), min_size=3, max_size=3))
def test_examples(key_length, room, blocks, rate, seed, introduce):
    size = key_length + 1
    task = PassKeyTask(2 * size + room, key_length, filler_length=7, noise=0.0, filler_weight=0.25)
    block, length = task.block_size, blocks * task.block_size
    rng = np.random.default_rng(seed)
    keys = rng.integers(10, size=(3, key_length))
    ids, targets, weights = task.examples(3, blocks, rng, keys, rate, introduce)
    assert ids.dtype == targets.dtype == "int32" and weights.dtype == "float32"
    assert ids.shape == targets.shape == weights.shape == (3, length)
    np.testing.assert_array_equal(targets, np.pad(ids[:, 1:], ((0, 0), (0, 1))))
    expected = np.where(targets >= task.filler_ids[0], np.float32(0.25), np.float32(0))
    for row in range(3):
        statements = list(marked(task, ids[row], task.key_id))
        assert len(statements) == introduce[row]
        for place, digits in statements:
            assert place + size <= block and list(digits) == list(keys[row])
        questions = list(marked(task, ids[row], task.ask_id))
        assert questions[-1][0] == length - size
        asked = [place // block for place, _ in questions[:-1]]
        may_ask = range(int(introduce[row]), blocks)
        assert len(set(asked)) == len(asked) and set(asked) <= set(may_ask)
        assert rate == 0.5 or asked == [b for b in may_ask if rate]
        for place, digits in questions:
            assert place % block + size <= block and list(digits) == list(keys[row])
            expected[row, place : place + key_length] = 1.0
        assert (ids[row] < task.filler_ids[0]).sum() == size * (len(statements) + len(questions))  # none overlap
    np.testing.assert_array_equal(weights, expected)
    check_filler(task, ids)


def test_token_ids():
    task = PassKeyTask(32, filler_length=23)
    named = [task.padding_id, *task.digit_ids, task.key_id, task.ask_id, *task.filler_ids]
    assert task.padding_id == 0 and sorted(named) == list(range(task.vocabulary_size))
    np.testing.assert_array_equal(task.answers([[0, 9, 1, 1, 5]]), [task.digit_ids[[0, 9, 1, 1, 5]]])


def test_statements_and_questions_reach_every_place_of_a_block():
    task = PassKeyTask(9, key_length=2)
    ids, _, _ = task.examples(400, 3, np.random.default_rng(0), question_rate=1.0)
    assert set(np.nonzero(ids == task.key_id)[1]) == set(range(7))
    assert set(np.nonzero(ids == task.ask_id)[1]) == {*range(9, 16), *range(18, 22), 24}
    ids, _, _ = task.examples(400, 1, np.random.default_rng(0), question_rate=1.0)
    assert set(np.nonzero(ids == task.key_id)[1]) == set(range(4))
    assert set(np.nonzero(ids == task.ask_id)[1]) == {6}


def test_keys_are_fresh_and_places_independent_of_rows():
    task = PassKeyTask(32)
    ids, _, _ = task.examples(200, 2, np.random.default_rng(0))
    keys = {tuple(digits) for row in ids for _, digits in marked(task, row, task.key_id)}
    assert len(keys) > 190
    assert {digit for key in keys for digit in key} == set(range(10))


def test_question_rates_of_rows():
    task = PassKeyTask(16, key_length=3)
    ids, _, _ = task.examples(3, 400, np.random.default_rng(0), question_rate=[0.0, 0.25, 1.0])
    counts = (ids == task.ask_id).sum(axis=1)
    assert counts[0] == 1 and 70 < counts[1] < 130 and counts[2] == 400


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_noise(noise):
    task = PassKeyTask(20_000, noise=noise)
    clean = PassKeyTask(20_000, noise=0.0)
    rng, clean_rng = np.random.default_rng(3), np.random.default_rng(3)
    ids, _, _ = task.examples(2, 1, rng)
    changed = (ids != clean.examples(2, 1, clean_rng)[0]).mean()
    assert abs(changed - noise * 22 / 23) < 0.01 and rng.random() == clean_rng.random()
    assert set(ids[ids >= task.filler_ids[0]]) == set(task.filler_ids)


def test_the_generator_is_the_only_source_of_randomness():
    task = PassKeyTask(32)
    first, again, other = (task.examples(4, 3, np.random.default_rng(seed), question_rate=0.5) for seed in (1, 1, 2))
    equal(first, again)
    assert (first[0] != other[0]).any()
    rng = np.random.default_rng(1)
    task.examples(4, 3, rng)
    assert (task.examples(4, 3, rng)[0] != first[0]).any()


# === Prompts ===


@settings(max_examples=30, deadline=None)
@given(key_length=SIZES["key_length"], room=SIZES["room"], blocks=st.integers(1, 5), seed=SIZES["seed"])
def test_prompts(key_length, room, blocks, seed):
    task = PassKeyTask(2 * key_length + 2 + room, key_length, filler_length=5, noise=0.0)
    ids, keys = task.prompt(4, blocks, np.random.default_rng(seed))
    assert ids.shape == (4, blocks * task.block_size + 1) and ids.dtype == "int32" and keys.shape == (4, key_length)
    assert (ids[:, -1] == task.ask_id).all() and (ids == task.ask_id).sum() == 4
    for row, key in zip(ids, keys):
        [(place, digits)] = marked(task, row, task.key_id)
        assert place + key_length + 1 <= task.block_size and list(digits) == list(key)
    assert (ids[:, :-1] >= task.filler_ids[0]).sum(axis=1).tolist() == [blocks * task.block_size - key_length - 1] * 4
    check_filler(task, ids)


def test_prompts_block_by_block():
    task = PassKeyTask(16)
    ids, keys = task.prompt(2, 5, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    pieces, same_keys = task.prompt_blocks(2, 5, rng)
    rng.random(10)  # what the caller draws meanwhile changes nothing
    pieces = list(pieces)
    assert [piece.shape for piece in pieces] == [(2, 16)] * 5 + [(2, 1)]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), ids)
    np.testing.assert_array_equal(same_keys, keys)
    assert len({tuple(key) for key in task.prompt(50, 1, rng)[1]}) > 45


# === Bad arguments ===


@pytest.mark.parametrize(
    "name, value",
    [
        ("block_size", 0),
        ("block_size", 11),  # no room for a statement and a question
        ("block_size", 32.0),
        ("key_length", 0),
        ("key_length", 16),
        ("key_length", "5"),
        ("filler_length", 4),  # shorter than the key
        ("filler_length", None),
        ("noise", 1.1),
        ("noise", None),
        ("filler_weight", -0.1),
        ("filler_weight", float("nan")),
        ("filler_weight", float("inf")),
        ("filler_weight", "0.1"),
    ],
    ids=str,
)
def test_bad_tasks(name, value):
    refused(lambda: PassKeyTask(**{"block_size": 32, name: value}), name, value)
    PassKeyTask(12)


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "name, value, received",
    [
        ("batch_size", 0, 0),
        ("batch_size", 2.0, 2.0),
        ("blocks", 0, 0),
        ("blocks", "3", "3"),
        ("rng", 0, "int"),
        ("rng", None, "None"),
        ("keys", [[1, 2, 3]], (1, 3)),
        ("keys", [1, 2, 3, 4, 5], (5,)),
        ("keys", [[1, 2, 3, 4, 10]] * 2, 10),
        ("keys", [[1, 2, 3, 4, -1]] * 2, -1),
        ("keys", [[0.5, 2, 3, 4, 1]] * 2, "float64"),
        ("question_rate", 1.5, 1.5),
        ("question_rate", [0.5, 0.5, 0.5], (3,)),
        ("question_rate", [0.5, "0.5"], "'0.5'"),
        ("introduce", 1, 1),
        ("introduce", [True], (1,)),
        ("introduce", False, "keys=None"),
        ("introduce", [True, False], "keys=None"),
        ("answer_noise", -0.1, -0.1),
        ("answer_noise", None, None),
    ],
    ids=str,
)
def test_bad_examples(name, value, received):
    options = dict(batch_size=2, blocks=3, rng=RNG)
    refused(lambda: PassKeyTask(32).examples(**{**options, name: value}), name, received)


@pytest.mark.parametrize("name, value", [("batch_size", 0), ("blocks", 0), ("blocks", 1.0), ("rng", "0")], ids=str)
def test_bad_prompts(name, value):
    options = dict(batch_size=2, blocks=3, rng=RNG)
    for method in (PassKeyTask(32).prompt, PassKeyTask(32).prompt_blocks):
        refused(lambda method=method: method(**{**options, name: value}), name, value)


@pytest.mark.parametrize(
    "name, value, received",
    [
        ("batch_size", 0, 0),
        ("blocks", 0, 0),
        ("restart", -0.5, -0.5),
        ("restart", [0.5] * 3, (3,)),
        ("restart", None, None),
        ("seed", -1, -1),
        ("seed", None, None),
        ("question_rate", 2, 2),
        ("question_rate", [], (0,)),
        ("question_rate", [[0.5]], (1, 1)),
        ("answer_noise", 1.5, 1.5),
        ("answer_noise", [0.5], [0.5]),
        ("restate", 1.5, 1.5),
        ("restate", [0.5] * 3, (3,)),
        ("parts", 0, 0),
        ("parts", 2, 2),
        ("parts", 1.0, 1.0),
    ],
    ids=str,
)
def test_bad_streams(name, value, received):
    options = dict(batch_size=2, blocks=3, restart=0.5, seed=0)
    refused(lambda: PassKeyTask(32).stream(**{**options, name: value}), name, received)


def test_bad_keys_and_indices():
    task = PassKeyTask(32)
    refused(lambda: task.answers([[1, 2]]), "keys", (1, 2))
    refused(lambda: task.answers(3), "keys", "()")
    for index in (-1, 1.0, None):
        refused(lambda index=index: task.stream(2, 2, 0.5, 0)[index], "index", index)


def test_the_package_exports_its_data():
    assert "data" in keras_fam.__all__ and keras_fam.data.PassKeyTask is PassKeyTask
