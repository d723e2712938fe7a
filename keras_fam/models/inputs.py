"""What a call of a model is given: checked once, whatever it goes through."""

from keras_fam.backend.inside import Inside
from keras_fam.checks import (
    check_document_start,
    check_padding_mask,
    check_stateful_batch,
    check_token_ids,
)
from keras_fam.training.carried_state import carries_on

# Inside, inputs are taken as they are: they were checked on the way in.
_checked = Inside()


class ChecksInputs:
    """A model whose inputs are checked by a call, on every way into it."""

    def __call__(self, inputs, *args, **kwargs):
        if not _checked.value and not (isinstance(inputs, dict) and {"token_ids", "padding_mask"} <= set(inputs)):
            raise TypeError(
                "`inputs` must be a dict of 'token_ids' and 'padding_mask'; a call of a model preprocesses no text. "
                f"Received: inputs of type {type(inputs).__name__}"
                + (f" with keys {list(inputs)!r:.200}." if isinstance(inputs, dict) else ".")
            )
        inputs = self.check_inputs(inputs, kwargs.get("training"))
        with _checked.set(True):
            return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs, training=None, mask=None, **kwargs):
        # On jax, training and prediction come here without `__call__`.
        inputs = self.check_inputs(inputs, training)
        with _checked.set(True):
            return super().call(inputs, training=training, mask=mask, **kwargs)

    def check_inputs(self, inputs, training=None):
        """The checked inputs of a call, and no others; see `Call arguments`."""
        if _checked.value:
            return inputs
        if not isinstance(inputs, dict) or not {"token_ids", "padding_mask"} <= set(inputs):
            return inputs
        backbone = getattr(self, "backbone", self)
        ids = check_token_ids(inputs["token_ids"], backbone.vocabulary_size)
        given = {"token_ids": ids, "padding_mask": check_padding_mask(inputs["padding_mask"], ids)}
        if backbone.carried_state is not None:
            # Ones of the kind that the token ids are, an array or a tensor: Keras refuses a mixture.
            start = inputs.get("document_start", ids[:, 0] * 0 + 1)
            given["document_start"] = check_document_start(start, ids)
            if carries_on(training):
                check_stateful_batch(ids, backbone.stateful_batch_size, backbone.block_size)
        return given
