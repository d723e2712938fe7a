"""Keys that are stated again and again, one or several at once: who is asked for what, and how answers are counted."""

import inspect
import re
import tracemalloc

import keras
import keras_hub
import numpy as np
import pytest
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_fam
from keras_fam.data import PassKeyBlock, PassKeyScore, PassKeyScores, PassKeyTask

pytestmark = pytest.mark.shared_out


def statements(task, row, markers):
    """`(place, name, digits)` of every marker in one row, in order."""
    for place in np.flatnonzero(np.isin(row, markers)):
        digits = row[place + 1 : place + task.statement_length] - task.digit_ids[0]
        yield int(place), int(np.flatnonzero(markers == row[place])[0]), digits.tolist()


def equal(left, right):
    keras.tree.map_structure(np.testing.assert_array_equal, left, right)


SIZES = dict(
    num_keys=st.integers(1, 3), key_length=st.integers(1, 3), room=st.integers(0, 5), seed=st.integers(0, 2**32)
)
DISTANCES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def make(num_keys, key_length, room, **options):
    return PassKeyTask((num_keys + 1) * (key_length + 1) + room, key_length, 7, num_keys=num_keys, **options)


# === Questions block by block ===


@settings(max_examples=60, deadline=None)
@given(**SIZES, distances=DISTANCES, restate=st.booleans())
def test_every_block_says_what_its_text_says(num_keys, key_length, room, seed, distances, restate):
    """The text is read token by token, and what each block says of each row is found again in it."""
    task, rows = make(num_keys, key_length, room), 3
    texts = task.question_blocks(rows, 30, np.random.default_rng(seed), distances, restate)
    told = [[[] for _ in range(num_keys)] for _ in range(rows)]  # (block, digits) of each row's and key's statements
    order = [[] for _ in range(rows)]  # (block, name)
    for number, block in enumerate(texts, start=1):
        assert block.blocks == number and block.token_ids.shape == (rows, task.block_size)
        assert block.token_ids.dtype == block.question_ids.dtype == "int32" and block.asked.dtype == bool
        for row, tokens in enumerate(block.token_ids):
            found = list(statements(task, tokens, task.key_ids))
            assert len(found) == num_keys if number == 1 else len(found) <= restate
            assert (tokens < task.filler_ids[0]).sum() == len(found) * task.statement_length  # no question, no overlap
            for place, name, digits in found:
                assert place + task.statement_length <= task.block_size
                told[row][name].append((number, digits))
                order[row].append((number, name))
            distances_now = [number - history[-1][0] + 1 for history in told[row]]
            assert block.asked[row] == any(distance in distances for distance in distances_now)
            name = int(np.flatnonzero(task.ask_ids == block.question_ids[row, 0])[0])
            history = told[row][name]
            assert block.keys[row].tolist() == history[-1][1]
            assert block.previous_keys[row].tolist() == (history[-2][1] if len(history) > 1 else [-1] * key_length)
            assert block.age[row] == history[-1][0] and block.distance[row] == distances_now[name]
            assert not block.asked[row] or block.distance[row] in distances
            later = [at for at, other in order[row] if other != name and at > history[-1][0]]
            assert block.others[row] == len(later)
    for row in order:
        numbers = sorted({number for number, _ in row})
        assert {late - early for early, late in zip(numbers, numbers[1:])} <= set(distances)
        assert numbers == [1] or restate
        assert not restate or numbers[-1] + max(distances) > 30  # the last statement's life is not over


def test_rows_are_independent_and_seeds_decide():
    task = PassKeyTask(16, 3, num_keys=2)
    one, same, other = (list(task.question_blocks(50, 40, np.random.default_rng(seed))) for seed in (1, 1, 2))
    equal(one, same)
    assert any((a.token_ids != b.token_ids).any() for a, b in zip(one, other))
    assert len({tuple(key) for key in one[0].keys}) > 40  # of 1,000
    restated = np.array([np.isin(block.token_ids, task.key_ids).sum(axis=1) for block in one[1:]])
    assert len({tuple(column) for column in restated.T}) > 10  # rows state at other times
    keys = [np.unique(block.keys[:, 0]) for block in one]
    assert all(len(digits) > 5 for digits in keys)
    rng = np.random.default_rng(1)
    texts = task.question_blocks(50, 40, rng)
    rng.random(10)  # what the caller draws meanwhile changes nothing
    equal(list(texts), one)
    assert (next(task.question_blocks(50, 1, rng)).keys != one[0].keys).any()


