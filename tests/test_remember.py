"""The benchmark that teaches a pretrained model to use its memory: what its texts ask for, and that a run works."""

import json
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import randomize

import keras_fam

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "remember"))
import probes  # noqa: E402  (its folder is added above)
import teacher  # noqa: E402  (the same)
import texts  # noqa: E402  (the same)

START, LENGTH = 1, 512
STAGE = {"restart": 0.3, "text_restart": 0.05, "sentences": 3, "restate": 0.5, "noise": 1.0}


def stock_model():
    return keras_hub.models.GPT2Backbone(
        vocabulary_size=256,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        dropout=0.0,
        max_sequence_length=320,
    )


@pytest.fixture(scope="module")
def arrays():
    prose = "It was a dark and stormy night. " * 400
    return texts.prepare(keras_hub.tokenizers.ByteTokenizer(lowercase=False), START, [prose, prose.upper()], prose)


def test_answers_are_the_key_that_was_stated_last(arrays):
    batches = texts.batches(arrays, 3, 1, LENGTH, 0.1, 0, STAGE)
    read, asked = [b""] * 3, 0
    for _ in range(6):
        inputs, targets, weights = next(batches)
        for row in range(3):
            if inputs["document_start"][row]:
                assert inputs["token_ids"][row, 0] == START
                read[row] = b""
            for token, target, weight in zip(inputs["token_ids"][row], targets[row], weights[row]):
                read[row] += bytes([token])
                if weight:
                    key = read[row].rpartition(b"Remember it. ")[2][:5]
                    place = len(read[row]) - read[row].rindex(b"The pass key is") - len(b"The pass key is")
                    assert chr(target) == f" {key.decode()}."[place]
                    asked += 1
        assert set(weights[3]) == {np.float32(0.1)}
    assert asked > 100


def test_random_answers_are_read_and_right_ones_asked(arrays):
    inputs, targets, weights = next(texts.batches(arrays, 8, 0, LENGTH, 0.1, 0, STAGE))
    shown = inputs["token_ids"][:, 1:][weights[:, :-1] > 0]
    asked = targets[:, :-1][weights[:, :-1] > 0]
    assert 0.5 < (shown != asked).mean() < 1.0
    inputs, targets, weights = next(texts.batches(arrays, 8, 0, LENGTH, 0.1, 0, {**STAGE, "noise": 0.0}))
    np.testing.assert_array_equal(inputs["token_ids"][:, 1:], targets[:, :-1])


def test_probes_count_greedy_answers(arrays):
    backbone = keras_fam.FAMBackbone(stock_model(), block_size=16, memory_segments=1, fam_length=4)
    lm = keras_fam.FAMCausalLM(backbone)
    probe = probes.KeyProbe(backbone, arrays, rows=2, seed=0)
    probe.begin()
    probe.go_on(1)
    assert probe.read % 16 == 0 and probe.right()["whole"] == 0.0
    question, digits = probe.pieces.with_key("question", probe.keys[0])
    places = np.flatnonzero(digits)
    prompt = np.concatenate([probe.pieces.beginning(probe.keys[0]), probe.pieces.filler(400)])[: probe.read]
    prompt = np.concatenate([prompt, question[: places[0]]])
    lm.compile(sampler="greedy")
    inputs = {"token_ids": prompt[None], "padding_mask": np.ones((1, len(prompt)))}
    said = lm.generate(inputs, max_new_tokens=1, stop_token_ids=None)
    answers = probes.ask(backbone, probe.state, np.stack([question] * 2), places)
    assert said["token_ids"][0, len(prompt)] == answers[0, 0]


def test_the_teacher_says_what_the_stock_model_says(arrays, tmp_path):
    stock = stock_model()
    randomize(stock)
    stock.save_to_preset(str(tmp_path))
    key_rows, length = 2, 40
    made = teacher.Teacher(str(tmp_path), length, "float32")
    batches, plain = (
        texts.batches(arrays, key_rows, 2, length, 0.1, 0, {**STAGE, "text_restart": 0.5}) for _ in range(2)
    )
    seen, before = [], None
    for (inputs, *rest), (_, *untaught), _ in zip(teacher.taught(batches, made, START, key_rows), plain, range(4)):
        new = inputs["document_start"][key_rows:]
        seen += list(new)
        for row, restarts in enumerate(new, start=key_rows):
            read = inputs["token_ids"][row]
            if not restarts:
                read = np.concatenate([[START], before[row], read])
            hidden = stock({"token_ids": read[None], "padding_mask": np.ones_like(read[None])})[0, -length:]
            np.testing.assert_allclose(inputs["teacher"][row], keras.ops.convert_to_numpy(hidden), atol=1e-5)
        assert list(inputs["taught"]) == [False, False, True, True]
        np.testing.assert_array_equal(rest, untaught)
        before = inputs["token_ids"]
    assert set(seen) == {0, 1}


def test_a_pupil_learns_from_likely_tokens_and_from_targets():
    rng = np.random.default_rng(0)
    backbone = keras_fam.FAMBackbone(stock_model(), block_size=16, memory_segments=1, fam_length=4)
    randomize(backbone)
    pupil = teacher.Pupil(backbone)
    pupil.compile(loss=keras_fam.ChunkedCrossentropy(piece=3), optimizer=keras.optimizers.SGD(0.0))
    inputs = {"token_ids": rng.integers(256, size=(2, 5)), "padding_mask": np.ones((2, 5), "int32")}
    told, targets = rng.normal(size=(2, 5, 8)).astype("float32"), rng.integers(256, size=(2, 5))
    weights = rng.uniform(size=(2, 5)).astype("float32")
    taught = {**inputs, "teacher": told, "taught": np.asarray([True, False])}
    logs = pupil.train_on_batch(taught, targets, sample_weight=weights)

    def likely(hidden):
        return keras.ops.convert_to_numpy(keras.ops.log_softmax(backbone.logits(hidden)))

    mine, teachers = likely(backbone(inputs)), likely(told)
    losses = -np.take_along_axis(mine, targets[..., None], axis=-1)[..., 0]
    losses[0] = (np.exp(teachers) * (teachers - mine)).sum(-1)[0]
    np.testing.assert_allclose(logs[0], np.average(losses, weights=weights), rtol=1e-5)


@pytest.mark.parametrize("taught", [[], ["--teach", "--memory-only"]], ids=["text", "taught"])
def test_a_run(arrays, tmp_path, monkeypatch, taught):
    if keras.config.backend() != "torch":
        pytest.skip("What a run does is the same on every backend; fit and streams have tests of their own.")
    import train

    stock_model().save_to_preset(str(tmp_path / "preset"))
    np.savez(tmp_path / "tokens.npz", **arrays)
    options = f"--tokens {tmp_path}/tokens.npz --preset {tmp_path}/preset --name run --out {tmp_path}/out --key-rows 2"
    options += " --text-rows 1 --length 128 --steps 20 --probe 1 --piece 64 --held-out 2 128 --hold 2 --texts 2"
    monkeypatch.setattr(sys, "argv", ["train.py", *options.split(), "--dtype", "float32", "--fam-length", "4", *taught])
    train.main()
    found = json.loads((tmp_path / "out" / "run.json").read_text())
    assert found["log"][0]["step"] == 20 and set(found["hold"]) == {"2"} and set(found["overwrite"]["8"]) >= {"old"}
    assert (tmp_path / "out" / "run.lora.safetensors").exists()
