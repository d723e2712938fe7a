"""The one file of an evaluation: what every model said to every example, replaced whole as the work goes on."""

import json
import os
import time
import zlib
from typing import Any

import numpy as np
from keras import ops

from keras_fam.evaluation.report import Report, report_of
from keras_fam.files.atomic import atomic_write
from keras_fam.memory.options import MEMORY_ARGUMENTS

_FORMAT = "keras_fam evaluation 1"
_ENTRY = {"id", "group", "scores", "prediction"}
_SECONDS = 1.0  # Between two writes: what an ending without warning loses, beside the example at hand.


class Results:
    """The content of a results file, which may be there already.

    Args:
        path: str or path-like.

    Raises:
        ValueError: a file that is no results file, or a folder that is not there.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self.tasks, self._written = os.path.abspath(os.fspath(path)), {}, time.monotonic()
        if not os.path.isdir(os.path.dirname(self.path)):
            raise ValueError(f"`path` must be in a folder that exists. Received: path={os.fspath(path)!r}.")
        if os.path.exists(self.path):
            self.tasks = _read(self.path)

    def open(self, task: Any, model: str, lm: Any) -> dict[str, Any]:
        """The examples of a task that a model has answered, by id. Refuses those of another task or model."""
        config = _plain(task.get_config())
        content = self.tasks.setdefault(task.name, {"config": config, "left_out": [], "models": {}})
        content["left_out"] = task.left_out()
        _check_same(self.path, f"task {task.name!r}", content["config"], config)
        config = model_config(lm)
        content = content["models"].setdefault(model, {"config": config, "examples": []})
        _check_same(self.path, f"model {model!r}", content["config"], config)
        return {example["id"]: example for example in content["examples"]}

    def add(self, task: str, model: str, example: Any, prediction: Any, scores: dict[str, float]) -> None:
        """Adds an answer, and writes the file if the last time was long ago."""
        entry = {"id": example.id, "group": example.group, "scores": scores, "prediction": prediction}
        self.tasks[task]["models"][model]["examples"].append(_plain(entry))
        if time.monotonic() - self._written > _SECONDS:
            self.save()

    def save(self, report: Report | None = None) -> None:
        """Writes the file, with scores if there are any."""
        content = {"format": _FORMAT, "tasks": self.tasks}
        if report is not None:
            content["scores"] = [score._asdict() for score in report.scores]
        with atomic_write(self.path) as file:
            file.write(json.dumps(content, indent=1).encode())
        self._written = time.monotonic()

    def report(self) -> Report:
        """The scores of all that is in the file."""
        return report_of(self.tasks)


def model_config(lm: Any) -> dict[str, Any]:
    """What a model's answers depend on: options of memory, and a checksum over some values of every weight."""
    checksum = 0
    for variable in sorted(lm.backbone.variables, key=lambda v: v.path):
        if "seed_generator" in variable.path or "random_state_passing" in variable.path:
            continue
        values = variable if len(variable.shape) == 0 else variable[:1]
        checksum = zlib.crc32(np.ascontiguousarray(ops.convert_to_numpy(values)).tobytes(), checksum)
    options = lm.backbone.get_config()
    return _plain({**{name: options[name] for name in MEMORY_ARGUMENTS if name in options}, "weights": checksum})


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"`path` must be new, or a file of `evaluate`. Received: {path!r}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not _are_tasks(content.get("tasks")):
        raise ValueError(f"`path` must be new, or a file of `evaluate`. Received: {path!r}, which is another file.")
    return content["tasks"]


def _are_tasks(tasks):
    """Whether `tasks` has the parts that `Results` reads."""
    try:
        models = [(task["config"], task["models"]) for task in tasks.values()]
        examples = [(model["config"], model["examples"]) for _, of_task in models for model in of_task.values()]
        configs = [config for config, _ in (*models, *examples)]
        entries = [each for _, of_model in examples for each in of_model]
        return all(isinstance(each, dict) for each in configs) and all(_ENTRY <= set(each) for each in entries)
    except (AttributeError, KeyError, TypeError):  # Some part is missing, or of another kind.
        return False


def _check_same(path, what, before, now):
    if before != now:
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        raise ValueError(
            f"`path` must be new, or hold results of the same tasks and models. Received: {path!r}, whose {what} had "
            f"another {', '.join(map(repr, names))}."
        )


def _plain(value):
    """`value` as JSON gives it back."""
    return json.loads(json.dumps(value, default=_python))


def _python(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"`predict` and `evaluate` must return what JSON holds. Received: {value!r:.80} of {type(value)}.")
