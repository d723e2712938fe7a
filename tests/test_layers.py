"""The layers alone: configuration, serialization, shapes, masks, dtypes, training, and parity with stock layers."""

import json

import keras
import numpy as np
import pytest
from helpers.models import FAMILIES, GEMMA2_LIKE, GPT2_LIKE, numpy, randomize, stock_backbone
from keras import ops
from keras.src import testing

import keras_fam
from keras_fam.layers.positions import LearnedPlaces
from keras_fam.training.state_passing import RandomStatePassing

pytestmark = pytest.mark.shared_out

BACKEND = keras.config.backend()
# What `Model.compile` can sensibly be told: jax without it compiles every operation on its own.
JIT_COMPILE = {"jax": [True], "tensorflow": [False, True], "torch": [False]}[BACKEND]
DIM = 8
ATTENTION = dict(num_query_heads=4, num_key_value_heads=2, head_dim=6, block_size=4, memory_segments=1)
BLOCK = dict(ATTENTION, intermediate_dim=12)
TRAINING = dict(stop_gradient_memory=True, truncate_bptt=2, kernel_initializer="he_normal")
LAYERS = {
    "attention": (
        keras_fam.FeedbackAttention,
        {**ATTENTION, **TRAINING, "logit_soft_cap": 5.0, "sliding_window_size": 3},
    ),
    "attention_biased": (keras_fam.FeedbackAttention, {**ATTENTION, "use_bias": True, "rope_max_wavelength": None}),
    "gemma_block": (keras_fam.FAMDecoderBlock, {**BLOCK, **TRAINING}),
    "gemma2_block": (keras_fam.FAMDecoderBlock, {**BLOCK, **GEMMA2_LIKE}),
    "gpt2_block": (keras_fam.FAMDecoderBlock, {**BLOCK, **GPT2_LIKE}),
    "prompt": (keras_fam.FAMPrompt, dict(fam_length=3, embeddings_initializer="glorot_uniform")),
    "state_passing": (RandomStatePassing, dict(probability=0.5)),
    "places": (LearnedPlaces, dict(table_length=5, random_offset=True)),
}
WITH_FAM = [name for name in LAYERS if name.endswith("block") or name.startswith("attention")]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def make(kind, **changes):
    cls, config = LAYERS[kind]
    return cls(**{**config, **changes})


def call_arguments(name, length=11, rows=2):
    return (normal(rows, length, DIM), normal(1, 3, DIM, seed=1)) if name in WITH_FAM else (normal(rows, length, DIM),)


def call(layer, *arguments, **options):
    """The layer's outputs as a flat list; one compiled call on jax, where eager operations are compiled one by one."""
    tensors = [ops.convert_to_tensor(x) for x in arguments]
    if BACKEND != "jax":
        return keras.tree.flatten(layer(*tensors, **options))
    import jax

    @jax.jit
    def stateless(values, tensors):
        with keras.StatelessScope(zip(layer.variables, values)) as scope:
            results = keras.tree.flatten(layer(*tensors, **options))
        return results, [scope.get_current_value(v) for v in layer.variables]

    results, values = stateless([v.value for v in layer.variables], tensors)
    for variable, value in zip(layer.variables, values):
        variable.assign(value)
    return results


def outputs(layer, *arguments, **options):
    """The layer's outputs as a list of float64 arrays."""
    return [ops.convert_to_numpy(x).astype("float64") for x in call(layer, *arguments, **options)]


def assert_same(left, right, tolerance=1e-6):
    assert len(left) == len(right)
    for x, y in zip(left, right):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def random_layer(kind, seed=0, **changes):
    """The layer, built, with random values in every weight."""
    layer = make(kind, **changes)
    layer.build(*(x.shape for x in call_arguments(kind)))
    if kind != "state_passing":
        randomize(layer, seed, scale=0.5)
    return layer


# === Configuration and serialization ===


@pytest.mark.parametrize("name", LAYERS)
def test_config_round_trip(name):
    layer = random_layer(name)
    config = layer.get_config()
    assert all(config[key] == value for key, value in LAYERS[name][1].items() if "initializer" not in key)
    revived = type(layer).from_config(json.loads(json.dumps(config)))
    assert revived.get_config() == config
    revived.build(*(x.shape for x in call_arguments(name)))
    revived.set_weights(layer.get_weights())
    assert_same(outputs(revived, *call_arguments(name)), outputs(layer, *call_arguments(name)))


