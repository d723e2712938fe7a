"""Evaluations of models: what is read and said behind a text is that of full passes."""

import json

import numpy as np
import pytest
from helpers.evaluation import evaluated_lm
from helpers.models import inputs, numpy
from helpers.presets import TEXT

import keras_fam
from keras_fam import evaluation
from keras_fam.evaluation.reading import generate_behind, nats_behind, read_context
from keras_fam.models import reading

pytestmark = pytest.mark.shared_out

TOLERANCE = dict(rtol=1e-4, atol=1e-4)
LONG, PLACES = TEXT[0], 48  # Many blocks; all full passes are as long, so that one program is compiled.


@pytest.fixture(scope="module")
def lm():
    return evaluated_lm()


def ids_of(lm, text):
    tokenizer = lm.preprocessor.tokenizer
    return [tokenizer.start_token_id, *np.asarray(tokenizer(text)).tolist()]


def logs_of(lm, ids):
    """Log probabilities of the next token, of one full pass."""
    padded, mask = np.zeros((2, 1, PLACES), "int32")
    padded[0, : len(ids)], mask[0, : len(ids)] = ids, 1
    logits = numpy(lm.predict_on_batch(inputs(padded, mask)))[0, : len(ids)].astype("float64")
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("text", ["a", LONG])
def test_what_is_generated_and_likely_behind_a_text(lm, text, monkeypatch):
    """As many tokens of the text are read at once as there are, in blocks; a full pass is the truth."""
    monkeypatch.setattr(reading, "_CHARACTERS", 32)
    ids = ids_of(lm, text)
    made = generate_behind(lm, text, 2, stop=False)
    whole = list(ids)
    for token in made:
        assert token == int(logs_of(lm, whole)[-1].argmax())
        whole.append(token)
    assert len(made) == 2
    state, last = read_context(lm, text)
    assert last == ids[-1] and state.tokens == [len(ids) - 1]
    for choice in ([5], [7, 9, 4, 11, 6]):
        logs = logs_of(lm, [*ids, *choice])[len(ids) - 1 : -1]
        np.testing.assert_allclose(
            nats_behind(lm, state, last, choice), -logs[np.arange(len(choice)), choice].sum(), **TOLERANCE
        )


def test_next_tokens(lm, tmp_path):
    """A document of many blocks and one that is shorter than a block, page by page."""
    for name, text in (("long", LONG), ("short", "a b")):
        (tmp_path / f"{name}.txt").write_text(text)
    task = evaluation.NextTokens("books", tmp_path, page=10)
    for example, text in zip(task.examples(), (LONG, "a b"), strict=True):
        ids = ids_of(lm, text)
        logs, targets = logs_of(lm, ids)[:-1], np.array(ids[1:])
        nats, right = -logs[np.arange(len(targets)), targets], logs.argmax(-1) == targets
        prediction = task.predict(lm, example)
        assert sum(prediction["tokens"]) == len(targets) and sum(prediction["right"]) == right.sum()
        scores = task.evaluate(prediction, example.reference)
        np.testing.assert_allclose([scores["nats"], scores["accuracy"]], [nats.mean(), right.mean()], **TOLERANCE)
        for start in range(0, len(targets), 10):
            where = f"tokens {start + 1} to {start + 10}"
            np.testing.assert_allclose(scores[f"nats, {where}"], nats[start : start + 10].mean(), **TOLERANCE)
            np.testing.assert_allclose(scores[f"accuracy, {where}"], right[start : start + 10].mean(), **TOLERANCE)
        assert len(scores) == 2 + 2 * -(-len(targets) // 10)


def test_a_choice_and_an_answer(lm, tmp_path):
    path, choices = tmp_path / "a.jsonl", ["one two", "the fox", "memory"]
    record = {"id": "1", "input": f"what\n\n{LONG}", "output": "the fox", "choices": choices}
    path.write_text(json.dumps(record))
    task = evaluation.MultipleChoice("choices", path, prompt="{document}")
    example = next(task.examples())
    prediction, start = task.predict(lm, example), ids_of(lm, LONG)
    for choice, nats, count in zip(choices, prediction["nats"], prediction["tokens"], strict=True):
        tokens = np.asarray(lm.preprocessor.tokenizer(f" {choice}")).tolist()
        logs = logs_of(lm, [*start, *tokens])[len(start) - 1 : -1]
        np.testing.assert_allclose(nats, -logs[np.arange(len(tokens)), tokens].sum(), **TOLERANCE)
        assert count == len(tokens)
    task = evaluation.QuestionAnswering("answers", path, prompt="{document}", max_new_tokens=2)
    tokens = generate_behind(lm, LONG, 2)
    expected = str(lm.preprocessor.tokenizer.detokenize(np.array(tokens, "int32"))) if tokens else ""
    assert task.predict(lm, next(task.examples())) == expected


def test_passkeys(lm, tmp_path):
    """What a model says is kept, and right if it is the key."""
    task = keras_fam.data.PassKeyTask(block_size=8, key_length=2, filler_length=9)
    passkey = evaluation.PassKeyTokens("keys", task, blocks=(2,), count=2)
    report = evaluation.evaluate({"FAM": lm}, [passkey], tmp_path / "results.json", verbose=0)
    (score, _) = report.scores
    content = json.loads((tmp_path / "results.json").read_text())["tasks"]["keys"]["models"]["FAM"]["examples"]
    right = []
    for example, kept in zip(passkey.examples(), content, strict=True):
        assert kept["prediction"] == generate_behind(lm, example.input, 2, stop=False)
        right.append(kept["prediction"] == example.reference)
    assert (score.metric, score.mean, score.count) == ("right", np.mean(right), 2)
