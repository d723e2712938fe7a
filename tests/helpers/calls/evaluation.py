"""Valid calls of tasks and metrics, and what looks like nonsense there and means something."""

from helpers.bad_arguments import Call
from keras_fam.evaluation.answering import QUESTION_PROMPT

NAME = "str"
METRIC = Call(
    lambda w: dict(prediction="the cat", references=["a cat"]),
    meaning={"prediction": "str, empty str", "references": "strings"},
)
WRITING = Call(
    lambda w: dict(name="task", path=w.questions, prompt=QUESTION_PROMPT, max_new_tokens=4), meaning={"name": NAME}
)

EVALUATION = {
    "MultipleChoice": Call(
        lambda w: dict(name="task", path=w.questions, prompt=QUESTION_PROMPT), meaning={"name": NAME}
    ),
    "NextTokens": Call(lambda w: dict(name="task", paths=[w.book], page=4), meaning={"name": NAME}),
    "PassKeyTokens": Call(
        lambda w: dict(name="task", task=w.task, blocks=(2,), count=1, seed=0),
        meaning={"name": NAME, "seed": "zero, huge, hugest"},
    ),
    "PassKeyWords": Call(
        lambda w: dict(name="task", tokenizer=str.split, block_size=100, blocks=(2,), count=1, key_length=2, seed=0),
        meaning={"name": NAME, "seed": "zero, huge, hugest"},
    ),
    "QuestionAnswering": WRITING,
    "Summarization": WRITING,
    "Task": Call(lambda w: dict(name="task"), meaning={"name": NAME}),
    "evaluate": Call(
        lambda w: dict(models={"FAM": w.lm}, tasks=[w.passkey], path="results.json", verbose=0),
        meaning={"path": "str", "verbose": "zero"},
    ),
    "exact_match": METRIC,
    "f1": METRIC,
    "rouge": METRIC,
}
