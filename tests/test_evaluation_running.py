"""How an evaluation runs: interrupted and resumed, one model after the other, and what is refused before any work."""

import json

import keras
import numpy as np
import pytest
from helpers.evaluation import evaluated_lm
from helpers.models import fam_backbone, numpy, token_ids
from helpers.presets import TEXT
from helpers.refusals import refused

import keras_fam
from keras_fam import evaluation
from keras_fam.evaluation.reading import generate_behind, read_context

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="what is kept and refused; tests/test_evaluation.py runs models on every backend",
)


@pytest.fixture(scope="module")
def lm():
    return evaluated_lm()


@pytest.fixture(scope="module")
def bswa():
    return evaluated_lm(fam_length=0)


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
    whole = {"format": "keras_fam evaluation 1"}
    broken = [whole, whole | {"tasks": [1]}, whole | {"tasks": {"words": {"config": {}, "models": {"FAM": 3}}}}]
    for content in (b"", b"{}", b"[1]", b"\xff", *(json.dumps(each).encode() for each in broken)):
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
