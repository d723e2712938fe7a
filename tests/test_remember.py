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
STAGE = {"restart": 0.3, "sentences": 3, "restate": 0.5, "noise": 1.0}


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
    tokenizer = keras_hub.tokenizers.ByteTokenizer(lowercase=False)
    return texts.prepare(tokenizer, START, [prose, prose.upper()], prose, 1000, 4)


def test_pieces_are_of_all_texts(arrays):
    read = [bytes(piece.astype("uint8")).decode() for piece in arrays["train"]]
    assert [len(piece) for piece in read] == [1000] * 4
    assert [piece.isupper() for piece in read] == [False, False, True, True]
    assert read[0] == ("It was a dark and stormy night. " * 32)[:1000]


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


def test_windows_of_a_teacher():
    """Every place is wanted once, with at least 511 tokens before it in sight, and the start token first."""
    read, wanted = np.arange(1, 9001), []
    for first, tokens, skipped in teacher.windows(read, 2048):
        assert len(tokens) <= 2048 and tokens[0] == 1
        wanted += list(tokens[skipped:])
        assert tokens[skipped] == read[first] and (first == 0 or skipped == 512)
        assert first == 0 or list(tokens[1:]) == list(range(tokens[1], tokens[1] + len(tokens) - 1))
    assert wanted == list(read)


def test_the_teacher_says_what_the_stock_model_says(arrays, tmp_path, monkeypatch):
    stock = stock_model()
    randomize(stock)
    stock.save_to_preset(str(tmp_path))
    monkeypatch.setattr(teacher, "BEFORE", 31)
    path, size = tmp_path / "states.npy", 320
    rest = (START, "float32", size, 3)
    states = teacher.hidden_states(path, str(tmp_path), arrays["train"], *rest)
    assert states.shape == (4, 1000, 8)
    for piece, told in zip(arrays["train"], states):
        for first, tokens, skipped in teacher.windows(np.concatenate([[START], piece[:-1]]), size):
            hidden = stock({"token_ids": tokens[None], "padding_mask": np.ones_like(tokens[None])})
            hidden = keras.ops.convert_to_numpy(hidden)[0, skipped:]
            np.testing.assert_allclose(told[first : first + len(hidden)], hidden, atol=2e-3, rtol=1e-3)
    with pytest.raises(ValueError, match=r"\(3, 1000\).*\(4, 1000\)"):
        teacher.hidden_states(path, str(tmp_path), arrays["train"][:3], *rest)


def test_what_is_taught_at_a_place_is_of_its_target(arrays):
    """States say which piece and place they are of. Pieces are read to their ends, each row's first not so far."""
    pieces, length, ends = arrays["train"], 250, [[], []]
    states = np.stack(np.meshgrid(*map(np.arange, pieces.shape), indexing="ij"), axis=-1).astype("float32")
    for batch, _ in zip(texts.batches(arrays, 2, 2, length, 0.1, 0, STAGE, states), range(12)):
        inputs, targets, _ = batch
        piece, place = inputs["teacher"][2:].astype(int).transpose(2, 0, 1)
        np.testing.assert_array_equal(targets[2:], pieces[piece, place])
        assert list(inputs["taught"]) == [False, False, True, True] and not inputs["teacher"][:2].any()
        for row, new in enumerate(inputs["document_start"][2:]):
            ends[row].append(0 if new else ends[row][-1] + length)
            assert place[row, 0] == ends[row][-1]
    for places in ends:  # The places at which a row begins a new piece.
        new = np.flatnonzero(np.equal(places, 0))
        assert 0 < new[1] < 4 and set(np.diff(new[1:])) == {4}
    assert ends[0] != ends[1]


def test_targets_among_frequent_words(arrays):
    words = teacher.frequent_words(arrays, 10)
    texts_alone = teacher.frequent_words({"train": arrays["train"], "held_out": arrays["held_out"]}, 10)
    assert len(texts_alone) == 10 and set(texts_alone) < set(words) and set(arrays["digits"]) < set(words)
    plain, limited = (texts.batches(arrays, 2, 1, 500, 0.1, 0, STAGE, words=each) for each in (None, words))
    (_, targets, weights), (_, places, _) = next(plain), next(limited)
    asked = weights[:2] > 0
    np.testing.assert_array_equal(words[places[:2]][asked], targets[:2][asked])
    known = np.isin(targets[2], words)
    np.testing.assert_array_equal(words[places[2]][known], targets[2][known])
    assert 0.2 < known.mean() < 1.0