@pytest.mark.parametrize("name", LAYERS)
def test_serialization_by_registered_name(name):
    layer = random_layer(name, name="mine", trainable=False, dtype="mixed_bfloat16")
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    assert serialized["registered_name"].startswith("keras_fam>")
    revived = keras.saving.deserialize_keras_object(serialized)
    assert type(revived) is type(layer) and revived.get_config() == layer.get_config()
    assert (revived.name, revived.trainable, revived.dtype_policy.name) == ("mine", False, "mixed_bfloat16")


class TestKerasLayerChecks(testing.TestCase):
    """Keras's own standard test of a layer: configuration, symbolic and eager calls, mixed precision, training."""

    def check(self, name, weights, **options):
        cls, config = LAYERS[name]
        self.run_layer_test(cls, config, expected_num_trainable_weights=weights, supports_masking=True, **options)

    def test_fam_blocks(self):
        shapes = {"inputs_shape": (2, 11, DIM), "fam_shape": (2, 3, DIM)}
        for name, weights in (("gpt2_block", 16),):
            expected = ((2, 11, DIM), (2, 3, DIM))
            # Its training loop hands over one tensor only; `test_fit_then_save_and_load` trains with FAM.
            self.check(name, weights, input_shape=shapes, expected_output_shape=expected, run_training_check=False)

    def test_blocks_without_fam(self):
        for name, weights in (("attention", 4),):
            self.check(name, weights, input_shape=(2, 11, DIM), expected_output_shape=(2, 11, DIM))

    def test_prompt(self):
        self.check("prompt", 1, input_shape=(1, 11, DIM), expected_output_shape=(1, 3, DIM))


# === Shapes and dtypes ===


@pytest.mark.parametrize("name", ["attention", "gemma2_block", "gpt2_block", "prompt", "state_passing", "places"])
def test_static_shapes_and_dtypes_are_the_real_ones(name):
    layer, arguments = random_layer(name), call_arguments(name)
    real = call(layer, *arguments)
    symbolic = [keras.KerasTensor(x.shape) for x in arguments]
    spec = keras.tree.flatten(layer.compute_output_spec(*symbolic))
    assert [tuple(x.shape) for x in spec] == [tuple(x.shape) for x in real]
    assert [x.dtype for x in spec] == [keras.backend.standardize_dtype(x.dtype) for x in real]
    unknown = [keras.KerasTensor((None, None, DIM)), *symbolic[1:]]
    first = keras.tree.flatten(layer.compute_output_spec(*unknown))[0]
    assert name not in WITH_FAM or first.shape == (None, None, DIM)


@pytest.mark.parametrize("name", [*WITH_FAM, "prompt"])
def test_compute_output_shape(name):
    shapes = [x.shape for x in call_arguments(name)]
    expected = tuple(shapes) if name in WITH_FAM else (1, 3, DIM)
    assert make(name).compute_output_shape(*shapes) == expected


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", *(["float64"] if BACKEND != "jax" else [])])
@pytest.mark.parametrize("name", ["gemma2_block", "gpt2_block", "prompt"])
def test_dtype_policies(name, policy):
    exact, layer = random_layer(name), random_layer(name, dtype=policy)
    assert {v.dtype for v in layer.weights} == {keras.dtype_policies.get(policy).variable_dtype}
    rough = call(layer, *call_arguments(name))
    compute_dtype = keras.dtype_policies.get(policy).compute_dtype
    assert {keras.backend.standardize_dtype(x.dtype) for x in rough} == {compute_dtype}
    for x, y in zip(rough, outputs(exact, *call_arguments(name))):
        x = ops.convert_to_numpy(x).astype("float64")
        assert np.abs(x - y).mean() < (1e-5 if policy == "float64" else 0.02) * max(1.0, np.abs(y).mean())


def example(length=None, layers=2, vocabulary=20, **changes):
    """The README's model from scratch, small."""
    ids = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(vocabulary, 16)(ids)
    fam = keras_fam.FAMPrompt(fam_length=2)(x)
    for _ in range(layers):
        options = dict(num_query_heads=4, num_key_value_heads=1, head_dim=4, intermediate_dim=32)
        x, fam = keras_fam.FAMDecoderBlock(**{**options, "block_size": 4, "memory_segments": 1, **changes})(x, fam)
    return keras.Model(ids, keras.layers.Dense(vocabulary)(x))


