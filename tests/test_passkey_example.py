"""The lessons of `examples/passkey_training.py`: changed memory reaches the next step, an interrupted run goes on."""

import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.models import fam_backbone, numpy

import keras_fam

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import passkey_evaluation  # noqa: E402  (its folder is added above)
import passkey_training  # noqa: E402  (the same)

TASK = keras_fam.data.PassKeyTask(block_size=8, key_length=2, filler_length=6)
CALLBACKS = {
    "shorter": lambda: passkey_training.ShorterMemory(4.0),
    "disturbed": lambda: passkey_training.DisturbedMemory(0.4, seed=0),
}


def language_model():
    stock = {"num_layers": 1, "vocabulary_size": TASK.vocabulary_size}
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma", block_size=8, stateful_batch_size=2, stock=stock))
    lm.compile(keras.optimizers.SGD(0.0), jit_compile=keras.config.backend() == "jax")
    return lm


def carried_fam(lm):
    return numpy(lm.backbone.transformer_layers[0].carried_state[0])


def step_by_step(stream, callback=None):
    """Two steps by hand, `callback` before the second; what FAM held before it, after the callback, and in the end."""
    lm = language_model()
    lm.train_on_batch(*stream[0])
    held = [carried_fam(lm)]
    if callback is not None:
        callback.set_model(lm)
        callback.on_epoch_begin(0)
        callback.on_train_batch_begin(1)
    held.append(carried_fam(lm))
    lm.train_on_batch(*stream[1])
    return [*held, carried_fam(lm)]


@pytest.mark.parametrize("kind", CALLBACKS)
def test_fit_goes_on_from_changed_memory(kind):
    stream = TASK.stream(2, 2, 0.0, seed=0)
    before, after, end = step_by_step(stream, CALLBACKS[kind]())
    *_, untouched = step_by_step(stream)
    lengths, moved = (np.linalg.norm(x, axis=-1) for x in (before, after - before))
    if kind == "shorter":
        np.testing.assert_allclose(after, before / 4, rtol=1e-6)
    else:
        share = moved / lengths
        assert 0 < share.min() and share.max() < 2 * 0.4  # A row's noise is 0.4 of the length at most, on average.
        assert share.mean(axis=1).std() > 0.01  # Rows differ in it.
    assert np.abs(end - untouched).max() > 1e-2
    lm = language_model()
    lm.fit(stream, steps_per_epoch=2, shuffle=False, verbose=0, callbacks=[CALLBACKS[kind]()])
    np.testing.assert_allclose(carried_fam(lm), end, rtol=1e-4, atol=1e-5 * np.abs(end).max())


def test_spread_tells_how_far_texts_differ_in_memory():
    lm, rng = language_model(), np.random.default_rng(0)
    text = rng.integers(1, TASK.vocabulary_size, (4, 16)).astype("int32")
    for token_ids, least, most in ((np.repeat(text[:1], 4, axis=0), 0.0, 1e-3), (text, 0.05, 1.0)):
        _, state = lm.stream(token_ids, lm.initial_state(4))
        (found,) = passkey_evaluation.spread(state)
        assert least <= found <= most
    fam = numpy(state.layers[0].fam)
    fam = fam / np.linalg.norm(fam, axis=-1, keepdims=True)
    squares = [np.sum((one - fam.mean(axis=0)) ** 2, axis=-1) for one in fam]
    np.testing.assert_allclose(found, np.sqrt(np.mean(squares)), rtol=1e-5)


def test_wrong_digits_are_told_by_where_a_statement_began():
    """Of two keys; an answer misses the second digit of the second key whenever that began at place 3 of its block."""
    task = keras_fam.data.PassKeyTask(block_size=9, key_length=2, filler_length=6, num_keys=2)
    counts, before, asked = passkey_evaluation.WrongByPlace(task, 2), None, 0
    for block in task.question_blocks(8, 300, np.random.default_rng(0), (2, 5), restate=True):
        if before is not None:
            tokens = task.answers(block.keys)
            missed = (before[:, 3] == task.key_ids[1]) & (block.question_ids[:, 0] == task.ask_ids[1])
            tokens[missed, 1] = task.filler_ids[0]
            counts.add(block, before, tokens)
            asked += np.sum(block.asked & (block.distance == 2))
        before = block.token_ids
    assert counts.questions.shape == (2, 7) and counts.questions.sum() == asked and counts.questions.min() > 0
    wrong = np.zeros((2, 2, 7), int)
    wrong[1, 1, 3] = counts.questions[1, 3]
    np.testing.assert_array_equal(counts.wrong, wrong)


def test_the_block_that_stated_what_is_asked():
    """`asked` gives it for questions at the shortest distance, here 3 blocks."""
    given, checked = types.SimpleNamespace(task=TASK, keys=4), 0
    for block, stated, _, tokens in passkey_evaluation.asked(language_model(), given, 40, (3, 5), 0, restate=True):
        rows = block.asked & (block.distance == 3)
        for line, key in zip(stated[rows], TASK.answers(block.keys)[rows]):
            (place,) = np.flatnonzero(line == TASK.key_id)
            np.testing.assert_array_equal(line[place + 1 : place + 1 + TASK.key_length], key)
            checked += 1
        assert tokens.shape == (4, TASK.key_length)
    assert checked > 10


def options(**changed):
    values = dict(task=TASK, layers=1, heads=2, hidden_dim=8, intermediate_dim=16, block_size=8, fam_length=2, span=1.0)
    values |= dict(batch_size=4, blocks=16, restart=[0.1], restate=[0.5], sparse=[0.4], disturb=0.4)
    values |= dict(training="rewritten", steps=9, lesson_steps=1, learning_rate=1e-2, beta_2=0.98, weight_decay=0.004)
    return types.SimpleNamespace(**values | dict(xla=False, shorten=1.0) | changed)


