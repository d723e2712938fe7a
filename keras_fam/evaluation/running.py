"""Runs tasks on models, one example after the other, and goes on where it was."""

import os
from collections.abc import Mapping, Sequence

import keras

from keras_fam.checks import check_integer, check_path
from keras_fam.evaluation.report import Report
from keras_fam.evaluation.results import Results
from keras_fam.evaluation.task import Example, Task
from keras_fam.models.causal_lm import FAMCausalLM


def evaluate(
    models: Mapping[str, FAMCausalLM], tasks: Sequence[Task], path: str | os.PathLike, verbose: int = 1
) -> Report:
    """Lets models do tasks, and keeps all that they said, and their scores, in one JSON file.

    Every example is read as a stream of its own, in memory of fixed size. What `path` holds already is not done again:
    an evaluation that was interrupted goes on where it was. The file is replaced whole, about once a second, so that an
    interruption loses the example at hand and what was answered in the second before. Models that do not fit in memory
    together are evaluated one after the other, with the same `path`: the report is of all that is in the file.

    Args:
        models: dict of `FAMCausalLM` by name. The first one's scores are compared with those of each other one, on the
            same examples. For tasks in which a model writes, `lm.compile(sampler="greedy")` comes first.
        tasks: list of `Task`, with different names.
        path: str or path-like, the JSON file; new, or of an evaluation with the same tasks and models.
        verbose: 1 for progress bars, 0 for none.

    Returns:
        `Report`: `print(report)` is a table, and `report.scores` holds the numbers.

    Raises:
        TypeError, ValueError: an argument of another type; a model that cannot do a task; a file of other tasks or
            models. All of that is said before any work begins.

    Example:

    ```python
    task = keras_fam.data.PassKeyTask(block_size=4, key_length=1, filler_length=8)
    passkey = keras_fam.evaluation.PassKeyTokens("passkey", task, blocks=(2, 4), count=2)
    lm.compile(sampler="greedy")
    report = keras_fam.evaluation.evaluate({"FAM": lm}, [passkey], "results.json", verbose=0)
    print(report)
    ```
    """
    models, tasks = _check_models(models), _check_tasks(tasks)
    check_path("path", path)
    verbose = check_integer("verbose", verbose, 0, 1)
    for task in tasks:
        for lm in models.values():
            task.check(lm)
    results = Results(path)
    answered = {(task.name, model): results.open(task, model, lm) for task in tasks for model, lm in models.items()}
    try:
        for task in tasks:
            for model, lm in models.items():
                _run(results, task, model, lm, answered[task.name, model], verbose)
    except BaseException:
        results.save()
        raise
    report = results.report()
    results.save(report)
    return report


def _run(results, task, model, lm, answered, verbose):
    if verbose:
        print(f"{task.name}: {model}" + (f", {len(answered)} examples done before" if answered else ""), flush=True)
    total = len(task) if hasattr(task, "__len__") else None
    progress, done, seen = keras.utils.Progbar(total, verbose=verbose, unit_name="example"), 0, set[str]()
    for example in task.examples():
        _check_example(task, example, seen)
        done += 1
        if example.id not in answered:
            prediction = task.predict(lm, example)
            scores = {name: float(value) for name, value in task.evaluate(prediction, example.reference).items()}
            results.add(task.name, model, example, prediction, scores)
            progress.update(done, values=list(scores.items())[:2], finalize=False)
    progress.update(done, finalize=True)


def _check_models(models):
    if not isinstance(models, Mapping) or not models:
        raise TypeError(
            f"`models` must be a dict of FAMCausalLM by name, at least one. Received: {models!r:.80} of type "
            f"{type(models).__name__}."
        )
    for name, lm in models.items():
        if not isinstance(name, str) or not isinstance(lm, FAMCausalLM):
            raise TypeError(
                f"`models` must hold FAMCausalLM by name. Received: {name!r} with a value of type {type(lm).__name__}."
            )
    return models


def _check_tasks(tasks):
    if not isinstance(tasks, (list, tuple)) or not tasks or not all(isinstance(task, Task) for task in tasks):
        raise TypeError(f"`tasks` must be a list of Task, at least one. Received: tasks={tasks!r:.200}.")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(f"`tasks` must have names that differ. Received: {', '.join(names)}.")
    return tasks


def _check_example(task, example, seen):
    if not isinstance(example, Example) or not isinstance(example.id, str):
        raise TypeError(f"`examples` must give Example with a str as id. Received: {example!r:.80} of {task.name!r}.")
    if example.id in seen:
        raise ValueError(f"`examples` must have ids that differ. Received: {example.id!r} twice, of {task.name!r}.")
    seen.add(example.id)
