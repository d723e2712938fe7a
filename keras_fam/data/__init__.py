"""Data for training and measuring working memory: keys to hold and overwrite, repeated segments, long documents."""

from keras_fam.data.documents import DocumentStream
from keras_fam.data.packing import pack, repeat_random_segment
from keras_fam.data.passkey import PassKeyTask
from keras_fam.data.passkey_blocks import PassKeyBlock
from keras_fam.data.passkey_prompts import PassKeyText, passkey_text
from keras_fam.data.passkey_scores import PassKeyScore, PassKeyScores

__all__ = [
    "DocumentStream",
    "PassKeyBlock",
    "PassKeyScore",
    "PassKeyScores",
    "PassKeyTask",
    "PassKeyText",
    "pack",
    "passkey_text",
    "repeat_random_segment",
]


def __dir__():
    return __all__
