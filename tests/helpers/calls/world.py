"""The small real objects that valid calls are made of: each is made once, when it is first asked for."""

import functools
import pathlib

import keras
import keras_hub
import numpy as np

import keras_fam
from helpers import gguf_files
from helpers.data_streams import letters
from helpers.models import fam_backbone, stock_backbone, token_ids
from helpers.presets import gpt2_preset, gpt2_tokenizer
from keras_fam.data import DocumentStream, PassKeyTask

SIZES = dict(block_size=4, memory_segments=1, fam_length=3)
BLOCK = dict(num_query_heads=2, num_key_value_heads=1, head_dim=4, block_size=4, memory_segments=1)
DIM = 8


class World:
    """Models, layers, states and files.

    Args:
        folder: path of an empty folder.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    # === Models ===

    def new_lm(self):
        return keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"num_layers": 1}))

    @functools.cached_property
    def stock(self):
        return stock_backbone("gpt2", num_layers=1)

    @functools.cached_property
    def lm(self):
        lm = self.new_lm()
        lm.compile(sampler="greedy")
        return lm

    @functools.cached_property
    def gated_lm(self):
        """A language model whose gates a call may change."""
        return keras_fam.FAMCausalLM(fam_backbone("gpt2", stock={"num_layers": 1}, memory_gate=-9.0))

    @functools.cached_property
    def tokenizer(self):
        return gpt2_tokenizer()

    @functools.cached_property
    def preprocessor(self):
        return keras_hub.models.GPT2CausalLMPreprocessor(self.tokenizer, sequence_length=16)

    @functools.cached_property
    def text_lm(self):
        stock = {"num_layers": 1, "vocabulary_size": self.tokenizer.vocabulary_size()}
        lm = keras_fam.FAMCausalLM(fam_backbone("gpt2", stock=stock), self.preprocessor)
        lm.compile(sampler="greedy")
        return lm

    @functools.cached_property
    def passing(self):
        """A backbone with random state passing, which can change."""
        return fam_backbone("gpt2", stock={"num_layers": 1}, random_state_passing=0.5)

    @functools.cached_property
    def stateful(self):
        return fam_backbone("gpt2", stock={"num_layers": 1}, stateful_batch_size=2)

    @functools.cached_property
    def lora_lm(self):
        lm = self.new_lm()
        lm.enable_lora(2)
        return lm

    @property
    def state(self):
        return self.lm.initial_state(1)

    @property
    def text_state(self):
        return self.text_lm.initial_state(1)

    ids = property(lambda self: token_ids(1, 6))
    ones = property(lambda self: np.ones((1, 6), "int32"))
    inputs = property(lambda self: {"token_ids": self.ids, "padding_mask": self.ones})

    # === Layers ===

    @functools.cached_property
    def attention(self):
        layer = keras_fam.FeedbackAttention(**BLOCK)
        layer(self.x, self.fam)
        return layer

    @functools.cached_property
    def block(self):
        layer = keras_fam.FAMDecoderBlock(**BLOCK, intermediate_dim=8)
        layer(self.x, self.fam)
        return layer

    x = property(lambda self: keras.random.normal((1, 6, DIM), seed=1))
    fam = property(lambda self: keras.random.normal((1, 3, DIM), seed=2))
    sink = property(lambda self: keras.random.normal((1, 1, DIM), seed=3))
    mask = property(lambda self: np.ones((1, 6), "bool"))

    # === Files ===

    @functools.cached_property
    def preset(self):
        return gpt2_preset(self.folder / "gpt2", num_layers=1)

    @functools.cached_property
    def adapter(self):
        path = self.folder / "saved.lora.h5"
        self.lora_lm.save_lora_weights(path)
        return path

    @functools.cached_property
    def weights(self):
        path = self.folder / "model.weights.h5"
        self.lm.save_weights(path)
        return path

    @functools.cached_property
    def state_file(self):
        path = self.folder / "state.npz"
        keras_fam.save_state(path, self.text_state)
        return path

    @functools.cached_property
    def gguf(self):
        return gguf_files.write(self.folder / "model.gguf", *gguf_files.llama2())

    @functools.cached_property
    def questions(self):
        path = self.folder / "questions.jsonl"
        path.write_text('{"id": "1", "input": "Who?\\n\\n(A) Ada\\n(B) Al\\n\\nAda wrote.", "output": "Ada"}')
        return path

    @functools.cached_property
    def book(self):
        path = self.folder / "book.txt"
        path.write_text("the fox " * 5)
        return path

    @functools.cached_property
    def books(self):
        """A pattern of three files."""
        (self.folder / "books").mkdir()
        for name in ("a", "b", "c"):
            (self.folder / "books" / f"{name}.txt").write_text("some text " * 5)
        return str(self.folder / "books" / "*.txt")

    # === Data and tasks ===

    task = functools.cached_property(lambda self: PassKeyTask(16, 2))
    passkey = functools.cached_property(
        lambda self: keras_fam.evaluation.PassKeyTokens("passkey", PassKeyTask(4, 1, 8), blocks=(2,), count=1)
    )
    rng = property(lambda self: np.random.default_rng(0))
    documents = functools.cached_property(lambda self: DocumentStream(self.books, letters, 2, 8))
    key_block = functools.cached_property(lambda self: next(self.task.question_blocks(2, 1, self.rng)))
    keys = functools.cached_property(lambda self: self.task.stream(2, 3, restart=0.5, seed=1))
    scores = functools.cached_property(lambda self: keras_fam.data.PassKeyScores(self.task))