def trained(folder, **changed):
    keras.utils.set_random_seed(0)
    return passkey_training.train("fam", options(**changed), 0, folder)


def shorter(lessons):
    if isinstance(lessons, passkey_training.Lesson):
        return lessons._replace(blocks=2)
    return tuple(shorter(lesson) for lesson in lessons)


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="numbers of lessons and rates: no backend has a part in them"
)
@pytest.mark.parametrize(
    ("num_keys", "steps", "read", "pieces"),
    [(1, 7920, (8, 8, 8), (8, 32, 2)), (2, 9000, (2, 4, 8, 8, 8), (2, 2, 2, 32, 2))],
)
def test_the_last_lessons(num_keys, steps, read, pieces):
    """They share the steps, longer pieces read as many tokens a step as those of 8 blocks, and the rate falls to zero.

    `read` are the blocks that a step reads if all rows share them, `pieces` those in which a row states a key.
    """
    task = keras_fam.data.PassKeyTask(block_size=8, key_length=1, filler_length=6, num_keys=num_keys)
    given = options(task=task, batch_size=64, blocks=32, steps=steps)
    plan = [lesson for lesson, _ in passkey_training.lessons(given, 0)]
    last = plan[-len(read) :]
    began = 0
    for lesson in plan:
        end = passkey_training.latest_end(lesson, given, began)
        assert end > began
        rate = passkey_training.lesson_rate(lesson, given, began).schedule
        rates = [rate(epoch) for epoch in range(began, end)]
        if lesson in last:
            assert rates[-1] < 0.02 * max(rates) and max(rates) == max(rates[:4])
        else:
            assert rates[-1] == max(rates)
        began = end
    assert began == steps // passkey_training.EPOCH
    assert tuple(lesson.blocks // lesson.parts for lesson in last) == pieces
    assert [lesson.blocks * (lesson.rows or 64) for lesson in last] == [64 * blocks for blocks in read]


def test_rows_that_count_the_same():
    *_, (lesson, stream) = passkey_training.lessons(options(batch_size=64, blocks=32), 0)
    inputs, targets, weights = stream[3]
    again, aims, evenly = passkey_training.GoingOn(stream, 1, lesson.evenly)[2]
    np.testing.assert_array_equal(again["token_ids"], inputs["token_ids"])
    np.testing.assert_array_equal(aims, targets)
    np.testing.assert_array_equal(evenly > 0, weights > 0)
    np.testing.assert_allclose(evenly.sum(axis=1), weights.sum() / len(weights), rtol=1e-5)
    assert weights.sum(axis=1).max() > 8 * weights.sum(axis=1).min() and evenly.dtype == weights.dtype
    np.testing.assert_array_equal(passkey_training.even(np.zeros((2, 3), "float32")), np.zeros((2, 3)))


def test_the_best_epoch_is_kept(tmp_path):
    """Also by a run that goes on after it."""
    lm, stream = language_model(), TASK.stream(2, 2, 0.0, seed=0)
    weights, log = tmp_path / "best.weights.h5", tmp_path / "log.csv"
    rates = [0.0, 100.0, 0.0]  # The second epoch ruins the model.
    good = [numpy(v) for v in lm.trainable_variables]
    for begin, end in ((0, 2), (2, 3)):
        callbacks = passkey_training.best_epoch(weights, log)
        callbacks.append(keras.callbacks.LearningRateScheduler(lambda epoch, _: rates[epoch]))
        lm.fit(
            stream,
            steps_per_epoch=2,
            initial_epoch=begin,
            epochs=end,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
    assert len(log.read_text().splitlines()) == 4
    assert max(np.abs(numpy(v) - one).max() for v, one in zip(lm.trainable_variables, good)) > 1.0
    lm.load_weights(weights)
    for variable, one in zip(lm.trainable_variables, good):
        np.testing.assert_array_equal(numpy(variable), one)


@pytest.mark.shared_out
@pytest.mark.parametrize("epochs", [(3, 22), (12, 17)])
def test_an_interrupted_run_goes_on(epochs, tmp_path, monkeypatch):
    """In the middle of a lesson and between two: the first six have two steps each, others begin after 12, 14, 19."""
    monkeypatch.setattr(passkey_training, "EPOCH", 1)
    monkeypatch.setattr(passkey_training, "WARMUP", 3)
    # Pieces of 2 blocks in place of 2 to 8, and of 4 in the last lessons: there is less to compile.
    first, *others = shorter(passkey_training.REWRITTEN)
    monkeypatch.setattr(passkey_training, "REWRITTEN", (first._replace(clip=1e-4), *others))
    monkeypatch.setattr(passkey_training, "AGED", shorter(passkey_training.AGED))
    lessons = dict(lesson_steps=2, steps=32, blocks=4)
    for folder in ("whole", "interrupted"):
        (tmp_path / folder).mkdir()
    whole = trained(tmp_path / "whole", **lessons)
    assert whole.backbone.stateful_batch_size == 2 and whole.optimizer.amsgrad

    met = []

    def interrupted(callback, begins, logs=None):
        if begins in epochs and begins not in met:
            met.append(begins)
            raise KeyboardInterrupt

    for _ in epochs:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(passkey_training.Progress, "on_epoch_begin", interrupted)
            trained(tmp_path / "interrupted", **lessons)
    resumed = trained(tmp_path / "interrupted", **lessons)
    for one, other in zip(whole.trainable_weights, resumed.trainable_weights, strict=True):
        np.testing.assert_allclose(numpy(other), numpy(one), rtol=1e-5, atol=1e-6)
