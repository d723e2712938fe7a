"""`DecoderParts` as a configuration and back: each sublayer by its own, built again under its own name."""

import contextlib
from dataclasses import fields

import keras

from keras_fam.memory.parts import DecoderParts

# The shape that each sublayer is built for: d, or heads of c.
_HEADS = {"query_norm": "num_query_heads", "key_norm": "num_key_value_heads", "output": "num_query_heads"}


def parts_to_config(parts: DecoderParts) -> dict:
    """A JSON-like description of `parts`, without weights.

    Args:
        parts: `DecoderParts` of built sublayers.

    Returns:
        dict for `parts_from_config`.
    """
    config = {field.name: getattr(parts, field.name) for field in fields(parts)}
    for name, part in parts.layers().items():
        config[name] = {"layer": _layer_to_config(part), "path": part.path}
    if parts.activation is not None:
        config["activation"] = keras.activations.serialize(parts.activation)
    config["hidden_dim"] = parts.hidden_dim
    if parts.up is not None:
        config["intermediate_dim"] = int(parts.up.compute_output_shape((1, 1, config["hidden_dim"]))[-1])
    return config


def _layer_to_config(part):
    try:
        config = keras.saving.serialize_keras_object(part)
    except NotImplementedError:
        # KerasHub's norms of Gemma have no configuration of their own (keras-hub 0.32). They have an epsilon.
        own = {"name": part.name, "trainable": part.trainable, "dtype": part.dtype_policy.name, "epsilon": part.epsilon}
        config = {"module": type(part).__module__, "class_name": type(part).__name__, "config": own}
        config["registered_name"] = type(part).__name__
    config.pop("build_config", None)
    return config


def parts_from_config(config: dict) -> DecoderParts:
    """The inverse of `parts_to_config`, with sublayers that are built and have new weights."""
    config = dict(config)
    dim, wide = config.pop("hidden_dim"), config.pop("intermediate_dim", None)
    for name, value in config.items():
        if not isinstance(value, dict) or "layer" not in value:
            continue
        layer = keras.saving.deserialize_keras_object(value["layer"])
        if name in _HEADS:
            shape = (None, None, config[_HEADS[name]], config["head_dim"])
        else:
            shape = (None, None, wide if name == "down" else dim)
        with contextlib.ExitStack() as scopes:
            for scope in (value["path"] or "").split("/")[:-1]:
                scopes.enter_context(keras.name_scope(scope))
            if not layer.built:
                layer.build(shape)
        config[name] = layer
    if config["activation"] is not None:
        config["activation"] = keras.activations.get(config["activation"])
    return DecoderParts(**config)
