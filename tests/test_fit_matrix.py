"""`fit` in every way that Keras offers, with every kind of training: the plain run's weights, or a reason why not."""

import functools

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import fam_backbone, inputs, numpy, stock_backbone, token_ids

import keras_fam

pytestmark = pytest.mark.shared_out

BACKEND = keras.config.backend()
KINDS = {
    "plain": {},
    "lora": {},
    "passing": dict(random_state_passing=1.0),
    "stateful": dict(stateful_batch_size=2),
}
IDS = token_ids(8, 9)
X = {**inputs(IDS[:, :-1]), "document_start": np.array([1, 1, 0, 0, 0, 1, 0, 0], "int32")}
Y = IDS[:, 1:]
RATE = 0.1


def language_model(kind, optimizer=(), remat=None, dtype=None, **compiled):
    keras.utils.set_random_seed(0)
    with keras.RematScope(mode=remat):
        stock = {"num_layers": 1} if dtype is None else {"num_layers": 1, "dtype": dtype}
        lm = keras_fam.FAMCausalLM(fam_backbone("gemma", stock=stock, **KINDS[kind]))
    if kind == "lora":
        lm.enable_lora(2)
        for index, variable in enumerate(v for v in lm.trainable_variables if "lora" in v.path):
            variable.assign(0.2 * np.random.default_rng(index).standard_normal(variable.shape))
    # XLA is slow to compile for tensorflow, and only where it is asked for is it tried.
    compiled = {"jit_compile": BACKEND == "jax", **compiled}
    lm.compile(keras.optimizers.SGD(RATE, **{"momentum": 0.9, **dict(optimizer)}), **compiled)
    return lm


def fit(lm, epochs=2, **options):
    return lm.fit(X, Y, batch_size=2, epochs=epochs, shuffle=False, verbose=0, **options)


def values(lm):
    """All that a run leaves in a model, but for the seeds."""
    return {v.path: numpy(v).astype("float32") for v in lm.weights if "seed" not in v.path}


def assert_same(left, right, tolerance=1e-5):
    assert left.keys() == right.keys()
    for path, value in left.items():
        np.testing.assert_allclose(value, right[path], rtol=tolerance, atol=tolerance, err_msg=path)


@functools.cache
def plain_run(kind):
    lm = language_model(kind)
    fit(lm)
    return values(lm)


# === Ways that change nothing ===

COMPILED = {
    "jit": dict(jit_compile=True),
    "eager": dict(run_eagerly=True, jit_compile=False),
    "steps_per_execution": dict(steps_per_execution=2),
    "remat": dict(remat="full"),
    "clipnorm": dict(optimizer=dict(clipnorm=1e6)),
    "global_clipnorm": dict(optimizer=dict(global_clipnorm=1e6)),
    "clipvalue": dict(optimizer=dict(clipvalue=1e6)),
}
if BACKEND == "torch":  # Keras refuses the one there, and compiles for a minute with the other.
    del COMPILED["steps_per_execution"], COMPILED["jit"]
CALLBACKS = {
    "EarlyStopping": lambda folder: keras.callbacks.EarlyStopping("loss", patience=9),
    "ReduceLROnPlateau": lambda folder: keras.callbacks.ReduceLROnPlateau("loss", patience=9),
    "LearningRateScheduler": lambda folder: keras.callbacks.LearningRateScheduler(lambda epoch, rate: RATE),
    "BackupAndRestore": lambda folder: keras.callbacks.BackupAndRestore(folder / "backup"),
    "BackupAndRestore, each step": lambda folder: keras.callbacks.BackupAndRestore(folder / "backup", save_freq=1),
    "ModelCheckpoint": lambda folder: keras.callbacks.ModelCheckpoint(folder / "m.weights.h5", save_weights_only=True),
    "ModelCheckpoint, best": lambda folder: keras.callbacks.ModelCheckpoint(
        folder / "m.keras", monitor="loss", save_best_only=True
    ),
    "CSVLogger": lambda folder: keras.callbacks.CSVLogger(folder / "log.csv"),
    "TerminateOnNaN": lambda folder: keras.callbacks.TerminateOnNaN(),
}
FITS = {
    "sample weights": lambda folder: dict(sample_weight=np.ones(Y.shape, "float32")),
    "validation data": lambda folder: dict(validation_data=(X, Y)),
    **{name: lambda folder, make=make: dict(callbacks=[make(folder)]) for name, make in CALLBACKS.items()},
}
# What has been wrong, or is easily so, goes in the default run.
QUICK = {("stateful", "steps_per_execution"), ("stateful", "remat")}


