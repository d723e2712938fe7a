"""KerasHub's own upload of a preset with memory: all that comes before the network, and what is handed to it."""

import json
import shutil

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import inputs, numpy
from helpers.presets import gpt2_preset

import keras_fam

IDS = np.arange(20).reshape(2, 10) + 1
pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="files and no numerics: tried on torch")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`(folder, logits)` of a preset with memory."""
    folder = tmp_path_factory.mktemp("share")
    lm = keras_fam.FAMCausalLM.from_preset(gpt2_preset(folder / "stock"), block_size=4, memory_segments=1, fam_length=2)
    lm.save_to_preset(str(folder / "fam"))
    return folder / "fam", numpy(lm(inputs(IDS)))


def check(folder, logits):
    for load in (keras_fam.FAMCausalLM.from_preset, keras_hub.models.CausalLM.from_preset):
        lm = load(str(folder))
        assert lm.preprocessor.tokenizer.vocabulary_size() == lm.backbone.vocabulary_size
        np.testing.assert_allclose(numpy(lm(inputs(IDS))), logits, rtol=1e-5, atol=1e-5)


def test_kaggle(saved, tmp_path, monkeypatch):
    import kagglehub

    folder, logits = saved
    sent = []
    monkeypatch.setattr(
        kagglehub, "model_upload", lambda *call: sent.append(call[0]) or shutil.copytree(call[1], tmp_path / "there")
    )
    keras_hub.upload_preset("kaggle://me/foxes/keras/small", str(folder))
    assert sent == ["me/foxes/keras/small"]
    check(tmp_path / "there", logits)


def test_hugging_face(saved, tmp_path, monkeypatch):
    """KerasHub writes a card, sends it with the preset and takes it away again: docs/share.md says so."""
    import huggingface_hub

    folder, logits = saved
    before = sorted(path.name for path in folder.rglob("*"))
    monkeypatch.setattr(
        huggingface_hub,
        "create_repo",
        lambda repo_id, **_: huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}"),
    )
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda **_: False)
    monkeypatch.setattr(
        huggingface_hub, "upload_folder", lambda repo_id, folder_path: shutil.copytree(folder_path, tmp_path / "there")
    )
    keras_hub.upload_preset("hf://me/foxes", str(folder))
    assert sorted(path.name for path in folder.rglob("*")) == before
    card = (tmp_path / "there" / "README.md").read_text()
    options = json.loads((folder / "config.json").read_text())["config"]
    assert f"* **fam_length:** {options['fam_length']}" in card and "keras_fam" not in card.split("Model config")[0]
    check(tmp_path / "there", logits)


@pytest.mark.parametrize("missing", ["config.json", "model.weights.h5"])
def test_a_preset_that_lacks_a_file_is_not_sent(saved, tmp_path, monkeypatch, missing):
    import kagglehub

    monkeypatch.setattr(kagglehub, "model_upload", lambda *call: pytest.fail("sent"))
    shutil.copytree(saved[0], tmp_path / "broken")
    (tmp_path / "broken" / missing).unlink()
    with pytest.raises(FileNotFoundError):
        keras_hub.upload_preset("kaggle://me/foxes/keras/small", str(tmp_path / "broken"))