@pytest.mark.parametrize("changes", [{**GPT2_LIKE, "dropout": 0.0}, GEMMA2_LIKE], ids=["gpt2", "gemma2"])
def test_symbolic_lengths(changes):
    """One model for every length: causality makes a shorter text's outputs the start of a longer one's."""
    model = example(**changes)
    ids = np.random.default_rng(0).integers(0, 20, (2, 13)).astype("int32")
    fixed = example(length=13, **changes)
    fixed.set_weights(model.get_weights())
    whole = fixed.predict_on_batch(ids)
    assert model.output.shape == (None, None, 20)
    for length in (6, 13):
        np.testing.assert_allclose(model.predict_on_batch(ids[:, :length]), whole[:, :length], rtol=1e-5, atol=1e-5)


# === Masks ===


@pytest.mark.parametrize("fam_length", [3, 0])
@pytest.mark.parametrize("name", ["attention", "gpt2_block"])
def test_keras_masks_are_taken_up_and_passed_on(name, fam_length):
    """Embedding(mask_zero=True) below the layer is the same as `inputs_mask` given by hand."""
    ids = np.random.default_rng(0).integers(1, 20, (3, 13)).astype("int32")
    ids[0, 10:] = 0
    ids[1, 4:8] = 0
    ids[2, 1:3] = 0
    embedding, layer = keras.layers.Embedding(20, DIM, mask_zero=True), random_layer(name, dropout=0.0)
    fam = [normal(1, 3, DIM, seed=1)] if fam_length else []
    masked = layer(embedding(ids), *fam)
    first = masked[0] if fam_length else masked
    np.testing.assert_array_equal(numpy(first._keras_mask), ids != 0)
    x = ops.convert_to_tensor(numpy(embedding(ids)))
    by_hand, unmasked = outputs(layer, x, *fam, inputs_mask=ids != 0)[0], outputs(layer, x, *fam)[0]
    real = ids != 0
    np.testing.assert_allclose(numpy(first)[real], by_hand[real], rtol=1e-5, atol=1e-5)
    assert np.abs(unmasked[real] - by_hand[real]).max() > 1e-3


