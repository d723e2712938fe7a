"""What a call of a model is given: checked once, whatever it goes through."""

from contextlib import AbstractContextManager
from typing import Any

from keras import ops

from keras_fam.backend.inside import Inside
from keras_fam.checks import (
    check_document_start,
    check_padding_mask,
    check_stateful_batch,
    check_token_ids,
    dtype_of,
)
from keras_fam.training.carried_state import carries_on
from keras_fam.types import Data, MixedIn, Tensor

_checked = Inside()


def checked() -> AbstractContextManager:
    """Inside, inputs are taken as they are: they were checked on the way in. To look at values may stop a device."""
    return _checked.set(True)


def check_texts(backbone, token_ids, padding_mask, document_start):
    """The arguments of `FAMBackbone.hidden_states`, checked; a mask of floats becomes one of bools.

    Args:
        backbone: `FAMBackbone`.
        token_ids: int `[batch, length]`.
        padding_mask: `[batch, length]`, ones and zeros.
        document_start: `[batch]`, ones and zeros, or None.

    Returns:
        `(token_ids, padding_mask, document_start)`.
    """
    if _checked.value:
        return token_ids, padding_mask, document_start
    token_ids = check_token_ids(token_ids, backbone.family.backbone.vocabulary_size)
    padding_mask = check_padding_mask(padding_mask, token_ids)
    if "float" in dtype_of(padding_mask):
        padding_mask = ops.cast(padding_mask, "bool")
    if document_start is not None:
        if backbone.carried_state is None:
            raise ValueError(
                "`document_start` needs a model with stateful_batch_size: expected None. Received: document_start of "
                f"type {type(document_start).__name__}."
            )
        document_start = check_document_start(document_start, token_ids)
    return token_ids, padding_mask, document_start


class ChecksInputs(MixedIn):
    """A model whose inputs are checked by a call, on every way into it."""

    def __call__(self, inputs: Data, *args: Any, **kwargs: Any) -> Tensor:
        if not _checked.value and not (isinstance(inputs, dict) and {"token_ids", "padding_mask"} <= set(inputs)):
            raise TypeError(
                "`inputs` must be a dict of 'token_ids' and 'padding_mask'; a call of a model preprocesses no text. "
                f"Received: inputs of type {type(inputs).__name__}"
                + (f" with keys {list(inputs)!r:.200}." if isinstance(inputs, dict) else ".")
            )
        inputs = self.check_inputs(inputs, kwargs.get("training"))
        with checked():
            return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Data, training: bool | None = None, mask: Any = None, **kwargs: Any) -> Tensor:
        """What a model gives for one batch; see the class.

        Args:
            inputs: dict of `"token_ids"`, int `[batch, length]`, and `"padding_mask"`, `[batch, length]`.
            training: bool or None, see `keras.Model`.
            mask: not used: padding is in `inputs`.
            **kwargs: see `keras.Model.call`.

        Returns:
            `[batch, length, ...]`, hidden states or logits.

        Raises:
            TypeError, ValueError: token ids or a mask of a wrong dtype, shape or value.
        """
        # On jax, training and prediction come here without `__call__`.
        inputs = self.check_inputs(inputs, training)
        with checked():
            return super().call(inputs, training=training, mask=mask, **kwargs)

    def check_inputs(self, inputs: Data, training: bool | None = None) -> Data:
        """The checked inputs of a call, and no others.

        Args:
            inputs: see `Call arguments` of the class. What is no such dict is left to Keras.
            training: bool or None.

        Returns:
            dict of what the model reads.

        Raises:
            TypeError, ValueError: token ids or a mask of a wrong dtype, shape or value; a batch that does not go on
                from the one before, with `stateful_batch_size`.
        """
        if _checked.value:
            return inputs
        if not isinstance(inputs, dict) or not {"token_ids", "padding_mask"} <= set(inputs):
            return inputs
        backbone: Any = getattr(self, "backbone", self)
        ids = check_token_ids(inputs["token_ids"], backbone.vocabulary_size)
        given = {"token_ids": ids, "padding_mask": check_padding_mask(inputs["padding_mask"], ids)}
        if backbone.carried_state is not None:
            # Ones of the kind that the token ids are, an array or a tensor: Keras refuses a mixture.
            start = inputs.get("document_start", ids[:, 0] * 0 + 1)
            given["document_start"] = check_document_start(start, ids)
            if carries_on(training):
                check_stateful_batch(ids, backbone.stateful_batch_size, backbone.block_size)
        return given