def every(ways):
    for kind in KINDS:
        for way in ways:
            yield pytest.param(kind, way, marks=() if (kind, way) in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("kind, way", every(COMPILED))
def test_compiled_in_another_way(kind, way):
    lm = language_model(kind, **COMPILED[way])
    fit(lm)
    assert_same(values(lm), plain_run(kind))


@pytest.mark.parametrize("kind, way", every(FITS))
def test_fit_with_more(kind, way, tmp_path):
    lm = language_model(kind)
    fit(lm, **FITS[way](tmp_path))
    assert_same(values(lm), plain_run(kind))


# === Ways that change the weights, by a rule ===


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_accumulation_is_the_mean_of_its_steps(kind):
    """Memory is passed on in every step; the weights move in every second one."""
    batches = [({name: value[i : i + 2] for name, value in X.items()}, Y[i : i + 2]) for i in (0, 2)]
    by_hand = language_model(kind, optimizer=dict(momentum=0.0))
    start, moved = [numpy(v) for v in by_hand.trainable_variables], []
    for batch in batches:
        by_hand.train_on_batch(*batch)
        moved.append([numpy(v) - s for v, s in zip(by_hand.trainable_variables, start)])
        for variable, value in zip(by_hand.trainable_variables, start):
            variable.assign(value)
    for variable, value, *moves in zip(by_hand.trainable_variables, start, *moved):
        variable.assign(value + sum(moves) / 2)
    lm = language_model(kind, optimizer=dict(momentum=0.0, gradient_accumulation_steps=2))
    for batch in batches:
        lm.train_on_batch(*batch)
    assert_same(values(lm), values(by_hand))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_clipping_bounds_what_a_step_moves(kind):
    lm = language_model(kind, optimizer=dict(momentum=0.0, global_clipnorm=1e-2))
    before = [numpy(v) for v in lm.trainable_variables]
    lm.train_on_batch({name: value[:2] for name, value in X.items()}, Y[:2])
    moved = sum(np.square(numpy(v) - b).sum() for v, b in zip(lm.trainable_variables, before)) ** 0.5
    np.testing.assert_allclose(moved, RATE * 1e-2, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_averages_of_weights(kind):
    """The average of the weights of all steps takes their place at the end; memory is that of the last step."""
    steps = []

    def look(batch, logs):
        if BACKEND == "jax":
            by_hand.jax_state_sync()
        steps.append([numpy(v) for v in by_hand.trainable_variables])

    by_hand = language_model(kind)
    averages = [numpy(v) for v in by_hand.trainable_variables]
    fit(by_hand, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=look)])
    for index, step in enumerate(steps):
        averages = step if index == 0 else [0.5 * a + 0.5 * s for a, s in zip(averages, step)]
    for variable, value in zip(by_hand.trainable_variables, averages):
        variable.assign(value)
    lm = language_model(kind, optimizer=dict(use_ema=True, ema_momentum=0.5))
    fit(lm)
    assert_same(values(lm), values(by_hand))


# === Half precision ===


def losses(lm, dtype):
    history = fit(lm, epochs=4).history["loss"]
    assert np.isfinite(history).all(), dtype
    return np.array(history)


@functools.cache
def stock_losses(dtype):
    keras.utils.set_random_seed(0)
    lm = keras_hub.models.GemmaCausalLM(stock_backbone("gemma", num_layers=1, dtype=dtype))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    lm.compile(keras.optimizers.SGD(RATE, momentum=0.9), loss, jit_compile=BACKEND == "jax", weighted_metrics=[])
    x = {name: X[name] for name in ("token_ids", "padding_mask")}
    return np.array(lm.fit(x, Y, batch_size=2, epochs=4, shuffle=False, verbose=0).history["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_deviates_like_stock(kind, dtype):
    """Keras scales the loss by itself under mixed_float16."""
    deviation = np.abs(losses(language_model(kind, dtype=dtype), dtype) - losses(language_model(kind), "float32"))
    stock = np.abs(stock_losses(dtype) - stock_losses("float32"))
    assert deviation.max() <= 3 * stock.max() + 5e-3


# === Interruption ===


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_a_file(kind, tmp_path):
    lm = language_model(kind)
    fit(lm, epochs=1)
    lm.save_weights(tmp_path / "a.weights.h5")
    resumed = language_model(kind)
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(tmp_path / "a.weights.h5")
    fit(resumed, epochs=1)
    assert_same(values(resumed), plain_run(kind))


class Interrupted(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_goes_on(kind, tmp_path):
    """Broken off in the middle of the second epoch, it goes on from the end of the first."""

    def interrupt(batch, logs):
        if len(begun) == 6:
            raise Interrupted
        begun.append(batch)

    begun = []
    lm = language_model(kind)
    stop = keras.callbacks.LambdaCallback(on_train_batch_begin=interrupt)
    with pytest.raises(Interrupted):
        fit(lm, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup"), stop])
    resumed = language_model(kind)
    fit(resumed, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    assert_same(values(resumed), plain_run(kind))