def test_statements_reach_every_place_and_every_distance():
    task = PassKeyTask(12, key_length=1, num_keys=2)
    texts = list(task.question_blocks(300, 60, np.random.default_rng(0), distances=(1, 2, 20)))
    for name in range(2):
        places = {int(at) for block in texts[1:] for at in np.nonzero(block.token_ids == task.key_ids[name])[1]}
        assert places == set(range(11))
        assert {int(at) for at in np.nonzero(texts[0].token_ids == task.key_ids[name])[1]} == set(range(11))
    first = {
        tuple(np.sign(np.diff([at for at, _, _ in sorted(statements(task, row, task.key_ids), key=lambda s: s[1])])))
        for row in texts[0].token_ids
    }
    assert first == {(1,), (-1,)}  # either key first
    asked = [(int(d), int(n)) for b in texts for d, n in zip(b.distance[b.asked], b.question_ids[b.asked, 0])]
    assert {distance for distance, _ in asked} == {1, 2, 20}
    shares = np.mean([number == task.ask_ids[0] for _, number in asked])
    assert 0.45 < shares < 0.55


def test_a_key_is_held_over_thousands_of_blocks_without_the_text():
    """5,000 blocks, of which never more than a few are there."""
    task = PassKeyTask(16)
    prompts, keys = task.prompt_blocks(20, 5000, np.random.default_rng(0))
    texts = task.question_blocks(20, 5000, np.random.default_rng(0), distances=(2, 5000), restate=False)
    for pieces in (prompts, texts):
        tracemalloc.start()
        try:
            count = sum(1 for _ in pieces)
            assert tracemalloc.get_traced_memory()[1] < 100_000 < 5000 * 20 * 16 * 4 / 50
        finally:
            tracemalloc.stop()
        assert count in (5000, 5001)
    *_, last = task.question_blocks(20, 5000, np.random.default_rng(0), distances=(2, 5000), restate=False)
    first = next(task.question_blocks(20, 5000, np.random.default_rng(0), distances=(2, 5000), restate=False))
    assert last.asked.all() and (last.distance == 5000).all() and (last.age == 1).all() and last.blocks == 5000
    np.testing.assert_array_equal(last.keys, first.keys)
    assert keys.shape == (20, 5)


# === Several keys ===


def test_token_ids_of_several_keys():
    for num_keys in (1, 2, 5):
        task = PassKeyTask(60, num_keys=num_keys)
        markers = [*task.key_ids, *task.ask_ids]
        named = [task.padding_id, *task.digit_ids, *markers, *task.filler_ids]
        assert sorted(named) == list(range(task.vocabulary_size)) and len(task.key_ids) == num_keys
        assert (task.key_id, task.ask_id) == (11, 12) == (task.key_ids[0], task.ask_ids[0])


