"""The loss in pieces: the loss, gradients and metrics of all logits at once, from some positions' logits at a time."""

import gc
import weakref

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gradients import loss_and_gradients
from helpers.models import FAMILIES, VOCABULARY, fam_backbone, forward, inputs, numpy, randomize, token_ids
from keras import ops

import keras_fam
from keras_fam.training.chunked_loss import chunked_crossentropy

pytestmark = pytest.mark.shared_out

BACKEND = keras.config.backend()
PLAIN = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
IDS = token_ids(4, 13)
X, Y = IDS[:, :-1], IDS[:, 1:]
# Rows of several lengths, some tokens that weigh less, and weights in between that are 0.
WEIGHTS = (np.arange(12) < np.array([12, 7, 1, 4])[:, None]) * np.array([1.0, 0.5, 2.0, 1.0])[:, None]
WEIGHTS[0, 3:6] = 0.0
WEIGHTS = WEIGHTS.astype("float32")


def small(family, **changes):
    changes["stock"] = {"num_layers": 1, "dropout": 0.0, **changes.get("stock", {})}
    if "dropout" not in str(FAMILIES[family][0].__init__.__code__.co_varnames):
        del changes["stock"]["dropout"]
    return fam_backbone(family, **{"fam_length": 2, **changes})


def language_model(loss, family="llama", lora=False, optimizer=None, jit=BACKEND == "jax", seed=3, **options):
    keras.utils.set_random_seed(seed)
    compile_options = {"jit_compile": jit, "weighted_metrics": options.pop("weighted_metrics", "auto")}
    if options.pop("run_eagerly", False):
        compile_options = {"run_eagerly": True}
    with keras.RematScope(options.pop("remat", None)):
        lm = keras_fam.FAMCausalLM(small(family, **options))
    if lora:
        lm.enable_lora(2)
        randomize(lm, seed, scale=0.1)
    lm.compile(optimizer=optimizer or keras.optimizers.SGD(0.1), loss=loss, **compile_options)
    return lm


def trained(lm, weights=WEIGHTS, steps=1):
    """Losses and metrics of some steps, and what they left in every trained variable."""
    x = inputs(X, (weights > 0).astype("int32"))
    logs = [lm.train_on_batch(x, Y, sample_weight=weights, return_dict=True) for _ in range(steps)]
    return logs[-1], {v.path: numpy(v).astype("float32") for v in lm.trainable_variables}


def assert_same(made, expected, atol=1e-5):
    for name, value in expected[0].items():
        np.testing.assert_allclose(made[0][name], value, rtol=atol, atol=atol, err_msg=name)
    assert made[1].keys() == expected[1].keys()
    for path, value in expected[1].items():
        np.testing.assert_allclose(made[1][path], value, atol=atol, err_msg=path)


# === The function ===


class Head(keras.layers.Layer):
    """A loss of the embeddings of tokens, so many times the same, by a tied or untied, soft-capped head."""

    def __init__(self, tied=True, dtype="float32", times=1):
        super().__init__(dtype=dtype)
        self.x, self.y, self.weights_of_y = (np.tile(each, (times, 1)) for each in (X, Y, WEIGHTS))
        self.embedding = keras_hub.layers.ReversibleEmbedding(
            VOCABULARY, 8, tie_weights=tied, logit_soft_cap=3.0, dtype=dtype
        )
        self.embedding.build()
        randomize(self.embedding, 5, 1.0)
        self.loss_of = self.plain
        self.built = True

    def logits(self, hidden):
        return self.embedding(hidden, reverse=True)

    def plain(self, hidden):
        return PLAIN(self.y, self.logits(hidden), self.weights_of_y)

    def chunked(self, piece, groups=1, weights=None):
        def loss(hidden):
            used = self.weights_of_y if weights is None else weights
            sums = chunked_crossentropy(hidden, self.y, used, self.logits, piece, groups)
            return ops.divide_no_nan(sums.loss, sums.weight)

        return loss

    def call(self, ids, training=None):
        return self.loss_of(self.embedding(ids))

    def gradients(self, loss_of):
        self.loss_of = loss_of
        return loss_and_gradients(self, self.x, lambda loss: loss)


