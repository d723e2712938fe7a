"""`keras.RematScope` around models with memory: whole layers are computed twice, and draw their seeds once."""

import functools
import traceback
from collections.abc import Callable
from typing import Any

import keras

from keras_fam.backend import on_jax_cpu
from keras_fam.types import MixedIn


class RematerializesPurely(MixedIn):
    """A layer with `call_around(rematerialize, *args)`: `call`, with only what is pure inside `rematerialize`.

    A seed that is drawn, or a weight that is assigned, in what Keras rematerialises would be so twice, with another
    mask in the backward pass (torch, tensorflow), or be refused (jax).
    """

    def rematerialized_call(self, layer_call: Callable, *args: Any, **kwargs: Any) -> Callable:
        """Keras's hook for `keras.RematScope`.

        Args:
            layer_call: `call` of this layer, in whose place `call_around` is used.
            *args: what Keras's own hook takes.
            **kwargs: what Keras's own hook takes.

        Returns:
            Callable with the arguments of `call`, which computes the layer twice if the scope says so.
        """
        hook = super().rematerialized_call

        def rematerialize(compute):
            if keras.config.backend() == "torch":
                compute = _leaving_no_frames(compute)
            rematerialized = hook(compute, *args, **kwargs)
            left_alone = rematerialized is compute
            return _twice_on_jax_cpu(compute) if on_jax_cpu() and not left_alone else rematerialized

        return functools.partial(self.call_around, rematerialize)


def rematerialize_blocks_alone(layer):
    """Takes rematerialisation from `layer`, unless it is pure, and from all that it is made of but pure layers.

    A layer computed twice inside one that is computed twice saves nothing, and embeddings and dropout that are made in
    a `keras.RematScope` must not be.
    """
    inside_pure = isinstance(layer, RematerializesPurely)
    for part in layer._flatten_layers():
        keeps = part is layer if inside_pure else isinstance(part, RematerializesPurely)
        if not keeps:
            part._remat_mode = None


def _twice_on_jax_cpu(compute):
    """`jax.checkpoint` for XLA on CPU: a layer's second computation runs inside a branch.

    XLA on CPU drops the barriers by which `jax.checkpoint` holds a second computation back until it is due. It then
    plans memory for the second computations of all layers at once. It does not look into a branch whose condition is
    not known. Here the condition is made from the gradient of the layer's outputs, so the branch runs when that
    gradient is there, and its memory is free again for the next layer's.
    """
    import jax

    def call(*inputs):
        function, weights = jax.closure_convert(compute, *inputs)

        @jax.custom_vjp
        def layer(inputs, weights):
            return function(*inputs, *weights)

        def forward(inputs, weights):
            return layer(inputs, weights), (inputs, weights)

        def backward(kept, gradient):
            def second_computation():
                _, pull_back = jax.vjp(lambda inputs, weights: function(*inputs, *weights), *kept)
                return pull_back(gradient)

            due = 0 * jax.tree.leaves(gradient)[0].ravel()[0] != 1  # True, of a NaN too.
            return jax.lax.cond(due, second_computation, lambda: jax.tree.map(jax.numpy.zeros_like, kept))

        layer.defvjp(forward, backward)
        return layer(inputs, weights)

    return call


def _leaving_no_frames(compute):
    """`compute` whose exceptions keep no tensors.

    torch ends a second computation by an exception. Keras keeps that exception, and with it its frames and all tensors
    in them, so the frames are cleared.
    """

    def call(*args):
        try:
            return compute(*args)
        except Exception as end:
            traceback.clear_frames(end.__traceback__)
            raise

    return call
