"""Gates that suit a pretrained model: how far each layer's is shut before anything is trained."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_fam.backend.compiled import without_gradients
from keras_fam.checks import check_share
from keras_fam.models.layer_inputs import layer_inputs
from keras_fam.models.reading import open_texts
from keras_fam.types import MixedIn, Tensor

SHUT = -30.0  # FAM is out of the way, and its share of the attention is still a number in float32.
BLOCKS = 3  # that are read: their tokens see the prompt, and FAM after one and two blocks
MOST = 0.99  # of the tokens give FAM no more than they should


class CalibratesGates(MixedIn):
    """The method of `FAMCausalLM` that sets its gates."""

    def calibrate_gates(self, text: str | os.PathLike | Sequence[int] | Tensor, share: float = 0.01) -> list[float]:
        """Sets each layer's gate so that FAM, before it is trained, takes a small share of the attention.

        What untrained vectors score against a pretrained model's queries differs by layer: on SmolLM2-135M from far
        below all tokens to e^25 times above them. One gate for all layers is too open here and too shut there. This
        reads the first three blocks of a text without FAM, and looks what each head would give to it. The gate of a
        layer is the highest, but at most 0, at which in none of its heads more than one token in a hundred gives FAM
        more than `share`.

        Args:
            text: str; `pathlib.Path` of a file; or token ids `[length]`: longer than a block, of the kind that the
                model will read.
            share: float between 0 and 1, of a token's attention in a head.

        Returns:
            list of float, the gates, layer by layer.

        Raises:
            TypeError, ValueError: a text or a share of another type or out of range; more than one text, or one that
                is no longer than a block; a model without FAM or without gates. No gate is changed then.

        Example:

        ```python
        lm = keras_fam.FAMCausalLM(
            keras_fam.FAMBackbone(stock, block_size=4, memory_segments=1, fam_length=2, memory_gate=-9.0)
        )
        gates = lm.calibrate_gates([1, 2, 3, 4, 5, 6, 7, 8, 9])
        ```
        """
        share, backbone = check_share("share", share), self.backbone
        layers = backbone.transformer_layers
        if not backbone.fam_length or layers[0].memory_gate is None:
            raise ValueError(
                "Gates can only be calibrated in a model with FAM and gates: expected fam_length > 0 and a number for "
                f"memory_gate. Received: fam_length={backbone.fam_length}, memory_gate={backbone.memory_gate}."
            )
        token_ids = _beginning(self, text)
        gates = [float(ops.convert_to_numpy(layer.memory_gate)) for layer in layers]
        try:
            _set(layers, [SHUT] * len(layers))
            gates = without_gradients(_calibrated)(backbone, token_ids, share)
        finally:
            _set(layers, gates)
        return gates


def _beginning(lm: Any, text: Any) -> np.ndarray:
    """The token ids that are read: int `[1, length]`."""
    documents = open_texts(lm, text, "text")
    if len(documents) != 1:
        raise ValueError(f"`text` must be one text. Received: {len(documents)} texts.")
    size = lm.backbone.block_size
    token_ids, _ = documents[0].block(BLOCKS * size)
    if len(token_ids) <= size:
        raise ValueError(
            f"`text` must be longer than a block, which is {size} tokens. Received: {len(token_ids)} tokens."
        )
    return np.asarray([token_ids], "int32")


def _calibrated(backbone: Any, token_ids: np.ndarray, share: float) -> list[float]:
    looks = layer_inputs(backbone, token_ids)
    return [_gate(layer.memory_share(inputs, **start), share) for layer, inputs, start in looks]


def _gate(shares: np.ndarray, share: float) -> float:
    """The gate at which FAM has `share`, of what it has, `[length, h]`, with the gate `SHUT`."""
    shares = np.clip(shares.astype("float64"), 1e-38, 1 - 1e-6)
    odds = np.quantile(np.log(shares) - np.log1p(-shares), MOST, axis=0) - SHUT
    return float(min(0.0, np.log(share) - np.log1p(-share) - odds.max()))


def _set(layers: Sequence[Any], gates: Sequence[Any]) -> None:
    for layer, gate in zip(layers, gates):
        layer.memory_gate.assign(float(gate))
