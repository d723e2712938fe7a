"""PassKey texts in token form: where statements and questions lie, what counts, and rows that go on."""

from multiprocessing.pool import ThreadPool

import keras
import numpy as np
import pytest
from helpers.order import OrderSpy, order_of
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_fam
from keras_fam.data import PassKeyTask

pytestmark = pytest.mark.shared_out


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


# === Streams ===


@settings(max_examples=30, deadline=None)
@given(
    key_length=SIZES["key_length"],
    blocks=st.integers(1, 3),
    rate=SIZES["rate"],
    restart=st.sampled_from([0.0, 0.3, 1.0, [0.0, 0.5, 1.0]]),
    restate=st.sampled_from([0.0, 0.4, [1.0, 0.0, 0.5]]),
    seed=SIZES["seed"],
)
def test_rows_of_a_stream_go_on(key_length, blocks, rate, restart, restate, seed):
    task = PassKeyTask(2 * key_length + 8, key_length, filler_length=7, noise=0.0)
    stream = task.stream(3, blocks, restart, seed, question_rate=rate, restate=restate)
    keys, phases = [None] * 3, [None] * 3
    length, starts, stated = blocks * task.block_size, [], []
    for index in range(6):
        inputs, targets, weights = stream[index]
        ids, start = inputs["token_ids"], inputs["document_start"]
        assert start.dtype == "int32" and inputs["padding_mask"].dtype == "int32" and inputs["padding_mask"].all()
        assert inputs["padding_mask"].shape == ids.shape == targets.shape == weights.shape == (3, length)
        starts.append(start)
        for row, phase in enumerate(check_filler(task, ids)):
            statements = list(marked(task, ids[row], task.key_id))
            stated.append((row, len(statements)))
            assert start[row] <= len(statements) <= 1
            if statements:
                phases[row] = phase - index * length
            assert (phases[row] + index * length - phase) % 7 == 0
            questions = list(marked(task, ids[row], task.ask_id))
            for place, digits in sorted(statements + questions, key=lambda each: each[0]):
                if ids[row, place] == task.key_id:
                    keys[row] = list(digits)
                assert list(digits) == keys[row]
            assert weights[row].sum() == len(questions) * key_length
    starts = np.array(starts)
    assert starts[0].all()
    for row, probability in enumerate(np.broadcast_to(restart, 3)):
        if probability in (0.0, 1.0):
            assert (starts[1:, row] == probability).all()
        if np.broadcast_to(restate, 3)[row] in (0.0, 1.0):
            expected = np.maximum(starts[:, row], np.broadcast_to(restate, 3)[row])
            np.testing.assert_array_equal([count for at, count in stated if at == row], expected)


