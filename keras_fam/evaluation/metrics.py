"""Scores of one answer against its references: F1 and exact match as for SQuAD, ROUGE by the `rouge-score` package."""

import collections
import functools
import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


def normalize(text: str) -> str:
    """Lower case without punctuation, articles and extra spaces, as in SQuAD's own script."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the prediction is one of the references, both normalised as for SQuAD; else 0.0.

    Args:
        prediction: str.
        references: list of str, at least one.

    Raises:
        TypeError: an argument of another type; no references.

    Example:

    ```python
    keras_fam.evaluation.exact_match("The cat.", ["a dog", "cat"])  # 1.0
    ```
    """
    _check(prediction, references)
    return float(any(normalize(prediction) == normalize(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """The F1, 0.0 to 1.0, of words that prediction and reference share, normalised as for SQuAD; of the best reference.

    Args:
        prediction: str.
        references: list of str, at least one.

    Raises:
        TypeError: an argument of another type; no references.

    Example:

    ```python
    keras_fam.evaluation.f1("the black cat", ["a cat", "some dog"])  # 2/3
    ```
    """
    _check(prediction, references)
    return max(_f1(normalize(prediction).split(), normalize(reference).split()) for reference in references)


def _f1(words, expected):
    if not words or not expected:
        return float(words == expected)
    shared = sum((collections.Counter(words) & collections.Counter(expected)).values())
    return 2 * shared / (len(words) + len(expected))


def rouge(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The F-measures `rouge1`, `rouge2` and `rougeL` with stems, as SCROLLS counts them, each of the best reference.

    Needs the package `rouge-score`: `pip install keras-fam[evaluation]`.

    Args:
        prediction: str.
        references: list of str, at least one.

    Raises:
        ImportError: no `rouge-score`.
        TypeError: an argument of another type; no references.

    Example:

    ```python
    keras_fam.evaluation.rouge("the cats sat", ["the cat sat down"])["rouge1"]  # 6/7
    ```
    """
    _check(prediction, references)
    scores = rouge_scorer().score_multi(references, prediction)
    return {name: float(scores[name].fmeasure) for name in ROUGE_TYPES}


def _check(prediction, references):
    if not isinstance(prediction, str):
        raise TypeError(f"`prediction` must be a str. Received: prediction={prediction!r:.80}.")
    if not isinstance(references, (list, tuple)) or not references or not all(isinstance(x, str) for x in references):
        raise TypeError(f"`references` must be a list of str, at least one. Received: references={references!r:.80}.")


@functools.cache
def rouge_scorer():
    """The scorer of the `rouge-score` package, or an ImportError that says how to install it."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(
            "ROUGE needs the package rouge-score: `pip install rouge-score`, or `pip install keras-fam[evaluation]`."
        ) from error
    return RougeScorer(ROUGE_TYPES, use_stemmer=True)
