"""Files of examples, metrics, intervals and tables of evaluations: what no backend has a part in."""

import json
import warnings

import keras
import keras_hub
import numpy as np
import pytest
from helpers.presets import gemma_tokenizer
from helpers.refusals import refused

from keras_fam import evaluation
from keras_fam.data import PassKeyTask
from keras_fam.evaluation.answering import Summarization, fill
from keras_fam.evaluation.bootstrap import bootstrap_interval
from keras_fam.evaluation.report import report_of

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="files, metrics and tables: no backend has a part in them"
)

INPUT = "Who wrote it?\n\nAda wrote the first program."


def write(path, *records):
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in records))
    return path


def record(name="1", input=INPUT, output="Ada", **more):
    return {"id": name, "input": input, "output": output, **more}


# === Metrics ===


@pytest.mark.parametrize(
    "prediction, references, f1, exact",
    [
        ("The Cat.", ["cat"], 1, 1),
        ("", [""], 1, 1),
        ("the", ["a cat"], 0, 0),
        ("a black cat", ["the cat", "dog"], 2 / 3, 0),
        ("cat cat dog", ["cat dog dog"], 2 / 3, 0),
        ("It's 5,000", ["its 5000"], 1, 1),
        ("wrong", ["right", "left"], 0, 0),
    ],
)
def test_answers_as_for_squad(prediction, references, f1, exact):
    assert abs(evaluation.f1(prediction, references) - f1) < 1e-9
    assert evaluation.exact_match(prediction, references) == exact


@pytest.mark.parametrize("metric", [evaluation.f1, evaluation.exact_match, evaluation.rouge])
def test_metrics_refuse(metric):
    """A str as references would be compared letter by letter."""
    for references in ("cat", [], [3], None, {"cat": 1}):
        refused(lambda references=references: metric("cat", references), "references", references)
    refused(lambda: metric(3, ["cat"]), "prediction", 3)


def test_rouge_counts_stems():
    """Counted by hand: 3 of 3 and 3 of 4 words; 2 of 2 and 2 of 3 pairs; the longest common run of words is 3."""
    made = evaluation.rouge("cats sat down", ["nothing alike", "the cat sat down"])
    np.testing.assert_allclose([made["rouge1"], made["rouge2"], made["rougeL"]], [6 / 7, 4 / 5, 6 / 7])


def test_the_interval_holds_the_mean_as_often_as_it_says():
    """Of 200 samples of 40 coins with p=0.3 about 95 % of the intervals hold 0.3."""
    rng, held = np.random.default_rng(0), 0
    samples = rng.random((200, 40)) < 0.3
    for sample in samples:
        low, high = bootstrap_interval(sample)
        assert low <= sample.mean() <= high
        held += low <= 0.3 <= high
    assert 0.88 <= held / 200 <= 0.99
    assert bootstrap_interval([1.0]) is None
    assert bootstrap_interval([2.0, 2.0]) == (2.0, 2.0)


# === Files ===


def test_examples_of_a_file(tmp_path):
    """Lines of one id and input are one example; braces in a text stay as they are."""
    path = write(tmp_path / "a.jsonl", record(), record(2, "Why?\n\n{input} is {odd}", ["b", "c"]), record(output="Al"))
    task = evaluation.QuestionAnswering("qa", path, prompt="{document}|{question}|{input}", max_new_tokens=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = task.examples()
    assert first == ("1", f"Ada wrote the first program.|Who wrote it?|{INPUT}", ["Ada", "Al"], "")
    assert second.input == "{input} is {odd}|Why?|Why?\n\n{input} is {odd}" and second.reference == ["b", "c"]
    assert len(task) == 2 and list(task.examples()) == [first, second]
    assert task.evaluate(" Al.\nQuestion: more", ["Ada", "Al"]) == {"f1": 1.0, "exact_match": 1.0}
    assert fill("{question}{input}", "i", "{input}", "d") == "{input}i"


BROKEN = [
    b"not json",
    b'{"id": "1", "inp',
    b"\xff\xfe",
    b"[1, 2]",
    b"[" * 3000,
    {"input": INPUT, "output": "x"},
    record("9", output=None),
    record("9", output=[]),
    record("9", output=[1]),
    record("9", output={"a": 1}),
    record("9", input=" \n"),
    record("9", input=5),
    record([1]),
    record("9", input="no question"),
    record("1", input=INPUT + "."),
]


def test_broken_lines_are_named_and_the_others_kept(tmp_path):
    path = write(tmp_path / "a.jsonl", record(), *BROKEN, b"", record("2"))
    with pytest.warns(UserWarning, match=r"15 lines of .*a.jsonl.*line 2: no JSON.*and 10 more") as caught:
        task = evaluation.QuestionAnswering("qa", path)
    assert caught[0].filename == __file__
    assert [example.id for example in task.examples()] == ["1", "2"]
    numbers = [int(each.split(":")[0].removeprefix("line ")) for each in task.left_out()]
    assert numbers == list(range(2, 17))


def test_choices(tmp_path):
    listed = "Who?\n\n (A) Ada\n (B) Bob \n (C) no one\n\nA document.\n(D) It goes on."
    records = record("1", listed, "Bob"), record("2", "Who?\n\nA text.", "Al", choices=["Ada", "Al"])
    bad = record("3", listed, "Eve"), record("4"), record("5", INPUT, "Ada", choices=["Ada", "Ada"])
    path = write(tmp_path / "a.jsonl", *records, *bad, record("6", INPUT, "Ada", choices="Ada"))
    with pytest.warns(UserWarning, match="line 3: `output`.*line 4: `output`.*line 5: `output`.*line 6: `choices`"):
        task = evaluation.MultipleChoice("quality", path, prompt="{document}|{question}")
    first, second = task.examples()
    assert first.input == "A document.\n(D) It goes on.|Who?" and second.input == "A text.|Who?"
    assert first.reference == {"choices": ["Ada", "Bob", "no one"], "answer": 1}
    assert second.reference == {"choices": ["Ada", "Al"], "answer": 1}
    scores = task.evaluate({"nats": [3.0, 4.0, 9.0], "tokens": [1, 2, 9]}, first.reference)
    assert scores == {"accuracy": 0.0, "accuracy_per_token": 0.0}
    assert task.evaluate({"nats": [3.0, 4.0], "tokens": [1, 2]}, second.reference)["accuracy_per_token"] == 1.0


def test_passkeys_are_the_same_at_every_call():
    task = PassKeyTask(block_size=16, key_length=2, filler_length=5)
    passkey = evaluation.PassKeyTokens("keys", task, blocks=(4, 2), count=2, seed=3)
    once, again = list(passkey.examples()), list(passkey.examples())
    assert [each.group for each in once] == ["2 blocks"] * 2 + ["4 blocks"] * 2 and len(passkey) == 4
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a.input, b.input)
        assert a.reference == b.reference and len(a.reference) == 2
    assert len(once[0].input) == 33 and len({tuple(each.input) for each in once}) == 4
    words = evaluation.PassKeyWords("keys", keras_hub.tokenizers.ByteTokenizer(), block_size=300, blocks=(2,), count=3)
    for example in words.examples():
        assert f"The pass key is {example.reference}." in example.input and 500 < len(example.input) <= 600
    right = [
        words.evaluate(text, "12345")["right"] for text in (" 12345", "12345.", "is 12345 9", "1234", "123456", "")
    ]
    assert right == [1, 1, 1, 0, 0, 0]


