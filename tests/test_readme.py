"""The README's snippets and the docstrings' examples run as they stand."""

import inspect
import json
import re
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from helpers.presets import gpt2_preset

import keras_fam
from keras_fam.families import Family
from keras_fam.layers import decoder_layer, positions
from keras_fam.training import carried_state, state_passing

ROOT = Path(__file__).resolve().parent.parent


def snippet(name, page="README.md"):
    return re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL).group(1)


def test_snippets(tmp_path, monkeypatch):
    """One after the other, as a reader would; a small GPT-2 with a real tokenizer stands in for the download."""
    monkeypatch.chdir(tmp_path)
    folder = str(gpt2_preset(tmp_path / "gpt2", max_sequence_length=1024))
    names = {"texts": ["the fox " * 2] * 4, "chunks": [[[1, 2, 3]], [[4] * 300], [[5]]], "vocab": 50}
    Path("books").mkdir()
    for index in range(5):
        Path(f"books/{index}.txt").write_text("the quick brown fox jumps over the lazy dog " * (8 + index))
    exec(snippet("local"), names)
    stock = keras_hub.models.CausalLM.from_preset("small_gpt2")
    assert stock.preprocessor.tokenizer.detokenize(stock.preprocessor.tokenizer("the lazy dog")) == "the lazy dog"
    recipe = snippet("recipe")
    for large, small in (("epochs=10", "epochs=2"), ("256", "32"), ("512", "64"), ("tokens=20", "tokens=2")):
        recipe = recipe.replace(large, small)
    exec(recipe.replace("gpt2_base_en", folder), names)
    assert len(names["lm"].history.history["val_perplexity"]) == 2 and Path("best.weights.h5").exists()
    assert names["chat"].state.tokens[0] > 20
    exec(snippet("preset").replace("gpt2_base_en", folder).replace("5000", "300"), names)
    exec(snippet("stream"), names)
    assert names["logits"].shape[:2] == (1, 1)
    assert int(keras.ops.convert_to_numpy(names["state"].position)[0]) == 304
    exec(snippet("chat"), names)
    assert names["chat"].state.tokens[0] > 20 and names["state"].tokens[0] > 304
    Path("book.txt").write_text("the quick brown fox jumps over the lazy dog " * 40)
    exec(snippet("perplexity"), names)
    assert len(names["result"].pages) == 2 and len(names["result"].pages[0]) > 1
    names["held_out"] = np.ones((2, 600), "int32")
    exec(snippet("plots"), names)
    assert Path("loss.png").exists() and Path("attention.png").exists()
    exec(snippet("layers"), names)
    assert names["model"].predict_on_batch(np.ones((2, 300), "int32")).shape == (2, 300, 50)
    whole = np.concatenate([np.asarray(chunk) for chunk in names["chunks"]], axis=1)
    exec(snippet("layer-stream"), names)
    last = names["model"].predict_on_batch(whole.astype("int32"))[:, -1]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(names["logits"])[:, -1], last, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="tests/test_evaluation.py is for all backends")
def test_snippets_of_the_evaluation_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = str(gpt2_preset(tmp_path / "gpt2", max_sequence_length=1024, num_layers=1))
    text = "who jumps\n\n(A) the fox\n(B) the dog\n\n" + "the quick brown fox jumps over the lazy dog " * 20
    for name in ("qasper", "quality"):
        Path(name).mkdir()
        Path(name, "validation.jsonl").write_text(json.dumps({"id": "1", "input": text, "output": "the fox"}))
    Path("pg19/test").mkdir(parents=True)
    for name in ("a", "b"):
        Path("pg19/test", f"{name}.txt").write_text(text)
    names = {}
    exec(snippet("evaluation", "docs/evaluation.md").replace("gpt2_base_en", folder), names)
    out = capsys.readouterr().out
    assert "FAM - BSWA" in out and "exact_match" in out and "accuracy_per_token" in out
    assert "nats, tokens 1 to 1024" in out
    exec(snippet("task", "docs/evaluation.md"), names)
    assert "continues" in capsys.readouterr().out


def examples():
    public = [getattr(keras_fam, name) for name in keras_fam.__all__ if name[0] != "_"]
    public += [positions.LearnedPlaces, state_passing.RandomStatePassing, carried_state.CarriedState]
    public += [decoder_layer.FAMDecoderLayer]
    public += [keras_fam.FAMCausalLM.generate, keras_fam.FAMCausalLM.generate_stream, keras_fam.FAMCausalLM.perplexity]
    public += [getattr(keras_fam.evaluation, name) for name in keras_fam.evaluation.__all__]
    for item in public:
        owner = inspect.getdoc(item) or ""
        for code in re.findall(r"```python\n(.*?)```", owner, re.DOTALL):
            yield pytest.param(code, id=item.__name__)


@pytest.mark.shared_out
@pytest.mark.parametrize("code", examples())
def test_docstring_example(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "from_preset(" in code:
        code = code.replace("gpt2_base_en", str(gpt2_preset(tmp_path / "gpt2", max_sequence_length=256)))
        code = code.replace("random_state_passing=0.8", "random_state_passing=0.8, block_size=8, fam_length=4")

    def gpt2(dim, length):
        return keras_hub.models.GPT2Backbone(
            vocabulary_size=50,
            num_layers=1,
            num_heads=2,
            hidden_dim=dim,
            intermediate_dim=8,
            max_sequence_length=length,
        )

    stock = gpt2(16, 64)
    lm = keras_fam.FAMCausalLM(keras_fam.FAMBackbone(gpt2(8, 16), block_size=4, memory_segments=1, fam_length=2))
    names = {
        "keras": keras,
        "keras_fam": keras_fam,
        "keras_hub": keras_hub,
        "np": np,
        "lm": lm,
        "state": lm.initial_state(2),
        "texts": ["the quick brown fox"] * 2,
        "stock": stock,
        "MyFamily": type("MyFamily", (Family,), {"backbone_cls": type("MyBackbone", (), {})}),
        "RandomStatePassing": state_passing.RandomStatePassing,
        "LearnedPlaces": positions.LearnedPlaces,
        "CarriedState": carried_state.CarriedState,
        "token_ids": np.ones((2, 12), "int32"),
        "other": lm,
    }
    exec(code, names)
