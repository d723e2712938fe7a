"""Valid calls of what makes data, and what looks like nonsense there and means something."""

import re

from helpers.bad_arguments import Call
from helpers.data_streams import letters

STREAM = dict(batch_size=2, sequence_length=8, seed=1, validation_split=0.5)
OPTIONS = dict(start_token_id=1, end_token_id=2, chunk_size=9, shuffle=True, verbose=0)
SEED = "zero, huge, hugest"
TOKENS = {"start_token_id": "zero", "end_token_id": "zero", "verbose": "zero"}
RATE = "zero"
WEIGHT = "zero, huge, fraction"


def words(text):
    return re.findall(r"\w+|\W", text)


DATA = {
    "DocumentStream": Call(
        lambda w: dict(**STREAM, **OPTIONS, paths=w.books, tokenizer=letters, subset="training"),
        meaning={**TOKENS, "seed": SEED},
    ),
    "DocumentStream.__getitem__": Call(
        lambda w: dict(index=0), lambda w: w.documents.__getitem__, meaning={"index": "zero"}
    ),
    "DocumentStream.both": Call(
        lambda w: dict(**STREAM, **OPTIONS, paths=w.books, tokenizer=letters),
        keywords=tuple(OPTIONS),
        meaning={
            **TOKENS,
            "seed": SEED,
            "start_token_id": "None, zero",
            "end_token_id": "None, zero",
            "shuffle": "None",
        },
    ),
    "PassKeyScores": Call(lambda w: dict(task=w.task, distances=[2, 8], ages=[1, 100])),
    "PassKeyScores.add": Call(
        lambda w: dict(block=w.key_block, answers=w.task.answers(w.key_block.keys)), lambda w: w.scores.add
    ),
    "PassKeyStream.__getitem__": Call(lambda w: dict(index=3), lambda w: w.keys.__getitem__, meaning={"index": "zero"}),
    "PassKeyTask": Call(
        lambda w: dict(block_size=32, key_length=2, filler_length=9, noise=0.1, filler_weight=0.5, num_keys=2),
        meaning={"noise": RATE, "filler_weight": WEIGHT},
    ),
    "PassKeyTask.answers": Call(lambda w: dict(keys=[[1, 2]]), lambda w: w.task.answers),
    "PassKeyTask.examples": Call(
        lambda w: dict(
            batch_size=2,
            blocks=3,
            rng=w.rng,
            keys=[[1, 2], [3, 4]],
            question_rate=0.5,
            introduce=True,
            answer_noise=0.5,
        ),
        lambda w: w.task.examples,
        meaning={"question_rate": RATE, "answer_noise": RATE},
    ),
    "PassKeyTask.prompt": Call(lambda w: dict(batch_size=2, blocks=3, rng=w.rng), lambda w: w.task.prompt),
    "PassKeyTask.prompt_blocks": Call(
        lambda w: dict(batch_size=2, blocks=3, rng=w.rng), lambda w: w.task.prompt_blocks
    ),
    "PassKeyTask.question_blocks": Call(
        lambda w: dict(batch_size=2, blocks=3, rng=w.rng, distances=[2, 3], restate=True),
        lambda w: w.task.question_blocks,
    ),
    "PassKeyTask.stream": Call(
        lambda w: dict(
            batch_size=2, blocks=3, restart=0.5, seed=1, question_rate=0.5, answer_noise=0.5, restate=0.5, parts=3
        ),
        lambda w: w.task.stream,
        meaning={"restart": RATE, "question_rate": RATE, "answer_noise": RATE, "restate": RATE, "seed": SEED},
    ),
    "pack": Call(lambda w: dict(examples=[([1, 2], [1.0, 1.0])], length=4)),
    "passkey_text": Call(lambda w: dict(tokenizer=words, blocks=2, block_size=200, key_length=3, rng=w.rng)),
    "repeat_random_segment": Call(
        lambda w: dict(token_ids=[1, 2, 3], rng=w.rng, segment_length=2, prompt_ids=[4], weight=0.1),
        meaning={"prompt_ids": "empty", "weight": WEIGHT},
    ),
}