@pytest.mark.parametrize("groups, piece", [(1, 5), (1, 1), (1, 1024), (2, 6)])
@pytest.mark.parametrize("tied", [True, False])
def test_sums_and_gradients(tied, groups, piece):
    head = Head(tied)
    loss, gradients = head.gradients(head.plain)
    made, made_gradients = head.gradients(head.chunked(piece, groups))
    np.testing.assert_allclose(made, loss, rtol=1e-6)
    assert made_gradients.keys() == gradients.keys() and len(gradients) == (1 if tied else 2)
    for path, gradient in gradients.items():
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(made_gradients[path], gradient, atol=1e-5)


def test_gradients_in_bfloat16_are_as_near_to_the_truth_as_those_of_all_logits():
    """Many pieces of one position: their gradients added up in bfloat16 would be 2 to 3 times as far off."""
    wide, narrow = Head(times=16), Head(dtype="bfloat16", times=16)
    wide.embedding.embeddings.assign(ops.cast(narrow.embedding.embeddings, "float32"))
    truth, plain, chunked = (
        wide.gradients(wide.plain),
        narrow.gradients(narrow.plain),
        narrow.gradients(narrow.chunked(1)),
    )
    errors = [
        np.abs(next(iter(gradients.values())).astype("float32") - next(iter(truth[1].values()))).max()
        for _, gradients in (chunked, plain)
    ]
    assert errors[0] < 1.5 * errors[1]
    np.testing.assert_allclose(chunked[0], plain[0], rtol=1e-3)


def test_no_more_than_a_piece_is_computed_and_nothing_of_weight_0():
    """What is not real is NaN: it would show in a sum, even times 0."""
    head = Head()
    seen = []

    def logits_of(hidden):
        seen.append(int(np.prod(hidden.shape[:2])))
        return head.logits(hidden)

    real = WEIGHTS > 0
    hidden = np.random.default_rng(0).standard_normal((4, 12, 8)).astype("float32")
    hidden[~real] = np.nan
    targets = np.where(real, Y, -100)  # A usual mark of what counts for nothing.
    piece = 7
    assert real.sum() % piece == 0
    sums = chunked_crossentropy(ops.convert_to_tensor(hidden), targets, WEIGHTS, logits_of, piece)
    assert np.isfinite(numpy(sums.loss)) and max(seen) == piece
    logits = numpy(head.logits(np.nan_to_num(hidden)))
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, Y[..., None], -1)[..., 0]
    np.testing.assert_allclose(numpy(sums.loss), np.sum(losses * WEIGHTS), rtol=1e-5)
    np.testing.assert_allclose(numpy(sums.weight), WEIGHTS.sum(), rtol=1e-6)
    np.testing.assert_allclose(numpy(sums.correct), np.sum((logits.argmax(-1) == Y) * WEIGHTS), rtol=1e-6)


