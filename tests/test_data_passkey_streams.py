"""PassKey texts for training with carried state: rows that go on from batch to batch, restart, and state keys anew."""

from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
from helpers.order import OrderSpy, order_of
from helpers.passkey import SIZES, check_filler, equal, marked
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fam.data import PassKeyTask

pytestmark = pytest.mark.shared_out


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
    """Rows that restart do so in the first part, and the last alone ends in a question; else the same texts."""
    task, options = PassKeyTask(12, key_length=3), dict(seed=3, question_rate=0.5, restate=0.6)
    short, long = task.stream(8, 2, 0.0, **options), task.stream(8, 6, 0.0, **options, parts=3)
    ends = np.arange(72) % 24 >= 24 - task.statement_length
    ends[-task.statement_length :] = False
    for index in range(4):
        parts = [short[3 * index + part] for part in range(3)]
        inputs, targets, weights = long[index]
        ids = np.concatenate([part[0]["token_ids"] for part in parts], axis=1)
        equal(inputs["token_ids"][:, ~ends], ids[:, ~ends])
        assert not np.isin(inputs["token_ids"][:, ends], [task.ask_id, *task.digit_ids]).any()
        same = ~(ends | np.roll(ends, -1))  # Targets are a token ahead.
        equal(targets[:, same], np.concatenate([part[1] for part in parts], axis=1)[:, same])
        equal(weights[:, same], np.concatenate([part[2] for part in parts], axis=1)[:, same])
        assert (weights[:, ends] == task.filler_weight).all()
        equal(inputs["document_start"], parts[0][0]["document_start"])


def test_a_batch_of_parts_draws_one_question_rate():
    task = PassKeyTask(12, key_length=3)
    inputs, _, _ = task.stream(300, 6, 0.0, seed=3, question_rate=[0.0, 1.0], restate=0.6, parts=3)[1]
    asked, stated = (
        [sum(1 for _ in marked(task, ids, key)) for ids in inputs["token_ids"]] for key in (task.ask_id, task.key_id)
    )
    rare = np.equal(asked, 1)
    assert 100 < rare.sum() < 200
    equal(np.add(asked, stated)[~rare], np.full((~rare).sum(), 7))  # One in each block, and the final one.


def test_rows_go_on_from_part_to_part():
    task, options = PassKeyTask(12, key_length=3), dict(seed=3, question_rate=[0.0, 0.5], restate=0.6)
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
