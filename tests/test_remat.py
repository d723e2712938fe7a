"""`keras.RematScope`: the same losses and gradients, dropout included, and the same passed-on memory."""

import gc
import types

import keras
import numpy as np
import pytest
from helpers.models import GPT2_LIKE, fam_backbone, inputs, numpy, token_ids

import keras_fam

pytestmark = pytest.mark.shared_out

BACKEND = keras.config.backend()


def fit_weights(family, mode, steps=3, length=9, **options):
    """Losses and all weights, `{path: array}`, after some steps of `fit`."""
    keras.utils.set_random_seed(7)
    with keras.RematScope(**mode):
        lm = keras_fam.FAMCausalLM(fam_backbone(family, **options))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    lm.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss, jit_compile=BACKEND == "jax")
    ids = token_ids(2 * steps, length + 1)
    history = lm.fit(inputs(ids[:, :-1]), ids[:, 1:], batch_size=2, epochs=1, shuffle=False, verbose=0)
    return history.history["loss"], {v.path: numpy(v) for v in lm.weights}


def assert_same_weights(weights, plain_weights):
    """F, which is read through a norm, by its direction and its length: its numbers are some 20 times as large."""
    assert weights.keys() == plain_weights.keys()
    for path, value in weights.items():
        plain = plain_weights[path]
        if path.endswith(("last_fam", "carried_fam")):
            length, plain_length = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (value, plain))
            np.testing.assert_allclose(length, plain_length, rtol=1e-4, err_msg=path)
            value, plain = value / length, plain / plain_length
        np.testing.assert_allclose(value, plain, rtol=1e-4, atol=1e-5, err_msg=path)


MEMORY = dict(sink_token_id=3, memory_gate=0.0, memory_span=4.0, stock={"dropout": 0.3})
OPTIONS = dict(random_state_passing=0.5, **MEMORY)


@pytest.fixture(scope="module", params=["gemma2", "gpt2"])
def plain(request):
    """A family, and its losses and weights without the scope."""
    return request.param, *fit_weights(request.param, dict(mode=None), **OPTIONS)


@pytest.mark.parametrize(
    "mode",
    [
        dict(mode="full"),
        dict(mode="list_of_layers", layer_names=["decoder_block_0", "transformer_layer_1"]),
        dict(mode="larger_than", output_size_threshold=1),
    ],
    ids=lambda mode: mode["mode"],
)
def test_training_is_the_same_with_and_without(plain, mode):
    family, plain_loss, plain_weights = plain
    loss, weights = fit_weights(family, mode, **OPTIONS)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-5)
    assert_same_weights(weights, plain_weights)


def test_stateful_training_is_the_same_with_and_without():
    options = dict(stateful_batch_size=2, length=8, **MEMORY)
    _, weights = fit_weights("gpt2", dict(mode="full"), **options)
    _, plain_weights = fit_weights("gpt2", dict(mode=None), **options)
    assert_same_weights(weights, plain_weights)


def test_blocks_alone_are_rematerialised():
    with keras.RematScope("full"):
        backbone = fam_backbone("gpt2")
    lm = keras_fam.FAMCausalLM(backbone)
    modes = {layer.name: layer._remat_mode for layer in lm._flatten_layers()}
    marked = {name for name, mode in modes.items() if mode is not None}
    assert marked == {layer.name for layer in backbone.transformer_layers}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_layer_of_its_own(dropout):
    def model(mode):
        keras.utils.set_random_seed(3)
        with keras.RematScope(mode):
            block = keras_fam.FAMDecoderBlock(
                **{**GPT2_LIKE, "dropout": dropout}, num_query_heads=4, head_dim=6, intermediate_dim=12, block_size=4
            )
        ids = keras.Input((None,), dtype="int32", name="token_ids")
        x = keras.layers.Embedding(50, 8)(ids)
        x, _ = block(x, keras_fam.FAMPrompt(fam_length=3)(x))
        model = keras.Model(ids, keras.layers.Dense(50)(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss, jit_compile=BACKEND == "jax")
        ids = token_ids(6, 15)
        model.fit(ids[:, :-1], ids[:, 1:], batch_size=2, shuffle=False, verbose=0)
        return [numpy(v) for v in model.weights]

    for value, plain in zip(model("full"), model(None)):
        np.testing.assert_allclose(value, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="only XLA says what memory it plans")
def test_planned_memory_is_that_of_one_layer():
    import jax

    def planned(**mode):
        ids = keras.Input((None,), dtype="int32")
        x = keras.layers.Embedding(50, 32)(ids)
        fam = keras_fam.FAMPrompt(fam_length=4)(x)
        for _ in range(4):
            with keras.RematScope(**mode):
                block = keras_fam.FAMDecoderBlock(
                    num_query_heads=4, num_key_value_heads=2, head_dim=8, intermediate_dim=64, block_size=32
                )
            x, fam = block(x, fam)
        model = keras.Model(ids, x)

        def loss(weights):
            outputs, _ = model.stateless_call(weights, [], np.zeros((2, 64), "int32"), training=True)
            return jax.numpy.sum(outputs**2)

        compiled = jax.jit(jax.grad(loss)).lower([v.value for v in model.trainable_variables]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = planned(mode=None)
    assert planned(mode="full") < 0.4 * plain
    assert planned(mode="list_of_layers", layer_names=["another"]) == plain


@pytest.mark.skipif(BACKEND != "torch", reason="only torch ends the second computation by an exception")
def test_torch_lets_go_of_the_second_computation():
    def held(layer):
        """Names of that layer's functions whose frames live on with what is in them."""
        frames = [x for x in gc.get_objects() if type(x) is types.FrameType]
        return [frame.f_code.co_name for frame in frames if frame.f_locals.get("self") is layer]

    with keras.RematScope("full"):
        lm = keras_fam.FAMCausalLM(fam_backbone("gemma"))
    lm.compile(optimizer="sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ids = token_ids(2, 13)
    gc.disable()
    try:
        lm.train_on_batch(inputs(ids[:, :-1]), ids[:, 1:])
        assert not held(lm.backbone.transformer_layers[0])
    finally:
        gc.enable()
