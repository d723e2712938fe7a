"""Data for training and measuring working memory: key retrieval, repeated segments, long documents."""

from keras_fam.data.documents import DocumentStream
from keras_fam.data.packing import pack, repeat_random_segment
from keras_fam.data.passkey import PassKeyTask
from keras_fam.data.passkey_prompts import PassKeyText, passkey_text

__all__ = ["DocumentStream", "PassKeyTask", "PassKeyText", "pack", "passkey_text", "repeat_random_segment"]
