"""Long-document tasks, read by models with memory as streams: answers, choices, keys, next tokens, and their scores."""

from keras_fam.evaluation.answering import QuestionAnswering, Summarization
from keras_fam.evaluation.choosing import MultipleChoice
from keras_fam.evaluation.metrics import exact_match, f1, rouge
from keras_fam.evaluation.next_tokens import NextTokens
from keras_fam.evaluation.passkeys import PassKeyTokens, PassKeyWords
from keras_fam.evaluation.report import Report, Score
from keras_fam.evaluation.running import evaluate
from keras_fam.evaluation.task import Example, Task

__all__ = [
    "Example",
    "MultipleChoice",
    "NextTokens",
    "PassKeyTokens",
    "PassKeyWords",
    "QuestionAnswering",
    "Report",
    "Score",
    "Summarization",
    "Task",
    "evaluate",
    "exact_match",
    "f1",
    "rouge",
]


def __dir__():
    return __all__
