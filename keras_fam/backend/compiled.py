"""Functions of a model's variables, compiled where the backend compiles, and dropped once the variables are others."""

from collections.abc import Callable
from typing import Any

import keras

from keras_fam.arguments import DEFAULT, given
from keras_fam.backend.devices import strategy_replicas
from keras_fam.backend.quantized import keep_gradient
from keras_fam.types import MixedIn

# Where Keras and KerasHub keep what they compiled.
KEPT_FUNCTIONS = ("train_function", "test_function", "predict_function", "generate_function")


class CompiledFunctions(MixedIn):
    """A layer or model that keeps compiled functions for as long as they read the variables that it has.

    LoRA, quantization and `trainable = ...` change what a function has to read. A graph that was compiled before goes
    on with the variables that it knew. So every function is asked for here, and all are dropped if something changed.
    """

    _compiled_for: int | None = None
    _compiled: dict[str, Callable]

    def inference(self, name: str, function: Callable) -> Callable:
        """A function compiled without gradients, and kept for the next time.

        Args:
            name: str, under which it is kept.
            function: callable of nested structures of tensors, with hashable keyword arguments.

        Returns:
            A callable with the same arguments.
        """
        self.drop_stale_functions()
        if name not in self._compiled:
            self._compiled[name] = compile_inference(self, function)
        return self._compiled[name]

    def drop_stale_functions(self) -> None:
        """Drops all that was compiled if the variables, or which of them train, are others than they were then."""
        variables = hash((self.dtype_policy.name, *((id(v), v.trainable) for v in self.variables)))
        if variables == self._compiled_for:
            return
        self._compiled_for = variables
        self._compiled.clear()
        for name in KEPT_FUNCTIONS:
            if getattr(self, name, None) is not None:
                setattr(self, name, None)


class CompiledModel(CompiledFunctions):
    """`CompiledFunctions` for the functions that `keras.Model` compiles."""

    def make_train_function(self, force: bool = False) -> Callable:
        """The compiled step of `fit`; see `keras.Model.make_train_function`.

        Args:
            force: bool. Whether it is made anew if there is one.

        Returns:
            Callable.

        Raises:
            ValueError: the optimizer was made for other variables than those that train now.
        """
        self.drop_stale_functions()
        self._check_optimizer()
        self._build_optimizer()
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Callable:
        """The compiled step of `evaluate`; see `keras.Model.make_test_function`.

        Args:
            force: bool. Whether it is made anew if there is one.

        Returns:
            Callable.
        """
        self.drop_stale_functions()
        return super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> Callable:
        """The compiled step of `predict`; see `keras.Model.make_predict_function`.

        Args:
            force: bool. Whether it is made anew if there is one.

        Returns:
            Callable.
        """
        self.drop_stale_functions()
        return super().make_predict_function(force)

    def quantize(
        self, mode: str | None = DEFAULT, config: Any = DEFAULT, filters: Any = DEFAULT, **kwargs: Any
    ) -> None:
        """Makes the model's weights integers, as `keras.Model.quantize` does. Enable LoRA afterwards, if at all.

        Args:
            mode: str, such as `"int8"`.
            config: `keras.quantizers.QuantizationConfig`, or None.
            filters: see `keras.Model.quantize`: which layers.
            **kwargs: what Keras takes too.

        Raises:
            ValueError: what Keras refuses.
        """
        kwargs |= given(locals(), "mode", "config", "filters")
        if hasattr(self, "backbone"):  # A task's tokenizer is a layer too, and one that Keras refuses to quantize.
            return self.backbone.quantize(**kwargs)
        super().quantize(**kwargs)
        keep_gradient(self.token_embedding)

    def _build_optimizer(self):
        """On tensorflow a step that makes variables would be traced twice. With several replicas Keras makes them."""
        optimizer = getattr(self, "optimizer", None)
        alone = keras.config.backend() == "tensorflow" and strategy_replicas(self) == 1
        if alone and optimizer is not None and not optimizer.built and self.trainable_variables:
            optimizer.build(self.trainable_variables)

    def _check_optimizer(self):
        """Refuses to train other variables than those that the optimizer was built for."""
        optimizer = getattr(self, "optimizer", None)
        if optimizer is None or not optimizer.built:
            return
        made_for: Any = getattr(optimizer, "_trainable_variables", self.trainable_variables)
        known = {id(v): v.path for v in made_for}
        trained = {id(v): v.path for v in self.trainable_variables}
        new = [path for key, path in trained.items() if key not in known]
        # The others update the variables that they are given; jax hands over all of them at once.
        frozen = [path for key, path in known.items() if key not in trained and keras.config.backend() == "jax"]
        if new or frozen:
            raise ValueError(
                "`compile` must be called again after a change of what is trained (LoRA, `trainable`, quantization): "
                f"expected the {len(known)} variables that the optimizer was made for. Received: {len(trained)}, with "
                f"{len(new)} new and {len(known) - len(trained) + len(new)} frozen, such as {(new or frozen)[0]!r}."
            )


def compile_inference(model: keras.Model, function: Callable) -> Callable:
    """`function(*tensors)`, without gradients, compiled once per shape and per value of its keyword arguments.

    Args:
        model: `keras.Model` whose variables `function` reads; it must assign none of them.
        function: callable of nested structures of tensors, with hashable keyword arguments.

    Returns:
        A callable with the same arguments. It never writes into the tensors it is given.
    """
    backend = keras.config.backend()
    if backend == "jax":
        return _compile_jax(model, function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    return without_gradients(function)


def as_written(function: Callable) -> Callable:
    """`function` for use inside tensorflow's compiled ones: its Python is not translated into a graph by AutoGraph.

    Nothing in this package needs that. To translate it takes tensorflow longer than to trace it.
    """
    if keras.config.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def without_gradients(function: Callable) -> Callable:
    """`function` for use inside a compiled one: torch does not record it."""
    if keras.config.backend() != "torch":
        return function
    import torch

    return torch.no_grad()(function)


def _compile_jax(model, function):
    import jax

    def stateless(values, arguments, options):
        mapping = zip(model.variables, values)
        with keras.StatelessScope(state_mapping=mapping):
            return function(*arguments, **dict(options))

    compiled = jax.jit(stateless, static_argnums=2)

    def call(*arguments, **options):
        values = [variable.value for variable in model.variables]
        return compiled(values, arguments, tuple(sorted(options.items())))

    return call