def test_a_mask_goes_through_a_whole_functional_model():
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(20, DIM, mask_zero=True)(ids)
    fam = keras_fam.FAMPrompt(fam_length=3)(x)
    for _ in range(2):
        x, fam = keras_fam.FAMDecoderBlock(**BLOCK)(x, fam)
    model = keras.Model(ids, x)
    padded = np.array([[3, 4, 5, 0, 0, 0, 6, 7, 8, 9]], "int32")
    table = model.layers[1].get_weights()[0].copy()
    before = model.predict_on_batch(padded)
    table[0] += 5.0  # what padding is embedded as
    model.layers[1].set_weights([table])
    real = padded != 0
    np.testing.assert_allclose(model.predict_on_batch(padded)[real], before[real], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(numpy(model(padded)._keras_mask), real)


# === Hyperparameters ===


@pytest.mark.parametrize(
    "change",
    [
        dict(block_size=5),
        dict(memory_segments=2),
        dict(rope_max_wavelength=None),
        dict(rope_max_wavelength=10.0),
        dict(logit_soft_cap=0.5),
        dict(sliding_window_size=2),
        dict(layer_norm_epsilon=1.0),
        dict(normalization="layer_norm"),
        dict(gated_feedforward=False),
        dict(use_bias=True),
        dict(use_post_attention_norm=True),
        dict(use_post_ffw_norm=True),
        dict(num_key_value_heads=1),
        dict(num_query_heads=2),
    ],
    ids=str,
)
def test_every_hyperparameter_is_used(change):
    x = normal(2, 14, DIM)
    layer, changed = random_layer("gemma_block"), random_layer("gemma_block", **change)
    assert np.abs(outputs(layer, x)[0] - outputs(changed, x)[0]).max() > 1e-4


def test_kernel_initializer_and_dropout():
    arguments = call_arguments("gemma_block")
    layer = make("gemma_block", kernel_initializer="zeros", dropout=0.5)
    layer.build(*(x.shape for x in arguments))
    assert_same(outputs(layer, *arguments)[:1], [arguments[0]])
    randomize(layer)
    inference = outputs(layer, *arguments)
    first, second = (outputs(layer, *arguments, training=True) for _ in range(2))
    assert np.abs(first[0] - second[0]).max() > 1e-3 and np.abs(first[0] - inference[0]).max() > 1e-3
    # The prompt for the block above has no dropout.
    assert_same(first[1:], inference[1:])


def test_the_prompt_is_shared_by_rows_or_given_for_each():
    layer = random_layer("gemma2_block")
    x, fam = call_arguments("gemma2_block")
    shared, each = outputs(layer, x, fam), outputs(layer, x, np.repeat(fam, 2, axis=0))
    assert_same([shared[0]], [each[0]])
    assert_same([np.repeat(shared[1], 2, axis=0)], [each[1]])


# === The same layer as the stock one ===


def copy_weights(block, stock_layer):
    """The weights of a converted stock layer, in the shapes of a block made from its hyperparameters."""
    for name, mine in block.parts.layers().items():
        weights = getattr(stock_layer.parts, name).get_weights()
        if name.endswith("_norm") and block.normalization == "rms_norm":
            weights = [weight + 1.0 for weight in weights]  # Gemma stores its scales less one.
        # keras_hub's GPT-2 has the hidden dimension before the heads, here and in Gemma it is behind them.
        shapes = [tuple(weight.shape) for weight in mine.weights]
        weights = [w if w.shape == shape else np.swapaxes(w, 0, 1) for w, shape in zip(weights, shapes)]
        if weights:
            mine.set_weights(weights)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gpt2"])
def test_a_block_is_the_converted_stock_layer(family):
    """With the same weights, for tokens and for the prompt; the heads' dimensions are all different."""
    config = dict(num_query_heads=4, num_key_value_heads=2, head_dim=6, intermediate_dim=24)
    if family == "gemma2":
        config.update(GEMMA2_LIKE, sliding_window_size=5, rope_max_wavelength=10_000.0)
    if family == "gpt2":
        config.update(GPT2_LIKE, head_dim=4, intermediate_dim=32)
    backbone = keras_fam.FAMBackbone(stock_backbone(family), block_size=4, memory_segments=1, fam_length=3)
    stock_layer = backbone.transformer_layers[0]
    block = keras_fam.FAMDecoderBlock(**config, block_size=4, memory_segments=1)
    x, fam = normal(2, 14, 16), normal(1, 3, 16, seed=1)
    block.build(x.shape, fam.shape)
    copy_weights(block, stock_layer)
    mask = np.arange(14)[None] < np.array([[14], [9]])
    for arguments in ((x, fam), (x,)):
        expected, real = (
            outputs(stock_layer, *arguments, inputs_mask=mask),
            outputs(block, *arguments, inputs_mask=mask),
        )
        assert_same([real[0][mask], *real[1:]], [expected[0][mask], *expected[1:]], tolerance=1e-5)


@pytest.mark.parametrize("backbone_cls, config", [FAMILIES["gemma"], FAMILIES["gpt2"]], ids=["gemma", "gpt2"])
def test_without_fam_one_block_is_the_stock_decoder_layer(backbone_cls, config):
    """BSWA whose block holds the whole text, against the stock layer that it adopted, called as keras_hub does."""
    backbone = backbone_cls(**config)
    randomize(backbone)
    block = keras_fam.FAMBackbone(backbone, block_size=9, memory_segments=0, fam_length=0).transformer_layers[0]
    x = normal(2, 9, 16)
    assert_same(outputs(block, x), outputs(backbone.transformer_layers[0], x), tolerance=1e-5)


# === Training ===


def counting_texts(rows, length):
    """Texts that count on from a random number, modulo 20; input and target."""
    start = np.random.default_rng(length).integers(0, 20, (rows, 1))
    text = (start + np.arange(length + 1)).astype("int32") % 20
    return text[:, :-1], text[:, 1:]


def compiled(model, jit_compile):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(0.02), loss=loss, jit_compile=jit_compile)
    return model


@pytest.mark.parametrize("jit_compile", JIT_COMPILE)
def test_fit_then_save_and_load(jit_compile, tmp_path):
    """The loss falls, every weight has moved, and the file gives the same model back."""
    model = compiled(example(**GPT2_LIKE), jit_compile)
    before = {v.path: numpy(v) for v in model.trainable_variables}
    x, y = counting_texts(64, 13)
    history = model.fit(x, y, batch_size=16, epochs=8, verbose=0).history["loss"]
    assert history[0] > 1.5 and history[-1] < 0.3 * history[0]
    assert any("fam_prompt" in path for path in before)
    assert [v.path for v in model.trainable_variables if np.array_equal(numpy(v), before[v.path])] == []
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(x[:2]), model.predict_on_batch(x[:2]))


@pytest.mark.parametrize("jit_compile", JIT_COMPILE)
def test_fit_on_batches_of_different_lengths(jit_compile):
    """Under tensorflow the number of blocks is then unknown to the compiled step."""

    def batches():
        while True:
            yield counting_texts(16, 6)
            yield counting_texts(16, 13)

    model = compiled(example(layers=1, **GPT2_LIKE, truncate_bptt=2), jit_compile)
    history = model.fit(batches(), steps_per_epoch=10, epochs=2, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]
