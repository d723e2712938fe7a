"""What Keras asks of a layer whose outputs are shaped like its inputs."""

from typing import Any

from keras_fam.types import MixedIn, Shape, Tensor


class ShapedLikeInputs(MixedIn):
    """A layer that gives one output for each of its inputs, of the same shape and under the same mask."""

    def compute_mask(self, inputs: Any, previous_mask: Tensor) -> Tensor:
        """The mask of the outputs is that of the inputs.

        Args:
            inputs: the tensors of a call.
            previous_mask: bool `[batch, length]`, or None; of each input.

        Returns:
            `previous_mask`.
        """
        return previous_mask

    def compute_output_shape(self, inputs_shape: Shape, fam_shape: Shape | None = None) -> Shape | tuple[Shape, Shape]:
        """Outputs are shaped like inputs.

        Args:
            inputs_shape: tuple, `[batch, length, d]`.
            fam_shape: tuple, `[1 or batch, N, d]`, or None without FAM.

        Returns:
            `[batch, length, d]`; with `fam_shape` a pair of it and `[1 or batch, N, d]`.
        """
        return inputs_shape if fam_shape is None else (inputs_shape, fam_shape)
