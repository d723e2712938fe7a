"""What a task of an evaluation is: examples, a way to answer them, and scores."""

from collections.abc import Iterator
from typing import Any, NamedTuple


class Example(NamedTuple):
    """One example of a task.

    Attributes:
        id: str, unique in its task.
        input: what a model reads: str, a text; a path-like, a file in UTF-8; or token ids of one text, int `[length]`.
        reference: what an answer is scored against, as `Task.evaluate` takes it.
        group: str. Scores are given for all examples, and for those of each group; "" is no group.

    Example:

    ```python
    keras_fam.evaluation.Example("1", "Ada wrote it. Who wrote it?", ["Ada"])
    ```
    """

    id: str
    input: Any
    reference: Any = None
    group: str = ""


class Task:
    """A task: subclass it for one of your own.

    Args:
        name: str, the task's name in results.

    Example:

    ```python
    class LastToken(keras_fam.evaluation.Task):
        def examples(self):
            yield keras_fam.evaluation.Example("1", [1, 2, 3], 3)

        def predict(self, lm, example):
            logits, _ = lm.stream([example.input], lm.initial_state(1))
            return int(np.argmax(keras.ops.convert_to_numpy(logits)[0, -1]))

        def evaluate(self, prediction, reference):
            return {"right": float(prediction == reference)}

    report = keras_fam.evaluation.evaluate({"FAM": lm}, [LastToken("last")], "results.json", verbose=0)
    ```
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"`name` must be a str that is not empty. Received: name={name!r}.")
        self.name = name

    def examples(self) -> Iterator[Example]:
        """The examples, the same and in the same order at every call."""
        raise NotImplementedError

    def check(self, lm: Any) -> None:
        """Refuses a model that cannot do this task: called before any work begins.

        Args:
            lm: `FAMCausalLM`.

        Raises:
            TypeError, ValueError: by what it lacks.
        """

    def predict(self, lm: Any, example: Example) -> Any:
        """A model's answer.

        Args:
            lm: `FAMCausalLM`.
            example: `Example` of this task.

        Returns:
            What JSON holds: str, numbers, lists and dicts of them.
        """
        raise NotImplementedError

    def evaluate(self, prediction: Any, reference: Any) -> dict[str, float]:
        """The scores of an answer, by metric.

        Args:
            prediction: an answer, of `predict`.
            reference: `Example.reference`.

        Returns:
            dict of metric to float. A metric may be missing where it means nothing.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """What the results depend on, as JSON holds it: results of a task with another one are refused."""
        return {"task": type(self).__name__}

    def left_out(self) -> list[str]:
        """What of the user's data is not read, and why; kept with the results."""
        return []
