"""`keras.RematScope` around models with memory: whole layers are computed twice, and draw their seeds once."""

import functools


class RematerializesPurely:
    """A layer with `call_around(rematerialize, *args)`: `call`, with only what is pure inside `rematerialize`.

    A seed that is drawn, or a weight that is assigned, in what Keras rematerialises would be so twice, with another
    mask in the backward pass (torch, tensorflow), or be refused (jax).
    """

    def rematerialized_call(self, layer_call, *args, **kwargs):
        """Keras's hook for `keras.RematScope`."""
        rematerialize = super().rematerialized_call
        return functools.partial(self.call_around, lambda compute: rematerialize(compute, *args, **kwargs))


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