def test_a_piece_is_computed_once_for_the_sum_and_its_gradient():
    head, pieces = Head(), []

    def loss(hidden):
        def logits_of(hidden):
            pieces.append(hidden.shape)
            return head.logits(hidden)

        return chunked_crossentropy(hidden, Y, WEIGHTS, logits_of, piece=6).loss

    head.gradients(loss)
    # A row to see which variables are read, and the pieces; jax's loop is traced and not run.
    assert len(pieces) == 1 + (1 if BACKEND == "jax" else -(-(WEIGHTS > 0).sum() // 6))


@pytest.mark.parametrize("factor", [1e-7, 1e3])
def test_float16_holds_the_gradient_whatever_the_weights(factor):
    head = Head(dtype="float16")
    _, expected = head.gradients(head.chunked(5))
    _, made = head.gradients(head.chunked(5, weights=WEIGHTS * np.float32(factor)))
    for path, gradient in expected.items():
        np.testing.assert_allclose(made[path], gradient, atol=1e-3 * np.abs(gradient).max(), err_msg=path)


def test_gradient_of_a_sum_that_was_not_made_for_training():
    head = Head()

    def loss(hidden):
        sums = chunked_crossentropy(hidden, Y, WEIGHTS, head.logits, piece=5, training=False)
        return sums.loss / sums.weight

    _, expected = head.gradients(head.plain)
    for path, gradient in head.gradients(loss)[1].items():
        np.testing.assert_allclose(gradient, expected[path], atol=1e-5)


def test_nothing_real_at_all():
    head = Head()
    loss, gradients = head.gradients(head.chunked(5, weights=0 * WEIGHTS))
    assert loss == 0.0 and all(np.all(gradient == 0) for gradient in gradients.values())


# === Training ===


@pytest.mark.parametrize("family, lora", [("gemma2", True), ("llama", False)])
def test_a_step_is_that_of_all_logits(family, lora):
    expected = trained(language_model(PLAIN, family, lora), steps=2)
    made = trained(language_model(keras_fam.ChunkedCrossentropy(5), family, lora), steps=2)
    assert_same(made, expected)
    if BACKEND == "tensorflow":
        assert_same(
            trained(language_model(keras_fam.ChunkedCrossentropy(5), family, lora, jit=True), steps=2), expected
        )


WAYS = {
    "stateful, with remat, gradients accumulated": dict(
        stateful_batch_size=4,
        remat="full",
        optimizer=lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    ),
    "eager": dict(run_eagerly=True, fam_length=0),
    "mixed_float16": dict(stock={"dtype": "mixed_float16"}),
    "bfloat16": dict(stock={"dtype": "bfloat16"}, lora=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_training(way):
    options = dict(WAYS[way])
    optimizer = options.pop("optimizer", lambda: None)
    made, expected = (
        trained(language_model(loss, optimizer=optimizer(), **options), steps=2)
        for loss in (keras_fam.ChunkedCrossentropy(5), PLAIN)
    )
    assert_same(made, expected, atol={"mixed_float16": 1e-4, "bfloat16": 1e-3}.get(way, 1e-5))


def test_loss_and_metrics_are_means_per_real_token_whatever_the_batches():
    lm = language_model("chunked_crossentropy", weighted_metrics=["accuracy", "perplexity"])
    mask = (WEIGHTS > 0).astype("int32")
    logits = forward(lm, X, mask)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, Y[..., None], -1)[..., 0]
    loss = np.sum(losses * WEIGHTS) / WEIGHTS.sum()
    accuracy = np.sum((logits.argmax(-1) == Y) * WEIGHTS) / WEIGHTS.sum()
    truth = dict(loss=loss, accuracy=accuracy, perplexity=np.exp(loss))
    for batch_size in (1, 3):
        x = inputs(X, mask)
        found = lm.evaluate(x, Y, sample_weight=WEIGHTS, batch_size=batch_size, verbose=0, return_dict=True)
        assert found.keys() == truth.keys()
        for name, value in truth.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    # Without weights, the padding mask.
    found = lm.test_on_batch(inputs(X, mask), Y, return_dict=True)
    np.testing.assert_allclose(found["loss"], np.sum(losses * mask) / mask.sum(), rtol=1e-5)


def test_fit_on_batches_of_several_sizes_with_validation():
    lm = language_model("auto", weighted_metrics=["perplexity"])
    data = (inputs(X, (WEIGHTS > 0).astype("int32")), Y, WEIGHTS)
    history = lm.fit(*data[:2], sample_weight=WEIGHTS, batch_size=3, epochs=3, validation_data=data, verbose=0).history
    assert set(history) == {"loss", "perplexity", "val_loss", "val_perplexity"}
    assert history["loss"][2] < history["loss"][1] < history["loss"][0]
    np.testing.assert_allclose(np.exp(history["val_loss"]), history["val_perplexity"], rtol=1e-5)
    # What is no step of training gives logits.
    assert lm.predict(data[0], verbose=0).shape == (4, 12, VOCABULARY)
    assert lm.generate(inputs(X[:1]), max_length=14, stop_token_ids=None)["token_ids"].shape == (1, 14)


def test_the_loss_of_logits_that_a_user_computed():
    lm = language_model("chunked_crossentropy")
    logits = forward(lm, X)
    loss = lm.compute_loss(inputs(X), ops.convert_to_tensor(Y), ops.convert_to_tensor(logits), WEIGHTS)
    np.testing.assert_allclose(numpy(loss), numpy(PLAIN(Y, logits, WEIGHTS)), rtol=1e-5)
    np.testing.assert_allclose(numpy(lm.loss(Y, logits, WEIGHTS)), numpy(loss), rtol=1e-5)


# === Files ===


def test_a_saved_model_trains_on(tmp_path):
    lm = language_model(
        keras_fam.ChunkedCrossentropy(7), optimizer=keras.optimizers.Adam(0.01), weighted_metrics=["perplexity"]
    )
    trained(lm)
    lm.save(tmp_path / "lm.keras")
    loaded = keras.models.load_model(tmp_path / "lm.keras")
    assert isinstance(loaded.loss, keras_fam.ChunkedCrossentropy) and loaded.loss.piece == 7
    assert isinstance(loaded.sampler, type(lm.sampler)) and int(numpy(loaded.optimizer.iterations)) == 1
    assert_same(trained(loaded), trained(lm))


# === Refusals ===


@pytest.mark.parametrize("piece, error", [(0, ValueError), (-3, ValueError), (1.5, TypeError), (True, TypeError)])
def test_pieces_that_are_none(piece, error):
    with pytest.raises(error, match=r"`piece` must be .* Received: piece="):
        keras_fam.ChunkedCrossentropy(piece=piece)


@pytest.mark.parametrize(
    "name, value",
    [
        ("metrics", ["accuracy"]),
        ("weighted_metrics", [keras.metrics.SparseTopKCategoricalAccuracy()]),
        ("weighted_metrics", ["mse"]),
        ("loss_weights", [0.5]),
    ],
)
def test_what_needs_all_logits_is_refused(lm, unchanged, name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .* Received:"):
        lm.compile(loss="chunked_crossentropy", **{name: value})


@pytest.mark.parametrize(
    "name, data",
    [
        ("y", (X, None, None)),
        ("y", (X, Y[:, :-1], None)),
        ("sample_weight", (X, Y, WEIGHTS[:, :-1])),
        ("sample_weight", (X, Y, WEIGHTS[:-1])),
    ],
)
def test_wrong_targets_and_weights(name, data):
    lm = keras_fam.FAMCausalLM(small("gpt2"), compile=False)
    lm.compile()
    y_pred = ops.zeros((4, 12, VOCABULARY))
    with pytest.raises(ValueError, match=rf"`{name}` must .* Received: "):
        lm.compute_loss(inputs(data[0]), data[1], y_pred, data[2])


def test_unknown_names_are_refused_by_compile():
    with pytest.raises(ValueError, match="`loss` must be .* Received: loss='no_such_loss'"):
        language_model("no_such_loss", weighted_metrics=[])


def test_a_loss_may_come_in_a_list():
    losses = [keras.losses.SparseCategoricalCrossentropy(from_logits=True)]
    alone, listed = (trained(language_model(loss, weighted_metrics=[])) for loss in (losses[0], losses))
    assert_same(listed, alone)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tensorflow alone keeps gradients for ever")
def test_a_trained_model_is_let_go():
    lm = keras_fam.FAMCausalLM(fam_backbone("gpt2"))
    lm.compile("sgd")
    ids = token_ids(2, 8)
    for _ in range(2):  # And its step goes on working.
        lm.train_on_batch(inputs(ids), ids)
    lm.test_on_batch(inputs(ids), ids)
    backbone = weakref.ref(lm.backbone)
    del lm
    gc.collect()
    assert backbone() is None
