"""Evaluations of models: what is read and said is that of full passes, and an interrupted one goes on where it was."""

import json

import keras_hub
import numpy as np
import pytest
from helpers.models import fam_backbone, forward, numpy, token_ids
from helpers.presets import TEXT, gemma_tokenizer
from helpers.refusals import refused

import keras_fam
from keras_fam import evaluation
from keras_fam.evaluation.reading import generate_behind, nats_behind, read_context
from keras_fam.models import reading

TOLERANCE = dict(rtol=1e-4, atol=1e-4)
LONG = " ".join(TEXT)


def language_model(fam_length=3):
    tokenizer = gemma_tokenizer()
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=16)
    stock = {"num_layers": 1, "vocabulary_size": tokenizer.vocabulary_size()}
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma", fam_length=fam_length, stock=stock), preprocessor)
    lm.compile(sampler="greedy")
    return lm


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def bswa():
    return language_model(0)


def ids_of(lm, text):
    tokenizer = lm.preprocessor.tokenizer
    return [tokenizer.start_token_id, *np.asarray(tokenizer(text)).tolist()]


def logs_of(lm, ids):
    """Log probabilities of the next token, of one full pass."""
    logits = forward(lm, np.asarray([ids], "int32"))[0].astype("float64")
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Words(evaluation.Task):
    """Texts of several lengths; the `fails`-th answer is an error."""

    def __init__(self, name="words", fails=None, config="same"):
        super().__init__(name)
        self.fails, self.config, self.asked = fails, config, []

    def examples(self):
        for index, text in enumerate([*TEXT, "a"]):  # The last is shorter than a block.
            yield evaluation.Example(f"{index}", text, index, "long" if len(text) > 1 else "short")

    def predict(self, lm, example):
        if len(self.asked) == self.fails:
            raise KeyboardInterrupt
        self.asked.append(example.id)
        return generate_behind(lm, example.input, 2)

    def evaluate(self, prediction, reference):
        return {"tokens": len(prediction), "sum": np.float32(sum(prediction))}

    def get_config(self):
        return {**super().get_config(), "config": self.config}


# === What is read and said ===


@pytest.mark.parametrize("text", ["a", LONG])
def test_what_is_generated_and_likely_behind_a_text(lm, text, monkeypatch):
    """As many tokens of the text are read at once as there are, in blocks; a full pass is the truth."""
    monkeypatch.setattr(reading, "_CHARACTERS", 32)
    ids = ids_of(lm, text)
    made = generate_behind(lm, text, 3, stop=False)
    whole = list(ids)
    for token in made:
        assert token == int(logs_of(lm, whole)[-1].argmax())
        whole.append(token)
    assert len(made) == 3
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
    task = evaluation.QuestionAnswering("answers", path, prompt="{document}", max_new_tokens=4)
    tokens = generate_behind(lm, LONG, 4)
    expected = str(lm.preprocessor.tokenizer.detokenize(np.array(tokens, "int32"))) if tokens else ""
    assert task.predict(lm, next(task.examples())) == expected


# === Running ===


def test_an_interrupted_evaluation_goes_on(lm, bswa, tmp_path, capsys):
    """The file of an interrupted and resumed evaluation is that of one in one go, and nothing is asked twice."""
    path, models = tmp_path / "results.json", {"FAM": lm, "BSWA": bswa}
    task = evaluation.PassKeyTokens("keys", keras_fam.data.PassKeyTask(8, 1, 9), blocks=(2,), count=2)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(models, [task, Words(fails=6)], path)
    kept = json.loads(path.read_text())
    assert "scores" not in kept and len(kept["tasks"]["words"]["models"]["BSWA"]["examples"]) == 2
    resumed = Words()
    report = evaluation.evaluate(models, [task, resumed], path)
    assert resumed.asked == ["2", "3"]
    assert "words: BSWA, 2 examples done before" in capsys.readouterr().out
    whole = evaluation.evaluate(models, [task, Words()], tmp_path / "whole.json", verbose=0)
    assert report == whole and path.read_text() == (tmp_path / "whole.json").read_text()
    content = json.loads(path.read_text())
    assert [keras_fam.evaluation.Score(**score) for score in content["scores"]] == list(report.scores)
    counts = {(s.group, s.model): s.count for s in report.scores if s.task == "words" and s.metric == "sum"}
    assert counts["", "FAM"] == counts["", "FAM - BSWA"] == 4 and counts["short", "BSWA"] == 1
    examples = content["tasks"]["words"]["models"]["FAM"]["examples"]
    assert [each["prediction"] for each in examples][-1] == generate_behind(lm, "a", 2)
    assert capsys.readouterr().out == ""


