"""Texts and files of any length, read in fixed memory: the loss of every token, and what is refused."""

import keras_hub
import numpy as np
import pytest
from helpers.models import fam_backbone, forward, token_ids
from helpers.presets import TEXT, gemma_tokenizer
from helpers.refusals import refused

import keras_fam
from keras_fam.data.tokenizing import read_pieces
from keras_fam.models import reading
from keras_fam.plots.loss import loss_by_position

pytestmark = pytest.mark.shared_out

TOLERANCE = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def lm():
    return keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"num_layers": 1}))


@pytest.fixture(scope="module")
def text_lm():
    tokenizer = gemma_tokenizer()
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=16)
    stock = {"num_layers": 1, "vocabulary_size": tokenizer.vocabulary_size()}
    return keras_fam.FAMCausalLM(fam_backbone("gemma", stock=stock), preprocessor)


def losses_of(lm, ids):
    """Each next token's loss, of one full pass."""
    logits = forward(lm, np.asarray(ids, "int32")[None]).astype("float64")[0, :-1]
    logs = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    return -logs[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize("length", [2, 4, 5, 6, 21])
def test_ids_against_a_full_pass(lm, length):
    ids = token_ids(1, length)[0]
    expected = losses_of(lm, ids)
    result = lm.perplexity(ids, page=6, verbose=0)
    assert result.tokens == length - 1
    np.testing.assert_allclose(result.nats, expected.mean(), **TOLERANCE)
    np.testing.assert_allclose(result.perplexity, np.exp(expected.mean()), rtol=1e-3)
    pages = [expected[start : start + 6].mean() for start in range(0, length - 1, 6)]
    assert len(result.pages) == 1
    np.testing.assert_allclose(result.pages[0], pages, **TOLERANCE)


def test_texts_files_and_ids_together(text_lm, tmp_path, capsys):
    """Each is a stream of its own and begins with the start token; how many are read at once changes nothing."""
    tokenizer = text_lm.preprocessor.tokenizer
    path = tmp_path / "long.txt"
    path.write_text(" ".join(TEXT * 3))
    ids = token_ids(1, 9)[0] % 40
    result = text_lm.perplexity([TEXT[0], path, ids], page=8)
    out = capsys.readouterr().out
    assert "nats" in out and str(result.tokens) in out
    start = tokenizer.start_token_id
    rows = [[start, *np.asarray(tokenizer(text))] for text in (TEXT[0], path.read_text())] + [ids]
    expected = [losses_of(text_lm, np.asarray(row)) for row in rows]
    np.testing.assert_allclose(result.nats, np.concatenate(expected).mean(), **TOLERANCE)
    for made, losses in zip(result.pages, expected, strict=True):
        np.testing.assert_allclose(made, [losses[i : i + 8].mean() for i in range(0, len(losses), 8)], **TOLERANCE)
    at_once = text_lm.perplexity([TEXT[0], path, ids], page=8, batch_size=2, verbose=0)
    np.testing.assert_allclose(at_once.nats, result.nats, **TOLERANCE)
    assert [len(page) for page in at_once.pages] == [len(page) for page in result.pages]
    losses = loss_by_position(text_lm, [TEXT[0], path, ids])
    for row, expected_row in zip(losses, expected, strict=True):
        np.testing.assert_allclose(row[: len(expected_row)], expected_row, **TOLERANCE)
        assert np.isnan(row[len(expected_row) :]).all()
    assert losses.shape == (3, max(map(len, expected)))


def test_a_file_is_read_piece_by_piece(text_lm, tmp_path, monkeypatch):
    """No more of a file is in memory than a few characters, and every block has the same shape."""
    monkeypatch.setattr(reading, "_CHARACTERS", 64)
    path = tmp_path / "long.txt"
    path.write_text("the pass key is one two three\n" * 40)
    pieces, before, shapes = [], [], set()

    def watched(*arguments):
        for piece in read_pieces(*arguments):
            pieces.append(len(piece))
            yield piece

    monkeypatch.setattr(reading, "read_pieces", watched)
    for _, losses, _ in reading.losses_in_blocks(text_lm, reading.open_texts(text_lm, path)):
        shapes.add(losses.shape)
        before.append(sum(pieces))
    assert sum(pieces) == 40 * 30 and max(pieces) < 128 and len(pieces) > 15
    assert before[0] < 200 and before == sorted(before)  # Pieces are read as the blocks are.
    assert shapes == {(1, 4)}


def test_plots_take_lengths_that_differ(lm):
    rows = [token_ids(1, 21)[0], token_ids(1, 9, 1)[0]]
    figure = keras_fam.plot_loss_by_position(lm, rows, bin_size=5)
    expected = [losses_of(lm, row) for row in rows]
    means = [
        np.mean([expected[0][:5].mean(), expected[1][:5].mean()]),
        np.mean([expected[0][5:10].mean(), expected[1][5:].mean()]),
    ]
    means += [expected[0][start : start + 5].mean() for start in (10, 15)]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), means, **TOLERANCE)


def test_refused(lm, text_lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.txt").write_text("text")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    refused(lambda: lm.perplexity("the text"), "texts", "preprocessor")
    refused(lambda: text_lm.perplexity("here.txt"), "texts", "pathlib.Path", "here.txt")
    for name in ("empty.txt", "binary.txt"):
        refused(lambda name=name: text_lm.perplexity(tmp_path / name), name)
    with pytest.raises(FileNotFoundError, match="texts.*nowhere.txt"):
        text_lm.perplexity([tmp_path / "nowhere.txt"])
    for texts in (3, None, {"text": 1}):
        refused(lambda texts=texts: text_lm.perplexity(texts), "texts", type(texts).__name__)
    refused(lambda: text_lm.perplexity([]), "texts", "none")
    refused(lambda: text_lm.perplexity([[5]]), "texts", "two tokens")
    refused(lambda: text_lm.perplexity([[5, 99]]), "texts", 99)
    refused(lambda: text_lm.perplexity([5.0, 2.0]), "texts")
    for name in ("page", "batch_size"):
        for value in (0, 2.0, "4"):
            refused(lambda name=name, value=value: lm.perplexity([1, 2], **{name: value}), name, value)
    for value in ("yes", 2):
        refused(lambda value=value: lm.perplexity([1, 2], verbose=value), "verbose", value)
    with pytest.raises(ValueError, match="bin_size"):
        keras_fam.plot_loss_by_position(lm, [[1, 2, 3], [1, 2]], bin_size=3)