@settings(max_examples=60, deadline=None)
@given(**SIZES, blocks=st.integers(1, 4), rate=st.sampled_from([0.0, 0.5, 1.0]))
def test_examples_of_several_keys(num_keys, key_length, room, seed, blocks, rate):
    task = make(num_keys, key_length, room, filler_weight=0.25)
    rng = np.random.default_rng(seed)
    keys = rng.integers(10, size=(3, num_keys, key_length))
    introduce = [True, True, False]
    given_keys = keys[:, 0] if num_keys == 1 else keys
    ids, targets, weights = task.examples(3, blocks, rng, given_keys, rate, introduce)
    np.testing.assert_array_equal(targets, np.pad(ids[:, 1:], ((0, 0), (0, 1))))
    expected = np.where(targets >= task.filler_ids[0], np.float32(0.25), np.float32(0))
    for row in range(3):
        told = list(statements(task, ids[row], task.key_ids))
        assert sorted(name for _, name, _ in told) == list(range(num_keys)) * introduce[row]
        questions = list(statements(task, ids[row], task.ask_ids))
        assert questions[-1][0] == blocks * task.block_size - task.statement_length
        for place, name, digits in told + questions:
            assert digits == keys[row, name].tolist()
            assert place % task.block_size + task.statement_length <= task.block_size
        assert all(place < task.block_size for place, _, _ in told)
        for place, _, _ in questions:
            expected[row, place : place + key_length] = 1.0
        asked = {place // task.block_size for place, _, _ in questions[:-1]}
        assert rate == 0.5 or asked == {b for b in range(introduce[row], blocks) if rate}
        written = (len(told) + len(questions)) * task.statement_length
        assert (ids[row] < task.filler_ids[0]).sum() == written  # none overlap
    np.testing.assert_array_equal(weights, expected)


@settings(max_examples=30, deadline=None)
@given(**SIZES, blocks=st.integers(1, 4))
def test_prompts_of_several_keys(num_keys, key_length, room, seed, blocks):
    task = make(num_keys, key_length, room)
    ids, keys = task.prompt(4, blocks, np.random.default_rng(seed))
    for row, key in zip(ids, keys):
        told = {name: digits for _, name, digits in statements(task, row, task.key_ids)}
        [asked] = np.flatnonzero(task.ask_ids == row[-1])
        assert len(told) == num_keys and told[int(asked)] == key.tolist()


def test_questions_ask_for_every_key():
    task = PassKeyTask(12, key_length=1, num_keys=3)
    ids, _, _ = task.examples(100, 10, np.random.default_rng(0), question_rate=1.0)
    counts = [(ids == marker).sum() for marker in task.ask_ids]
    assert min(counts) > 250 and sum(counts) == 1000
    ends = task.prompt(300, 1, np.random.default_rng(0))[0][:, -1]
    assert min((ends == marker).sum() for marker in task.ask_ids) > 70


@settings(max_examples=40, deadline=None)
@given(
    **SIZES,
    restart=st.sampled_from([0.0, 0.3, [0.0, 0.5, 1.0]]),
    restate=st.sampled_from([0.0, 0.5, [1.0, 0.0, 0.5]]),
    order=st.permutations(range(6)),
)
def test_streams_of_several_keys(num_keys, key_length, room, seed, restart, restate, order):
    """Rows that restart state all keys, rows that go on at most one; questions ask for what was stated last."""
    task = make(num_keys, key_length, room)
    stream = task.stream(3, 3, restart, seed, question_rate=0.5, restate=restate)
    batches = {index: stream[index] for index in order}
    keys = [[None] * num_keys for _ in range(3)]
    for index in range(6):
        inputs, _, weights = batches[index]
        equal(batches[index], task.stream(3, 3, restart, seed, question_rate=0.5, restate=restate)[index])
        for row, ids in enumerate(inputs["token_ids"]):
            told = list(statements(task, ids, task.key_ids))
            if inputs["document_start"][row]:
                assert len(told) == num_keys
            elif np.broadcast_to(restate, 3)[row] in (0.0, 1.0):
                assert len(told) == np.broadcast_to(restate, 3)[row]
            else:
                assert len(told) <= 1
            questions = list(statements(task, ids, task.ask_ids))
            for place, name, digits in sorted(told + questions):
                if ids[place] in task.key_ids:
                    keys[row][name] = digits
                assert digits == keys[row][name]
            assert weights[row].sum() == len(questions) * key_length > 0


@settings(max_examples=20, deadline=None)
@given(**SIZES, index=st.integers(1, 9))
def test_filler_goes_on_from_batch_to_batch(num_keys, key_length, room, seed, index):
    """Without noise the filler goes round its sentence, and on in the next batch, unless a key is stated there."""
    task = make(num_keys, key_length, room, noise=0.0)
    stream = task.stream(5, 2, 0.1, seed, restate=0.4)
    phases = []
    for ids in (stream[index - 1][0]["token_ids"], stream[index][0]["token_ids"]):
        filler = ids >= task.filler_ids[0]
        places = (index - 1 + len(phases)) * ids.shape[1] + np.arange(ids.shape[1])
        rounds = (ids - task.filler_ids[0] - places) % task.filler_length
        assert all(len(set(row[found])) <= 1 for row, found in zip(rounds, filler))
        phases.append([row[found][0] if found.any() else None for row, found in zip(rounds, filler)])
    for before, after, row in zip(*phases, ids):
        assert np.isin(row, task.key_ids).any() or None in (before, after) or before == after


def test_a_random_key_is_stated_anew():
    task = PassKeyTask(12, key_length=1, num_keys=2)
    ids = task.stream(400, 1, 0.0, 0, restate=1.0)[3][0]["token_ids"]
    counts = [(ids == marker).sum() for marker in task.key_ids]
    assert sum(counts) == 400 and 150 < counts[0] < 250


def test_batches_far_ahead():
    """A row that never states again still knows its key at once."""
    task = PassKeyTask(12, key_length=1, num_keys=2)
    stream = task.stream(3, 2, 0.0, 0)
    keys = {
        tuple(sorted((name, *d) for _, name, d in statements(task, row, task.key_ids)))
        for row in stream[0][0]["token_ids"]
    }
    for index in (10**6, 2**31 - 1):
        for row in stream[index][0]["token_ids"]:
            questions = {(name, *digits) for _, name, digits in statements(task, row, task.ask_ids)}
            assert any(questions <= set(told) for told in keys)


def test_keys_of_another_shape():
    rng = np.random.default_rng(0)
    task = PassKeyTask(32, key_length=3, num_keys=2)
    for shape in ((4, 3), (4, 3, 2), (3, 2, 3), (4, 6)):
        refused(lambda shape=shape: task.examples(4, 2, rng, np.zeros(shape, int)), "`keys`", shape, "num_keys")
    refused(lambda: task.answers(np.zeros((2, 2, 3), int)), "`keys`", (2, 2, 3))
    refused(lambda: PassKeyTask(23, key_length=7, num_keys=2), "`block_size`", 24, "num_keys=2")
    assert PassKeyTask(24, key_length=7, num_keys=2).num_keys == 2


# === Scores ===


def block_of(asked, keys, previous, distance, age):
    rows = len(asked)
    return PassKeyBlock(
        np.zeros((rows, 4), "int32"),
        np.array(asked),
        np.zeros((rows, 1), "int32"),
        np.array(keys),
        np.array(previous),
        np.array(distance),
        np.array(age),
        np.zeros(rows, int),
        9,
    )


def test_scores_by_hand():
    task = PassKeyTask(16, key_length=2)
    scores = PassKeyScores(task, distances=(2, 10), ages=(1, 5))
    keys = [[1, 2], [3, 4], [5, 6], [7, 8], [9, 9], [0, 1]]
    previous = [[-1, -1], [5, 5], [6, 6], [1, 1], [2, 2], [0, 1]]
    block = block_of([True] * 5 + [False], keys, previous, [2, 9, 10, 500, 1, 2], [1, 4, 5, 700, 1, 1])
    answers = [[1, 2], [5, 5], [5, 7], [7, 8], [9, 9], [0, 1]]
    scores.add(block, np.array(answers) + 1)
    assert scores.table() == [PassKeyScore(1, 2, 2, 0.5, 0.5), PassKeyScore(5, 10, 2, 0.5, 0.0)]
    scores.add(block, np.array(keys) + 1)
    assert scores.table() == [PassKeyScore(1, 2, 4, 0.75, 0.25), PassKeyScore(5, 10, 4, 0.75, 0.0)]
    assert PassKeyScores(task).table() == []


def test_an_answer_that_is_right_and_old_is_right():
    task = PassKeyTask(16, key_length=1)
    scores = PassKeyScores(task)
    scores.add(block_of([True], [[3]], [[3]], [2], [1]), [[4]])
    assert scores.table() == [PassKeyScore(1, 2, 1, 1.0, 0.0)]


def test_scores_of_an_evaluation():
    """Who always answers right, who always lags behind, and who says nothing."""
    task = PassKeyTask(16, key_length=3)
    right, late, silent = (PassKeyScores(task, (2, 5, 20), (1, 50, 100)) for _ in range(3))
    asked = 0
    for block in task.question_blocks(20, 200, np.random.default_rng(0), distances=(2, 5, 20)):
        asked += block.asked.sum()
        right.add(block, task.answers(block.keys))
        late.add(block, task.answers(np.where(block.previous_keys < 0, 9 - block.keys, block.previous_keys)))
        silent.add(block, np.zeros_like(block.keys))
    assert [(score.age, score.distance) for score in right.table()] == [
        (a, d) for a in (1, 50, 100) for d in (2, 5, 20)
    ]
    assert sum(score.count for score in right.table()) == asked > 500
    assert all(score.right == 1.0 and score.previous == 0.0 for score in right.table())
    assert all(score.previous > 0.98 for score in late.table() if score.age > 1)
    assert all(score.right == score.previous == 0.0 for score in silent.table())


# === Docstrings ===


def examples():
    for item in (getattr(keras_fam.data, name) for name in keras_fam.data.__all__):
        for name, method in inspect.getmembers(item, callable) if inspect.isclass(item) else ():
            if name in vars(item) and not name.startswith("_") and "```python" in (inspect.getdoc(method) or ""):
                yield pytest.param(inspect.getdoc(method), id=f"{item.__name__}.{name}")


def test_methods_with_examples_are_found():
    found = {parameter.id for parameter in examples()}
    assert {"PassKeyTask.question_blocks", "PassKeyTask.stream", "DocumentStream.both"} <= found


@pytest.mark.parametrize("documentation", examples())
def test_docstring_example(documentation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"keras": keras, "keras_fam": keras_fam, "keras_hub": keras_hub, "np": np}
    for code in re.findall(r"```python\n(.*?)```", documentation, re.DOTALL):
        if "lm." in code:
            stock = keras_hub.models.GPT2Backbone(
                vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, max_sequence_length=64
            )
            names["lm"] = keras_fam.FAMCausalLM(keras_fam.FAMBackbone(stock, 32, memory_segments=1, fam_length=2))
        exec(code.replace("blocks=520", "blocks=2"), names)


def test_only_public_names_are_listed():
    assert sorted(keras_fam.data.__all__) == dir(keras_fam.data)
    assert all(inspect.getdoc(getattr(keras_fam.data, name)) for name in dir(keras_fam.data))