def test_models_one_after_the_other_share_a_file(lm, bswa, tmp_path):
    path, both = tmp_path / "results.json", tmp_path / "both.json"
    evaluation.evaluate({"FAM": lm}, [Words()], path, verbose=0)
    report = evaluation.evaluate({"BSWA": bswa}, [Words()], path, verbose=0)
    assert report == evaluation.evaluate({"FAM": lm, "BSWA": bswa}, [Words()], both, verbose=0)
    assert {score.model for score in report.scores} == {"FAM", "BSWA", "FAM - BSWA"}
    before = path.read_bytes()
    refused(lambda: evaluation.evaluate({"FAM": bswa}, [Words()], path), "path", "'FAM'", "fam_length")
    refused(lambda: evaluation.evaluate({"FAM": lm}, [Words(config="other")], path), "path", "'words'", "config")
    weight = bswa.backbone.trainable_variables[-1]
    old = numpy(weight)
    weight.assign(old + 1)
    refused(lambda: evaluation.evaluate({"BSWA": bswa}, [Words()], path), "path", "'BSWA'", "weights")
    weight.assign(old)
    assert path.read_bytes() == before


def test_refused_before_any_work(lm, tmp_path):
    path, task = tmp_path / "results.json", Words()
    for models in (None, {}, [lm], {"FAM": "model"}, {3: lm}):
        refused(lambda models=models: evaluation.evaluate(models, [task], path), "models")
    for tasks in (task, [], ["words"], [task, Words()]):
        refused(lambda tasks=tasks: evaluation.evaluate({"FAM": lm}, tasks, path), "tasks")
    refused(lambda: evaluation.evaluate({"FAM": lm}, [task], 3), "path", 3)
    refused(lambda: evaluation.evaluate({"FAM": lm}, [task], tmp_path / "nowhere" / "x.json"), "path", "nowhere")
    refused(lambda: evaluation.evaluate({"FAM": lm}, [task], path, verbose=2), "verbose", 2)
    for content in (b"", b"{}", b"[1]", b"\xff"):
        (tmp_path / "other.json").write_bytes(content)
        refused(lambda: evaluation.evaluate({"FAM": lm}, [task], tmp_path / "other.json"), "path", "other.json")
    keys = evaluation.PassKeyTokens("keys", keras_fam.data.PassKeyTask(64), count=1)
    ids_only = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"num_layers": 1, "vocabulary_size": 12}))
    refused(lambda: evaluation.evaluate({"FAM": ids_only}, [task, keys], path), "sampler", "TopK")
    ids_only.compile(sampler="greedy")
    refused(lambda: evaluation.evaluate({"FAM": ids_only}, [task, keys], path), "vocabulary", "36", "12")
    (tmp_path / "book.txt").write_text("text")
    books = evaluation.NextTokens("books", tmp_path)
    refused(lambda: evaluation.evaluate({"FAM": ids_only}, [task, books], path), "preprocessor")
    assert not path.exists() and not task.asked

    class Twice(Words):
        def examples(self):
            yield from [evaluation.Example("1", [1, 2])] * 2

    refused(lambda: evaluation.evaluate({"FAM": lm}, [Twice()], path, verbose=0), "ids that differ", "'1'")
    refused(lambda: read_context(lm, token_ids(1, 3)[0] + 90), "input", "vocabulary")
    refused(lambda: read_context(lm, []), "input", "at least one token")
