"""Gates that are calibrated on a text: how much attention FAM then takes, and that it does no harm."""

import keras
import numpy as np
import pytest
from helpers.evaluation import evaluated_lm
from helpers.models import EVERY_PART, fam_backbone, forward, numpy, token_ids
from keras import ops

import keras_fam
from keras_fam.memory.maps import attention_maps
from keras_fam.memory.state import Beginning

pytestmark = pytest.mark.shared_out


def model(family="gemma", gate=-9.0, **options):
    lm = keras_fam.FAMCausalLM(fam_backbone(family, memory_gate=gate, **options))
    for layer in lm.backbone.transformer_layers:
        if layer.memory_gate is not None:
            layer.memory_gate.assign(gate)
    return lm


@pytest.mark.parametrize("sink", [None, 1], ids=["no sink", "sink"])
@pytest.mark.parametrize("family", EVERY_PART)
def test_fam_takes_the_share_that_it_should(family, sink):
    lm, ids, share = model(family, sink_token_id=sink, stock={"dropout": 0.0}), token_ids(1, 12), 0.02
    backbone = lm.backbone
    gates = lm.calibrate_gates(ids[0], share)
    assert gates == pytest.approx([float(numpy(layer.memory_gate)) for layer in backbone.transformer_layers])
    assert all(-15 < gate < 0 for gate in gates)
    # What the first layer's heads give to FAM by the maps that are drawn, block by block.
    start, size = backbone.start_of_memory(), backbone.block_size
    hidden = backbone.family.embed(ops.convert_to_tensor(ids), ops.arange(12)[None])
    beginning = Beginning(start["fam"], sink=start.get("sink"))
    heads = range(backbone.transformer_layers[0].parts.num_query_heads)
    weights, marks = attention_maps(backbone.transformer_layers[0].core, hidden, beginning, heads)
    memory = marks[int(sink is not None) : -1]
    shares = np.concatenate([weights[:, stop : stop + size, start:stop].sum(axis=2) for start, stop in memory], axis=1)
    assert shares.shape == (len(heads), 12)
    odds = np.quantile(np.log(shares / (1 - shares)), 0.99, axis=1).max()
    assert 1 / (1 + np.exp(-odds)) == pytest.approx(share, rel=1e-3)


def test_a_model_that_fam_ruins_is_as_without_it():
    ids = token_ids(1, 13)

    def made(gates):
        lm = model("llama3", sink_token_id=1)
        key = lm.backbone.transformer_layers[1].parts.key
        # Queries and the keys of FAM's vectors agree by far: what makes one gate too open for every layer.
        lm.backbone.fam_prompt.embeddings.assign(40 * numpy(lm.backbone.fam_prompt.embeddings))
        key.kernel.assign(10 * numpy(key.kernel))
        if gates == "calibrated":
            assert min(lm.calibrate_gates(ids[0])) < -9
        else:
            for layer in lm.backbone.transformer_layers:
                layer.memory_gate.assign(gates)
        return numpy(forward(lm, ids))

    without = made(-300.0)
    harm = {gates: np.abs(made(gates) - without).mean() for gates in (-9.0, "calibrated")}
    assert harm["calibrated"] < 0.2 * harm[-9.0], harm


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.1), ("float16", 0.02)])
def test_lower_precision_finds_the_same_gates(dtype, tolerance):
    ids = token_ids(1, 13)[0]
    gates = [model("gemma", stock={"dtype": dtype}).calibrate_gates(ids) for dtype in ("float32", dtype)]
    np.testing.assert_allclose(gates[1], gates[0], atol=tolerance)


def test_gates_are_never_wider_open_than_the_papers():
    lm = model()
    assert lm.calibrate_gates(token_ids(1, 13)[0], share=1 - 1e-6) == [0.0, 0.0]


def test_texts_and_files_are_read(tmp_path):
    lm, text = evaluated_lm(memory_gate=-9.0), "the quick brown fox jumped over the lazy dog " * 4
    (tmp_path / "text.txt").write_text(text)
    gates = lm.calibrate_gates(text)
    assert lm.calibrate_gates(tmp_path / "text.txt") == gates == lm.calibrate_gates(text * 2)


@pytest.mark.parametrize(
    "options, arguments, error, match",
    [
        (dict(fam_length=0, gate=None), dict(text=range(13)), ValueError, "fam_length=0, memory_gate=None"),
        (dict(gate=None), dict(text=range(13)), ValueError, "memory_gate=None"),
        ({}, dict(text=[1, 2, 3, 4]), ValueError, "`text` must be longer than a block.*Received: 4 tokens"),
        ({}, dict(text=np.ones((2, 13), "int32")), ValueError, "`text` must be one text. Received: 2 texts"),
        ({}, dict(text=[1, 2, 3, 4, 5, 50, 7]), ValueError, "`text`.*50"),
        ({}, dict(text="a text"), ValueError, "`text` must be token ids for a model without a preprocessor"),
        ({}, dict(text=7), TypeError, "`text` must be a text.*int"),
        ({}, dict(text=range(13), share=0.0), ValueError, "`share` must be above 0 and below 1. Received: share=0.0"),
        ({}, dict(text=range(13), share=float("nan")), ValueError, "`share`.*nan"),
        ({}, dict(text=range(13), share="much"), TypeError, "`share`.*'much'"),
    ],
)
def test_bad_input(options, arguments, error, match):
    lm = model(**options)
    if isinstance(arguments["text"], range):
        arguments = {**arguments, "text": list(arguments["text"])}
    with pytest.raises(error, match=match):
        lm.calibrate_gates(**arguments)
    for layer in lm.backbone.transformer_layers:
        assert layer.memory_gate is None or numpy(layer.memory_gate) == -9


def test_an_interruption_leaves_the_gates(monkeypatch):
    lm = model()

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(lm.backbone.transformer_layers[1]), "memory_share", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lm.calibrate_gates(token_ids(1, 13)[0])
    assert [float(numpy(layer.memory_gate)) for layer in lm.backbone.transformer_layers] == [-9.0, -9.0]


def test_calibrated_gates_are_saved(tmp_path):
    lm = model()
    gates = lm.calibrate_gates(token_ids(1, 13)[0])
    lm.save(tmp_path / "lm.keras")
    loaded = keras.saving.load_model(tmp_path / "lm.keras")
    assert [float(numpy(layer.memory_gate)) for layer in loaded.backbone.transformer_layers] == pytest.approx(gates)
