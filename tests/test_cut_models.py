"""A layer's configuration describes what it computes: models cut out of a converted backbone, saved and loaded."""

import keras
import numpy as np
import pytest
from helpers.models import FAMILIES, fam_backbone, inputs, randomize, stock_backbone, token_ids
from keras_hub.src.models.llama.llama_decoder import LlamaTransformerDecoder
from keras_hub.src.models.llama.llama_rotary_embedding import LlamaRotaryEmbedding

from keras_fam.layers.decoder_layer import FAMDecoderLayer

pytestmark = pytest.mark.shared_out

OPTIONS = {"all options": dict(sink_token_id=1, memory_gate=0.5, memory_span=2.0), "none": {}}


@pytest.mark.parametrize(
    "family, options", [*((family, "all options") for family in FAMILIES), ("gemma", "none"), ("gpt2", "none")]
)
def test_a_cut_model_saved_and_loaded_gives_the_same_numbers(family, options, tmp_path):
    backbone = fam_backbone(family, **OPTIONS[options])
    outputs = backbone.transformer_layers[0].output
    model = keras.Model(backbone.input, outputs[0])
    x = inputs(token_ids(2, 14))
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "cut.keras")
    loaded = keras.saving.load_model(tmp_path / "cut.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    layer = next(layer for layer in loaded.layers if isinstance(layer, FAMDecoderLayer))
    assert layer.name == backbone.transformer_layers[0].name
    old = {v.path for v in backbone.transformer_layers[0].weights}
    assert {v.path for v in layer.weights} == old


def test_a_layer_in_bfloat16_with_dropout_round_trips():
    layer = fam_backbone("llama3", stock={"dtype": "mixed_bfloat16", "dropout": 0.3}).transformer_layers[1]
    revived = FAMDecoderLayer.from_config(layer.get_config())
    assert revived.get_config() == layer.get_config()
    assert revived.compute_dtype == "bfloat16" and revived.parts.attended_dropout.rate == 0.3
    assert [v.shape for v in revived.weights] == [v.shape for v in layer.weights]
    randomize(revived)


# When one of these fails, KerasHub has mended it, and what is written around it here can go.


def test_keras_hub_s_llama_rotary_does_not_survive_its_configuration():
    """Then `families.rotary.SavedLlamaRotary` can go."""
    with pytest.raises((TypeError, ValueError)):
        LlamaRotaryEmbedding.from_config(LlamaRotaryEmbedding().get_config())


def test_keras_hub_s_llama_layer_has_no_configuration():
    """Then a converted layer could be described by the stock layer's configuration instead of its parts."""
    with pytest.raises(AttributeError):
        LlamaTransformerDecoder(intermediate_dim=8, num_query_heads=2, num_key_value_heads=1).get_config()


def test_keras_hub_s_norms_of_gemma_have_no_configuration():
    """Then `parts_config._layer_to_config` can go."""
    norm = fam_backbone("gemma").transformer_layers[0].parts.pre_attention_norm
    with pytest.raises(NotImplementedError):
        norm.get_config()


def test_keras_hub_s_llama_backbone_forgets_its_tied_head():
    """Then `LlamaFamily.unsaved_arguments` can go."""
    assert "tie_word_embeddings" not in stock_backbone("llama3").get_config()
    assert fam_backbone("llama3").get_config()["backbone"]["config"]["tie_word_embeddings"] is True
    assert fam_backbone("llama").get_config()["backbone"]["config"]["tie_word_embeddings"] is False
