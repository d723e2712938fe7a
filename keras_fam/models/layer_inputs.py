"""A text as each layer gets it, to look into layers one by one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops

from keras_fam.models.inputs import checked
from keras_fam.types import Tensor


def layer_inputs(backbone: Any, token_ids: np.ndarray) -> Iterator[tuple[Any, Tensor, dict[str, Tensor]]]:
    """What goes into every layer.

    Args:
        backbone: `FAMBackbone`.
        token_ids: int `[1, length]`, checked.

    Yields:
        `(layer, inputs, start)`: the layer, the tokens there, `[1, length, d]`, and what `start_of_memory` has become
        there: a dict of `"fam"`, `[1, N, d]`, and `"sink"`, `[1, 1, d]`, without what the model does not have.
    """
    hidden: dict[int, Tensor] = {}
    with checked():
        backbone.hidden_states(
            ops.convert_to_tensor(token_ids, "int32"),
            ops.ones(token_ids.shape, "bool"),
            layer_intercept_fn=lambda x, index: hidden.setdefault(index, x),
        )
    start = backbone.start_of_memory()
    for index, layer in enumerate(backbone.transformer_layers):
        yield layer, hidden[index - 1], start
        lift = {"fam": layer.lift_prompt, "sink": layer.lift_sink}
        start = {name: lift[name](x) for name, x in start.items()}
