"""A model's variables as torch's parameters, for loops and wrappers of torch's own."""

from collections.abc import Iterator
from typing import Any

from keras_fam.types import MixedIn


class RegistersParameters(MixedIn):
    """A model whose `parameters()` are all its variables, on torch.

    KerasHub keeps torch from registering what its models are made of. Keras registers it in `fit`, and leaves out what
    comes later, such as LoRA. So an optimizer or a `DistributedDataParallel` of torch's own would find nothing, or too
    little.
    """

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """See `torch.nn.Module.named_parameters`. On torch only.

        Args:
            *args: see there.
            **kwargs: see there.

        Returns:
            iterator of `(name, torch.nn.Parameter)`.
        """
        registered = self._modules.get("_torch_params")
        if registered is None or [*registered] != [variable.path for variable in self.variables]:
            self._track_variables()
        return super().named_parameters(*args, **kwargs)
