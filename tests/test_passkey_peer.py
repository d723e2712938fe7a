"""The peer of the PassKey example reads as it is trained, rows that restart forget, an interrupted run goes on."""

import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_fam

if keras.config.backend() != "torch":
    pytest.skip("the peer is of torch", allow_module_level=True)
pytest.importorskip("recurrent_memory_transformer_pytorch", reason="the peer needs the `peers` extra")

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("benchmarks", "examples")]
import passkey_peer  # noqa: E402  (its folder is added above)
import passkey_training  # noqa: E402  (the same)
import torch  # noqa: E402  (on torch alone)

TASK = keras_fam.data.PassKeyTask(block_size=8, key_length=2, filler_length=6)
OPTIONS = types.SimpleNamespace(
    task=TASK, block_size=8, hidden_dim=8, heads=2, layers=2, fam_length=3, intermediate_dim=16
)


LESSON = passkey_training.Lesson(3, 0.5)


@pytest.fixture
def peer():
    torch.manual_seed(0)
    peer = passkey_peer.Peer(OPTIONS)
    with torch.no_grad():  # Most of its branches begin at zero.
        for weight in peer.wrapper.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.5)
    return peer


def batch(**arguments):
    return TASK.stream(2, 3, 0.0, seed=0, question_rate=1.0, answer_noise=1.0, **arguments)[0]


def test_a_stream_reads_what_training_reads(peer):
    token_ids = batch()[0]["token_ids"]
    expected, memory = peer.wrapper(torch.from_numpy(token_ids).long(), peer.initial_state(2)[0])
    state, logits = peer.initial_state(2), []
    for begin, end in ((0, 8), (8, 16), (16, 18), (18, 19), (19, 24)):
        piece, state = peer.stream(token_ids[:, begin:end], state)
        logits.append(piece)
    np.testing.assert_allclose(torch.cat(logits, 1), expected.detach(), atol=1e-5)
    np.testing.assert_allclose(state[0], memory.detach(), atol=1e-5)
    assert state[1].shape == (2, 0)
    before = state[0].clone()
    peer.stream(token_ids[:, :1], state)  # A question is asked aside.
    np.testing.assert_array_equal(state[0], before)


def test_rows_that_restart_forget(peer):
    (inputs, targets, weights), rng = batch(), np.random.default_rng(0)
    inputs["document_start"] = np.array([1, 0], "int32")
    optimizer = torch.optim.SGD(peer.wrapper.parameters(), 0.0)
    written = []
    for memory in (peer.initial_state(2)[0], torch.ones(2, 3, 8)):
        memory, counts = passkey_peer.step(peer, optimizer, (inputs, targets, weights), memory, rng, LESSON)
        written.append(memory)
        assert counts[1] == (weights > 0).sum() and 0 <= counts[0] <= counts[1] < counts[2]
    np.testing.assert_allclose(written[0][0], written[1][0], atol=1e-6)
    assert np.abs(written[0][1] - written[1][1]).max() > 1e-3


def test_noise_is_a_share_of_each_vector(peer):
    memory = torch.randn(200, 3, 8) * torch.tensor([1.0, 10.0, 100.0])[:, None]
    moved = passkey_peer.disturbed(memory, 0.4, np.random.default_rng(0)) - memory
    share = moved.norm(dim=-1) / memory.norm(dim=-1)
    np.testing.assert_allclose(share.mean(0), 0.2, atol=0.03)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """Interrupted at the end of every epoch: in a lesson, between two, and in the last, whose best epoch is kept.

    The first lesson is learned after one.
    """
    monkeypatch.setattr(passkey_training, "EPOCH", 1)
    first, *others = passkey_training.REWRITTEN
    monkeypatch.setattr(passkey_training, "REWRITTEN", (first._replace(learned=0.0), *others))
    monkeypatch.setattr(passkey_training, "AGED", passkey_training.AGED._replace(blocks=2))
    given = dict(batch_size=4, blocks=4, restart=[0.1], restate=[0.5], sparse=[0.4], disturb=0.4, training="rewritten")
    given |= dict(steps=32, lesson_steps=2, learning_rate=1e-2, beta_2=0.98, weight_decay=0.004)
    given = types.SimpleNamespace(**vars(OPTIONS) | given)

    def trained(folder):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        peer = passkey_peer.Peer(given)
        passkey_peer.train(peer, given, 0, folder)
        return peer.wrapper.state_dict()

    whole, keep, interruptions = trained(tmp_path / "whole"), passkey_peer.keep, 0

    def interrupted(values, path):
        keep(values, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(passkey_peer, "keep", interrupted)
    while True:
        try:
            resumed = trained(tmp_path / "interrupted")
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == given.steps
    last = torch.load(tmp_path / "whole" / "epoch.pt")
    assert any((last["best"][name] != weight).any() for name, weight in last["weights"].items())
    for name, weight in whole.items():
        np.testing.assert_allclose(resumed[name], weight, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(weight, last["best"][name])
