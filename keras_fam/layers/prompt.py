"""The learned start of FAM: the only weight that TransformerFAM adds to a model."""

from typing import Any

import keras
from keras import ops

from keras_fam.checks import check_dtype, check_initializer, check_integer
from keras_fam.layers.checks import TakesNumbers, check_hidden
from keras_fam.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_fam")
class FAMPrompt(TakesNumbers, keras.layers.Layer):
    """A learned prompt of `fam_length` embeddings from which every layer's FAM starts (paper, section 2.3).

    Call it once on the token embeddings and hand the result to the first `FAMDecoderBlock`; every block returns the
    prompt for the block above.

    Args:
        fam_length: int, N >= 1. Vectors of working memory per layer.
        embeddings_initializer: initializer of the table. Choose the token embedding's own distribution, so that the
            prompt has the size that the layers know; the default is that of `keras.layers.Embedding`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: float `[batch, length, d]`, token embeddings; only their last dimension is used.

    Returns:
        `[1, fam_length, d]` in the compute dtype: all rows of a batch share it.

    Raises:
        TypeError, ValueError: `fam_length` is no integer or below 1.

    Example:

    ```python
    x = keras.random.normal((2, 24, 32))
    fam = keras_fam.FAMPrompt(fam_length=4)(x)
    fam.shape  # (1, 4, 32)
    ```
    """

    def __init__(self, fam_length: int, embeddings_initializer: Any = "uniform", **kwargs: Any) -> None:
        check_dtype("dtype", kwargs.get("dtype"))
        super().__init__(**kwargs)
        self.fam_length = check_integer("fam_length", fam_length, 1)
        self.embeddings_initializer = check_initializer("embeddings_initializer", embeddings_initializer)
        self.supports_masking = True

    def __call__(self, inputs: Tensor | None = None, **kwargs: Any) -> Tensor:
        # Once it is built, nothing of the inputs is used: a model goes without.
        if inputs is not None or not self.built:
            check_hidden("inputs", inputs, self.embeddings.shape[1] if self.built else None)
        return super().__call__(inputs, **kwargs)

    def build(self, inputs_shape: Shape) -> None:
        """Makes the table of embeddings, `[fam_length, d]`.

        Args:
            inputs_shape: tuple, `[batch, length, d]`.
        """
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.fam_length, inputs_shape[-1]),
            initializer=self.embeddings_initializer,
            trainable=True,
        )

    def call(self, inputs: Tensor = None) -> Tensor:
        """The prompt.

        Args:
            inputs: float `[batch, length, d]`, token embeddings, or None: not read, but a part of a model's graph.

        Returns:
            `[1, fam_length, d]` in the compute dtype.
        """
        return ops.cast(self.embeddings, self.compute_dtype)[None]

    def compute_mask(self, inputs: Any, previous_mask: Tensor) -> None:
        """The prompt has no padding.

        Args:
            inputs: the tensors of a call.
            previous_mask: their mask, or None.

        Returns:
            None.
        """
        return None

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        """The shape of the prompt.

        Args:
            inputs_shape: tuple, `[batch, length, d]`.

        Returns:
            `[1, fam_length, d]`.
        """
        return (1, self.fam_length, inputs_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "fam_length": self.fam_length,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }
