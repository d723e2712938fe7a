"""Sink, gate, bounded memory, exact sums: equal to the reference, whole and streamed, and harmless where asked."""

import keras
import numpy as np
import pytest
from helpers.models import (
    FAMILIES,
    fam_backbone,
    forward,
    inputs,
    numpy,
    reference,
    stock_backbone,
    token_ids,
    weights_by_path,
)
from keras import ops

import keras_fam

pytestmark = pytest.mark.shared_out

TOLERANCE = dict(rtol=1e-5, atol=1e-5)
# Gemma 3 divides by the length of every query and key: roundings of vectors that happen to be short weigh more.
NORMED_TOLERANCE = dict(rtol=1e-5, atol=5e-5)
OPTIONS = {
    "sink": dict(sink_token_id=1),
    "sink alone": dict(sink_token_id=1, fam_length=0),
    "gate": dict(memory_gate=-1.0),
    "span": dict(memory_span=0.5),
    "spans": dict(memory_span=(0.25, 1.0, 4.0)),
    "all": dict(sink_token_id=2, memory_gate=0.5, memory_span=0.5),
}
SOME = ["gemma3", "gpt2", "llama3"]


def streamed(backbone, ids, chunks):
    state, parts, start = backbone.initial_state(len(ids)), [], 0
    for chunk in chunks:
        hidden, state = backbone.stream(ids[:, start : start + chunk], state)
        parts.append(numpy(hidden))
        start += chunk
    return np.concatenate(parts, axis=1), state


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("family", SOME)
def test_whole_and_streamed_equal_the_reference(family, options):
    """Also with blocks as long as FAM is, where the sink lies in the block before the last."""
    for block_size in (4, 3) if options == "all" else (4,):
        backbone = fam_backbone(family, block_size, 1, **{"fam_length": 3, **OPTIONS[options]})
        ids = token_ids(2, 18)
        expected, fams = reference(backbone, ids)
        tolerance = NORMED_TOLERANCE if family == "gemma3" else TOLERANCE
        np.testing.assert_allclose(forward(backbone, ids), expected, **tolerance)
        made, state = streamed(backbone, ids, [1, 2, 6, 1, 8])
        np.testing.assert_allclose(made, expected, **tolerance)
        for layer, fam in zip(state.layers, fams):
            np.testing.assert_allclose(numpy(layer.fam), fam, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_does_no_harm(family):
    """Property 8: behind a gate of -30, FAM is block attention with the sink on the same place, -N-1."""
    shut = fam_backbone(family, sink_token_id=1, memory_gate=-30.0)
    for layer in shut.transformer_layers:
        layer.memory_gate.assign(-30.0)
    ids = token_ids(2, 18)
    without = {path: -np.inf if path.endswith("memory_gate") else v for path, v in weights_by_path(shut).items()}
    expected, _ = reference(shut, ids, weights=without)
    np.testing.assert_allclose(forward(shut, ids), expected, **NORMED_TOLERANCE)
    np.testing.assert_allclose(streamed(shut, ids, [5, 13])[0], expected, **NORMED_TOLERANCE)
    # The sink is seen: without it the numbers are others.
    assert np.abs(forward(fam_backbone(family, fam_length=0), ids) - expected).max() > 1e-3
    if family == "gpt2":  # No place is rotated, so N has no part in the sink's.
        made = forward(fam_backbone(family, sink_token_id=1, fam_length=0), ids)
        np.testing.assert_allclose(made, expected, **TOLERANCE)


@pytest.mark.parametrize("family", ["gemma", "llama"])
def test_a_sink_is_the_start_token_at_a_fixed_distance(family):
    """One block, its start token as sink: as if the stock model had the token one place before the text."""
    stock = stock_backbone(family)
    ids = token_ids(1, 7)
    expected = forward(stock, np.concatenate([[[9]], ids], axis=1))[:, 1:]
    backbone = keras_fam.FAMBackbone(stock, block_size=7, memory_segments=0, fam_length=0, sink_token_id=9)
    np.testing.assert_allclose(forward(backbone, ids), expected, **TOLERANCE)


@pytest.mark.parametrize("family", SOME)
def test_a_sink_follows_the_weights(family):
    """Weights that were loaded or trained after the model was made count for the start token too."""
    stock = stock_backbone(family)
    options = dict(block_size=4, memory_segments=1, fam_length=0, sink_token_id=1)
    backbone = keras_fam.FAMBackbone(stock, **options)
    ids = token_ids(2, 10) % 40 + 2  # without the start token
    before = forward(backbone, ids)
    embeddings = stock.token_embedding.embeddings
    values = numpy(embeddings).copy()
    values[1] = -values[3]
    embeddings.assign(values)
    expected = forward(keras_fam.FAMBackbone(stock, **options), ids)
    assert np.abs(expected - before).max() > 1e-3
    np.testing.assert_allclose(forward(backbone, ids), expected, **TOLERANCE)
    np.testing.assert_allclose(streamed(backbone, ids, [3, 7])[0], expected, **TOLERANCE)


def test_a_gate_of_0_is_the_paper():
    ids = token_ids(2, 18)
    gated = fam_backbone("gemma", memory_gate=0.0)
    for layer in gated.transformer_layers:
        layer.memory_gate.assign(0.0)
    np.testing.assert_allclose(forward(gated, ids), forward(fam_backbone("gemma"), ids), rtol=1e-6, atol=1e-6)


def test_gates_train_alone_and_with_lora_and_are_saved(tmp_path):
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma", memory_gate=-2.0))
    lm.enable_lora(2)
    paths = [v.path for v in lm.trainable_variables]
    assert [path for path in paths if "gate" in path.split("/")[-1]] == [
        f"decoder_block_{index}/memory_gate" for index in range(2)
    ]
    before = [float(numpy(layer.memory_gate)) for layer in lm.backbone.transformer_layers]
    lm.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ids = token_ids(4, 13)
    lm.fit(inputs(ids[:, :-1]), ids[:, 1:], verbose=0)
    after = [float(numpy(layer.memory_gate)) for layer in lm.backbone.transformer_layers]
    assert all(x != y for x, y in zip(before, after))
    lm.save_lora_weights(tmp_path / "gates.lora.h5")
    other = keras_fam.FAMCausalLM(fam_backbone("gemma", memory_gate=0.0))
    other.load_lora_weights(tmp_path / "gates.lora.h5")
    assert [float(numpy(layer.memory_gate)) for layer in other.backbone.transformer_layers] == after


# === Bounded memory ===


def test_a_span_that_is_never_reached_is_the_plain_sum():
    ids = token_ids(2, 22)
    plain, far = forward(fam_backbone("gemma2"), ids), forward(fam_backbone("gemma2", memory_span=1e6), ids)
    np.testing.assert_allclose(far, plain, rtol=1e-6, atol=1e-6)


def test_a_blocks_share_does_not_fall_with_age():
    """In the plain sum F grows with the text; bounded, it stays short and the newest block turns it as at the start."""
    rng, chunk = np.random.default_rng(0), 150

    def turns(span):
        one_layer = {"num_layers": 1}
        backbone = fam_backbone("gpt2", block_size=4, memory_segments=0, memory_span=span, stock=one_layer)
        state, angles, lengths = backbone.initial_state(8), [], []
        for _ in range(3):
            ids = rng.integers(0, 50, (8, chunk * 4)).astype("int32")
            _, state = backbone.stream(ids, state)
            _, after = backbone.stream(ids[:, :4], state)
            old, new = (numpy(s.layers[0].fam) for s in (state, after))
            cosine = (old * new).sum(-1) / np.linalg.norm(old, axis=-1) / np.linalg.norm(new, axis=-1)
            angles.append(np.arccos(np.clip(cosine, -1, 1)).mean())
            lengths.append(np.linalg.norm(old, axis=-1).mean())
        return angles, lengths

    angles, lengths = turns(4.0)
    assert min(angles) > 0.5 * max(angles) and min(angles) > 0.05 and max(lengths) < 2 * min(lengths)
    angles, lengths = turns(None)
    assert angles[2] < 0.6 * angles[0] and lengths[2] > 2 * lengths[0]


def test_the_bound_has_no_gradient():
    """The factor is a constant: the gradient is that of the sum with the factor held."""
    from keras_fam.memory.feedback import bound_residual

    residual, added = (np.random.default_rng(seed).standard_normal((1, 3, 4)).astype("float32") for seed in (0, 1))
    factor = np.minimum(1, 0.25 * np.linalg.norm(added, axis=-1) / np.linalg.norm(residual, axis=-1))[..., None]
    made = bound_residual(ops.convert_to_tensor(added + residual), ops.convert_to_tensor(residual), 0.25)
    np.testing.assert_allclose(numpy(made), added + residual * factor, rtol=1e-5, atol=1e-6)
    zero = bound_residual(ops.convert_to_tensor(added), ops.zeros((1, 3, 4)), 0.25)
    np.testing.assert_array_equal(numpy(zero), added)


def test_a_state_of_another_span_goes_on(tmp_path):
    """A span is an option of use: the state has the same shape, and what is read next is bounded by the new one."""
    ids = token_ids(1, 12)
    _, state = fam_backbone("gemma").stream(ids, fam_backbone("gemma").initial_state(1))
    keras_fam.save_state(tmp_path / "state.npz", state)
    state = keras_fam.load_state(tmp_path / "state.npz")
    bounded = fam_backbone("gemma", memory_span=0.5)
    hidden, after = bounded.stream(ids, state)
    assert np.isfinite(numpy(hidden)).all()
    assert np.abs(numpy(after.layers[0].fam)).max() < np.abs(numpy(state.layers[0].fam)).max()


# === Exact sums ===


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "mixed_bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_fam_is_float32_and_goes_on_changing(family, dtype):
    """Rounded to bfloat16, F stops changing once it is long: after 500 blocks an update changed 12 % of its values."""
    stock = {"dtype": keras.dtype_policies.get(dtype), "num_layers": 1}
    backbone = fam_backbone(family, block_size=4, memory_segments=0, stock=stock)
    state, rng = backbone.initial_state(1), np.random.default_rng(0)
    _, state = backbone.stream(rng.integers(0, 50, (1, 1200)).astype("int32"), state)
    old = state
    _, state = backbone.stream(rng.integers(0, 50, (1, 4)).astype("int32"), state)
    for before, after in zip(old.layers, state.layers):
        assert keras.backend.standardize_dtype(after.fam.dtype) == "float32"
        assert (numpy(before.fam) != numpy(after.fam)).mean() > 0.9
        assert np.isfinite(numpy(after.fam)).all()


def test_fam_may_pass_what_float16_holds():
    """F of 100,000 and more: read through the norm, in float32, it gives what it gives in a float32 model."""
    exact, half = (fam_backbone("gemma3", stock={"dtype": dtype}) for dtype in ("float32", "float16"))
    ids = token_ids(1, 4)

    def read(backbone):
        _, state = backbone.stream(ids, backbone.initial_state(1))
        layers = tuple(layer._replace(fam=layer.fam * 1e6) for layer in state.layers)
        hidden, state = backbone.stream(token_ids(1, 12, seed=1), state._replace(layers=layers))
        return numpy(ops.cast(hidden, "float32")), state

    (expected, _), (made, state) = read(exact), read(half)
    assert np.abs(numpy(state.layers[0].fam)).max() > 65504
    assert np.isfinite(made).all() and np.abs(made - expected).mean() < 0.02 * np.abs(expected).mean()


# === Refusals ===


@pytest.mark.parametrize(
    "options, match",
    [
        (dict(sink_token_id=50), "`sink_token_id`.*0 to 49.*50"),
        (dict(sink_token_id=-1), "`sink_token_id`.*-1"),
        (dict(sink_token_id=1.5), "`sink_token_id`.*1.5"),
        (dict(memory_gate=float("nan")), "`memory_gate`.*nan"),
        (dict(memory_gate="open"), "`memory_gate`.*open"),
        (dict(memory_gate=1.0, fam_length=0), "`memory_gate` needs FAM"),
        (dict(memory_span=0.0), "`memory_span`.*0.0"),
        (dict(memory_span=-1), "`memory_span`.*-1"),
        (dict(memory_span=float("inf")), "`memory_span`.*inf"),
        (dict(memory_span=float("nan")), "`memory_span`.*nan"),
        (dict(memory_span=[1.0, float("nan"), 2.0]), "`memory_span`.*nan"),
        (dict(memory_span=[1.0, 2.0]), "`memory_span`.*3 FAM vectors.*2 numbers"),
        (dict(memory_span=[1.0, 2.0, 0.0]), "`memory_span`.*0.0"),
        (dict(memory_span=[]), "`memory_span`"),
        (dict(memory_span=8.0, fam_length=0), "`memory_span` needs FAM"),
    ],
    ids=str,
)
def test_refused(options, match):
    with pytest.raises((TypeError, ValueError), match=match):
        keras_fam.FAMBackbone(stock_backbone("gemma"), 4, 1, **{"fam_length": 3, **options})


def test_positions_that_32_bits_do_not_hold_are_refused():
    stock = stock_backbone("gpt2", max_sequence_length=65_521)
    with pytest.raises(ValueError, match="below 2\\*\\*31"):
        keras_fam.FAMBackbone(stock, block_size=21_839, memory_segments=2, fam_length=1)