@pytest.mark.parametrize("words", [None, np.arange(3, 200, 2)], ids=["all", "words"])
def test_a_pupil_learns_from_likely_tokens_and_from_targets(words):
    rng = np.random.default_rng(0)
    count = 256 if words is None else len(words)
    backbone = keras_fam.FAMBackbone(stock_model(), block_size=16, memory_segments=1, fam_length=4)
    randomize(backbone)
    pupil = teacher.Pupil(backbone, words)
    pupil.compile(loss=keras_fam.ChunkedCrossentropy(piece=3), optimizer=keras.optimizers.SGD(0.0))
    inputs = {"token_ids": rng.integers(256, size=(2, 5)), "padding_mask": np.ones((2, 5), "int32")}
    told, targets = rng.normal(size=(2, 5, 8)).astype("float32"), rng.integers(count, size=(2, 5))
    weights = rng.uniform(size=(2, 5)).astype("float32")
    taught = {**inputs, "teacher": told, "taught": np.asarray([True, False])}
    logs = pupil.train_on_batch(taught, targets, sample_weight=weights)

    def likely(hidden):
        logits = keras.ops.convert_to_numpy(backbone.logits(hidden))
        return keras.ops.convert_to_numpy(keras.ops.log_softmax(logits if words is None else logits[..., words]))

    mine, teachers = likely(backbone(inputs)), likely(told)
    losses = -np.take_along_axis(mine, targets[..., None], axis=-1)[..., 0]
    losses[0] = (np.exp(teachers) * (teachers - mine)).sum(-1)[0]
    np.testing.assert_allclose(logs[0], np.average(losses, weights=weights), rtol=1e-5)


@pytest.mark.parametrize("taught", [False, True], ids=["text", "taught"])
def test_a_run(arrays, tmp_path, monkeypatch, taught):
    """An interrupted one goes on from its last probe."""
    if keras.config.backend() != "torch":
        pytest.skip("What a run does is the same on every backend; fit and streams have tests of their own.")
    import train

    stock_model().save_to_preset(str(tmp_path / "preset"))
    np.savez(tmp_path / "tokens.npz", **arrays)
    options = f"--tokens {tmp_path}/tokens.npz --preset {tmp_path}/preset --name run --out {tmp_path}/out --key-rows 2"
    options += " --text-rows 1 --length 128 --probe 2 --piece 64 --held-out 2 128 --hold 2 --texts 2 --fam-length 4"
    options += " --dtype float32"
    if taught:
        options += f" --memory-only --words 20 --teacher {tmp_path}/states.npy"
        monkeypatch.setattr(teacher.hidden_states, "__defaults__", (320, 4))  # The model has no more positions.
        monkeypatch.setattr(teacher, "BEFORE", 100)
    monkeypatch.setattr(train, "EPOCH", 2)
    probed = []

    def hold(*arguments):
        probed.append(len(probed))
        if len(probed) == 2:
            raise KeyboardInterrupt
        return probes.hold(*arguments)

    monkeypatch.setattr(train, "hold", hold)

    def run(steps):
        monkeypatch.setattr(sys, "argv", ["train.py", *options.split(), "--steps", str(steps)])
        train.main()
        return json.loads((tmp_path / "out" / "run.json").read_text())

    with pytest.raises(KeyboardInterrupt):
        run(12)
    saved = json.loads((tmp_path / "out" / "run.json").read_text())["log"]
    assert [entry["step"] for entry in saved] == [2, 4, 6]
    found = run(12)
    assert [entry["step"] for entry in found["log"]] == [2, 4, 6, 8, 10, 12] and found["log"][:2] == saved[:2]
    assert set(found["hold"]) == {"2"} and set(found["overwrite"]["8"]) >= {"old"}
    again = run(12)  # It has ended, and is measured again.
    assert (again["log"], again["text"]) == (found["log"], found["text"])
    with pytest.raises(SystemExit):
        run(14)