def test_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", record())
    for prompt in ("", 3, "{question}"):
        refused(lambda prompt=prompt: evaluation.QuestionAnswering("qa", path, prompt=prompt), "prompt", prompt)
    for name in ("", 3, None):
        refused(lambda name=name: evaluation.QuestionAnswering(name, path), "name", name)
    refused(lambda: evaluation.QuestionAnswering("qa", path, max_new_tokens=0), "max_new_tokens", 0)
    refused(lambda: evaluation.QuestionAnswering("qa", 3), "path", 3)
    with pytest.raises(FileNotFoundError, match="path.*nowhere"):
        evaluation.QuestionAnswering("qa", tmp_path / "nowhere")
    refused(lambda: evaluation.QuestionAnswering("qa", write(tmp_path / "b", b"x")), "path", "line 1: no JSON")
    refused(lambda: evaluation.MultipleChoice("quality", write(tmp_path / "c")), "path", "empty")
    refused(lambda: evaluation.NextTokens("books", path, page=0), "page", 0)
    refused(lambda: evaluation.NextTokens("books", [write(tmp_path / "d")]), "empty")
    refused(lambda: evaluation.PassKeyTokens("keys", "task"), "task", "str")
    refused(lambda: evaluation.PassKeyTokens("keys", PassKeyTask(16), blocks=(0,)), "blocks", 0)
    refused(lambda: evaluation.PassKeyWords("keys", gemma_tokenizer(), block_size=8), "block_size", 8)
    assert Summarization("s", path).evaluate("Ada", ["Ada"]) == {"rouge1": 1.0, "rouge2": 0.0, "rougeL": 1.0}


# === Reports ===


def test_a_report_and_its_table():
    """Means, groups, and differences on the examples that both models have answered."""

    def examples(*values):
        groups = ("short", "short", "long", "long")
        return {
            "config": {},
            "examples": [
                {"id": str(i), "group": group, "scores": {"right": value}, "prediction": 0}
                for i, (group, value) in enumerate(zip(groups, values))
            ],
        }

    models = {"FAM": examples(1.0, 1.0, 0.0, 1.0), "BSWA": examples(1.0, 0.0, 0.0)}
    report = report_of({"keys": {"config": {}, "left_out": [], "models": models}})
    made = {(score.group, score.model): (score.mean, score.count) for score in report.scores}
    assert made["", "FAM"] == (0.75, 4) and made["", "FAM - BSWA"] == (1 / 3, 3)
    assert made["short", "BSWA"] == (0.5, 2) and made["long", "FAM"] == (0.5, 2) and made["long", "BSWA"] == (0.0, 1)
    assert {score.group for score in report.scores} == {"", "short", "long"}
    lines = repr(report).splitlines()
    assert lines[0].split() == ["task", "examples", "metric", "FAM", "BSWA", "FAM", "-", "BSWA"] and len(lines) == 5
    assert "0.750 (0.250 to 1.000)" in lines[2] and "0.333 (0.000 to 1.000)" in lines[2]