def test_a_new_key_is_stated_in_any_block_but_the_last():
    """Two statements are as near as two blocks, and questions before one ask for the key before it."""
    task = PassKeyTask(12, key_length=3)
    stream = task.stream(300, 4, 0.0, seed=0, question_rate=1.0, restate=1.0)
    rows, keys, stated, old = range(300), None, np.zeros((3, 300), int), 0
    for index in range(3):
        ids = stream[index][0]["token_ids"]
        [places] = zip(*(marked(task, row, task.key_id) for row in ids))
        before, keys = keys, [list(digits) for _, digits in places]
        stated[index] = [4 * index + place // 12 for place, _ in places]
        for row in rows:
            for place, digits in marked(task, ids[row], task.ask_id):
                early = place < places[row][0]
                old += early
                assert list(digits) == (before if early else keys)[row]
    assert not stated[0].any() and set(stated[1]) == {4, 5, 6} and min(np.bincount(stated[1])[4:]) > 70
    assert set(stated[2] - stated[1]) == {2, 3, 4, 5, 6} and old > 400


def test_a_batch_of_parts_is_batches_in_a_row():
    """Rows that restart do so in the first part; else the parts are what a stream of shorter batches has."""
    task, options = PassKeyTask(12, key_length=3), dict(seed=3, question_rate=[0.0, 0.5], restate=0.6)
    short, long = task.stream(8, 2, 0.0, **options), task.stream(8, 6, 0.0, **options, parts=3)
    for index in range(4):
        parts = [short[3 * index + part] for part in range(3)]
        inputs, targets, weights = long[index]
        equal(inputs["token_ids"], np.concatenate([part[0]["token_ids"] for part in parts], axis=1))
        equal(targets, np.concatenate([part[1] for part in parts], axis=1))
        equal(weights, np.concatenate([part[2] for part in parts], axis=1))
        equal(inputs["document_start"], parts[0][0]["document_start"])
    long = task.stream(300, 6, 0.5, **options, parts=3)
    keys = None
    for index in range(3):
        inputs, _, _ = long[index]
        restarts, counts = inputs["document_start"], []
        assert 100 < restarts.sum() < 200 or index == 0
        told = [list(marked(task, ids, task.key_id)) for ids in inputs["token_ids"]]
        for row, statements in enumerate(told):
            counts.append(len(statements))
            at = [place // 12 for place, _ in statements]
            assert len({place // 2 for place in at}) == len(at)  # one in a part
            assert not restarts[row] or at[0] == 0
        assert set(counts) == {restarts.min(), 1, 2, 3}
        keys = keys or [None] * 300
        for row, ids in enumerate(inputs["token_ids"]):
            for place, digits in sorted(told[row] + list(marked(task, ids, task.ask_id)), key=lambda each: each[0]):
                keys[row] = list(digits) if ids[place] == task.key_id else keys[row]
                assert list(digits) == keys[row]


@settings(max_examples=20, deadline=None)
@given(order=st.lists(st.integers(0, 30), min_size=2, max_size=8), restart=st.sampled_from([0.0, 0.2, 0.9]))
def test_a_batch_depends_on_its_index_alone(order, restart):
    task, options = PassKeyTask(12), dict(seed=5, question_rate=[0.0, 0.5, 1.0], restate=0.1)
    stream = task.stream(3, 2, restart, **options)
    for index in order:
        equal(stream[index], task.stream(3, 2, restart, **options)[index])


def test_workers_do_not_matter():
    task = PassKeyTask(12)
    expected = [batch for _, batch in zip(range(40), task.stream(2, 2, 0.2, seed=0))]
    stream = task.stream(2, 2, 0.2, seed=0)
    with ThreadPool(4) as pool:
        equal(pool.map(stream.__getitem__, range(40), chunksize=1), expected)


def test_restarts_seeds_and_rates():
    task = PassKeyTask(12, key_length=2)
    stream = task.stream(200, 8, [0.1] * 100 + [0.6] * 100, seed=1, question_rate=[0.0, 1.0])
    inputs, _, _ = stream[3]
    restarts = inputs["document_start"]
    assert 2 < restarts[:100].sum() < 25 and 40 < restarts[100:].sum() < 80
    asked = (inputs["token_ids"] == task.ask_id).sum(axis=1)
    assert set(asked) == {1, 8, 9} and (asked[restarts == 1] < 9).all()  # all or nothing, drawn per row
    other = task.stream(200, 8, 0.1, seed=2)[3][0]
    assert (other["token_ids"] != inputs["token_ids"]).any()
    assert (stream[4][0]["token_ids"] != inputs["token_ids"]).any()


@pytest.mark.parametrize("answer_noise", [0.0, 0.5, 1.0])
def test_answer_noise(answer_noise):
    """Targets and the statement keep the key; of the digits that are read in answers, a share is drawn anew."""
    task = PassKeyTask(32)
    inputs, targets, weights = task.stream(200, 3, 0.5, seed=3, question_rate=0.5, answer_noise=answer_noise)[1]
    clean = task.stream(200, 3, 0.5, seed=3, question_rate=0.5)[1]
    np.testing.assert_array_equal(targets, clean[1])
    np.testing.assert_array_equal(weights, clean[2])
    answers = np.zeros(weights.shape, bool)
    answers[:, 1:] = weights[:, :-1] == 1
    read, right = inputs["token_ids"], clean[0]["token_ids"]
    np.testing.assert_array_equal(read[~answers], right[~answers])
    assert np.isin(read[answers], task.digit_ids).all()
    assert abs((read != right)[answers].mean() - 0.9 * answer_noise) < 0.03
    rng = np.random.default_rng(0)
    read, targets, weights = task.examples(200, 3, rng, question_rate=0.5, answer_noise=answer_noise)
    assert abs((read[:, 1:] != targets[:, :-1])[weights[:, :-1] == 1].mean() - 0.9 * answer_noise) < 0.05


def test_fit_takes_a_stream_in_order():
    """Two epochs of three batches: the second goes on where the first one ended."""
    task = PassKeyTask(12)
    stream = task.stream(2, 2, 0.5, seed=0)
    model = OrderSpy.model(task.vocabulary_size)
    with pytest.warns(UserWarning, match="shuffle=True"):
        model.fit(stream, steps_per_epoch=3, epochs=2, verbose=0)
    assert model.get_layer("spy").order() == order_of(batch for _, batch in zip(range(6), stream))


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
