"""The scores of an evaluation: means over examples with intervals, and the differences between models."""

from typing import Any, NamedTuple

import numpy as np

from keras_fam.evaluation.bootstrap import bootstrap_interval


class Score(NamedTuple):
    """One mean, or one difference of means.

    Attributes:
        task: str.
        group: str, the examples of a group alone; "" is all examples.
        metric: str.
        model: str, a model's name, or two names, `"FAM - BSWA"`, for the difference on the same examples.
        mean: float.
        low: float or None, the lower end of the 95 % bootstrap interval over examples; None if there is just one.
        high: float or None, its upper end.
        count: int, examples.

    Example:

    ```python
    score = keras_fam.evaluation.Score("questions", "", "f1", "FAM", 0.42, 0.35, 0.49, 200)
    ```
    """

    task: str
    group: str
    metric: str
    model: str
    mean: float
    low: float | None
    high: float | None
    count: int  # type: ignore[assignment]  # A tuple's own `count` is of no use here.


class Report(NamedTuple):
    """What `keras_fam.evaluation.evaluate` returns; it prints as a table.

    Attributes:
        scores: tuple of `Score`, of every task, group, metric and model, and of the first model against each other one.

    Example:

    ```python
    print(keras_fam.evaluation.Report((keras_fam.evaluation.Score("keys", "", "right", "FAM", 0.9, 0.8, 1.0, 20),)))
    ```
    """

    scores: tuple[Score, ...]

    def __repr__(self):
        models = list(dict.fromkeys(score.model for score in self.scores))
        cells: dict[tuple[str, str, str], dict[str, str]] = {
            (score.task, score.group, score.metric): {} for score in self.scores
        }
        for score in self.scores:
            cells[score.task, score.group, score.metric][score.model] = _words(score)
        rows = [("task", "examples", "metric", *models)]
        for (task, group, metric), row in cells.items():
            rows.append((task, group or "all", metric, *(row.get(model, "") for model in models)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([lines[0], "-" * sum(widths, 2 * len(widths) - 2), *lines[1:]])


def report_of(tasks: dict[str, Any]) -> Report:
    """The scores of all tasks and models in a results file.

    Args:
        tasks: dict, the tasks of the file; see `results.py`.
    """
    scores = []
    for task, content in tasks.items():
        models = {name: model["examples"] for name, model in content["models"].items() if model["examples"]}
        groups = dict.fromkeys(example["group"] for examples in models.values() for example in examples)
        for group in ["", *(each for each in groups if each)]:
            values = {name: _values(examples, group) for name, examples in models.items()}
            for metric in dict.fromkeys(metric for by_metric in values.values() for metric in by_metric):
                of_models = {name: by_metric.get(metric, {}) for name, by_metric in values.items()}
                scores += _scores(task, group, metric, of_models)
    return Report(tuple(scores))


def _values(examples, group):
    """`{metric: {id: value}}` of a group, or of all examples."""
    values: dict[str, dict[str, float]] = {}
    for example in examples:
        if group in ("", example["group"]):
            for metric, value in example["scores"].items():
                values.setdefault(metric, {})[example["id"]] = value
    return values


def _scores(task, group, metric, of_models):
    for model, values in of_models.items():
        if values:
            yield _score(task, group, metric, model, list(values.values()))
    first, *others = of_models
    for other in others:
        both = [each for each in of_models[first] if each in of_models[other]]
        if both:
            differences = [of_models[first][each] - of_models[other][each] for each in both]
            yield _score(task, group, metric, f"{first} - {other}", differences)


def _score(task, group, metric, model, values):
    low, high = bootstrap_interval(values) or (None, None)
    return Score(task, group, metric, model, float(np.mean(values)), low, high, len(values))


def _words(score):
    interval = "" if score.low is None else f" ({score.low:.3f} to {score.high:.3f})"
    return f"{score.mean:.3f}{interval}"
