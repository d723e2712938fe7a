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
        vocabulary_size=256, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=192
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
    pupil, key_rows, length, likeliest = 16, 2, 40, 5
    made = teacher.Teacher(str(tmp_path), length + 1, likeliest, "float32")
    batches = texts.batches(arrays, key_rows, 2, length, 0.1, 0, {**STAGE, "text_restart": 0.5})
    seen = []
    for (inputs, soft, weights), _ in zip(teacher.taught(batches, made, START, key_rows, pupil), range(3)):
        new = inputs["document_start"][key_rows:]
        seen += list(new)
        for row, restarts in enumerate(new, start=key_rows):
            read = inputs["token_ids"][row] if restarts else np.append(START, inputs["token_ids"][row])
            hidden = stock({"token_ids": read[None], "padding_mask": np.ones_like(read[None])})
            logits = keras.ops.softmax(stock.token_embedding(hidden, reverse=True))[0, -length:]
            expected = np.sort(keras.ops.convert_to_numpy(logits))[:, ::-1][:, :likeliest]
            np.testing.assert_allclose(soft[row, :, likeliest:], expected, atol=1e-6)
            chosen = soft[row, :, :likeliest].astype("int32")
            logits = keras.ops.convert_to_numpy(logits)
            np.testing.assert_allclose(np.take_along_axis(logits, chosen, -1), expected, atol=1e-6)
            assert (weights[row, :pupil] > 0).all() == bool(restarts) and (weights[row, pupil:] > 0).all()
        assert (soft[:key_rows, :, likeliest] == 1).all()
    assert set(seen) == {0, 1}


def test_soft_crossentropy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 2, 6)).astype("float32")
    pupil = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    likeliest = [[[4, 1, 0.5, 0.2], [0, 5, 0.7, 0.3]]]
    expected = [
        -0.5 * np.log(pupil[0, 0, 4]) - 0.2 * np.log(pupil[0, 0, 1]) - 0.3 * np.log(pupil[0, 0, [0, 2, 3, 5]].sum()),
        -0.7 * np.log(pupil[0, 1, 0]) - 0.3 * np.log(pupil[0, 1, 5]),
    ]
    loss = teacher.SoftCrossentropy()
    found = loss(np.asarray(likeliest, "float32"), logits, sample_weight=np.asarray([[3.0, 1.0]], "float32"))
    np.testing.assert_allclose(found, np.average(expected, weights=[3, 1]), rtol=1e-5)


@pytest.mark.parametrize("taught", [[], ["--teach", "8"]], ids=["text", "taught"])
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
