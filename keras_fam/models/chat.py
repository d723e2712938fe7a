"""Conversations: turns in a preset's own format, and one state that remembers them all."""

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

import numpy as np

from keras_fam.checks import check_choice, check_integer, check_path
from keras_fam.files.states import load_state, save_state
from keras_fam.memory.state import StreamState
from keras_fam.models.causal_lm import FAMCausalLM
from keras_fam.models.texts import Decoder, token_list


class ChatFormat(NamedTuple):
    """How turns are written.

    Attributes:
        system: str with `{system}`, what stands before the first turn.
        user: str with `{text}`, a turn of the user, and what opens the answer.
        first: like `user`, with `{system}` too: the first turn of a format without a place for a system text. Or "".
        end: str, the token that ends a turn; "" if a line's end does.
        after: str, what stands between an answer's end and the next turn.
        special: tuple of str, the tokens that a tokenizer must have for this format.
    """

    system: str
    user: str
    first: str
    end: str
    after: str
    special: tuple[str, ...]


FORMATS = {
    "gemma": ChatFormat(
        system="",
        user="<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n",
        first="<start_of_turn>user\n{system}\n\n{text}<end_of_turn>\n<start_of_turn>model\n",
        end="<end_of_turn>",
        after="\n",
        special=("<start_of_turn>", "<end_of_turn>"),
    ),
    "llama3": ChatFormat(
        system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        first="",
        end="<|eot_id|>",
        after="",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "chatml": ChatFormat(
        system="<|im_start|>system\n{system}<|im_end|>\n",
        user="<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
        first="",
        end="<|im_end|>",
        after="\n",
        special=("<|im_start|>", "<|im_end|>"),
    ),
    "plain": ChatFormat(
        system="{system}\n\n", user="User: {text}\nAssistant:", first="", end="", after="\n", special=()
    ),
}


def format_of(tokenizer: Any) -> str:
    """The name in `FORMATS` of the first format whose special tokens a tokenizer has."""
    known = set(tokenizer.get_vocabulary())
    return next(name for name, chat_format in FORMATS.items() if known.issuperset(chat_format.special))


class Chat:
    """A conversation with a language model, without end and in memory of fixed size.

    All that was said is in one state, `chat.state`: only what is new is read at each turn, and a turn takes no longer
    late in a conversation than at its start. A window forgets what leaves it. Of that, FAM keeps what the model was
    trained to keep.

    Turns are written in the preset's own format, which is told by its tokenizer's special tokens: Gemma's
    `<start_of_turn>`, Llama 3's headers, or ChatML, as of Qwen and SmolLM2. Without these they are "User: ..." and
    "Assistant: ...", and an answer is one line.

    Args:
        lm: `keras_fam.FAMCausalLM` with a preprocessor, compiled with a sampler that draws one token after another.
        system: str, what the model is told before the first turn, or None.
        format: str, `"gemma"`, `"llama3"`, `"chatml"` or `"plain"`, or None for the tokenizer's own.
        state: `keras_fam.StreamState` of one row, to go on from, or None for a new conversation.

    Raises:
        TypeError, ValueError: an argument of the wrong type, by name; a model without a preprocessor; a format whose
            special tokens the tokenizer does not have; a state of another model.

    Example:

    ```python
    lm = keras_fam.FAMCausalLM.from_preset("gpt2_base_en", block_size=64, memory_segments=2, fam_length=8)
    chat = keras_fam.Chat(lm, system="A talk about foxes.")
    answer = chat.say("the quick brown fox", max_new_tokens=8)
    chat.save("chat.npz")
    chat = keras_fam.Chat.load("chat.npz", lm)
    for piece in chat.stream("the dog", max_new_tokens=8):
        print(piece, end="", flush=True)
    ```
    """

    def __init__(
        self, lm: FAMCausalLM, system: str | None = None, format: str | None = None, state: StreamState | None = None
    ):
        if not isinstance(lm, FAMCausalLM):
            raise TypeError(f"`lm` must be a keras_fam.FAMCausalLM. Received: lm of type {type(lm).__name__}.")
        if lm.preprocessor is None:
            raise ValueError("`lm` must have a preprocessor, to read and write text. Received: lm.preprocessor=None.")
        tokenizer = lm.preprocessor.tokenizer
        name = format_of(tokenizer) if format is None else check_choice("format", format, FORMATS)
        missing = set(FORMATS[name].special) - set(tokenizer.get_vocabulary())
        if missing:
            raise ValueError(
                f"`format` must be one whose special tokens the tokenizer has. Received: format={format!r} for a "
                f"tokenizer without {', '.join(sorted(missing))}."
            )
        if system is not None:
            _check_text("system", system, FORMATS[name].special)
        self.lm, self.system, self.format = lm, system, name
        self.state = lm.initial_state(1) if state is None else lm.backbone.own_state(state, 1)

    def say(self, text: str, max_new_tokens: int = 512, file: TextIO | None = None) -> str:
        """One turn.

        Args:
            text: str, what the user says.
            max_new_tokens: int, where an answer is cut off that does not end before.
            file: where the answer is printed while it is generated, such as `sys.stdout`, or None.

        Returns:
            str, the answer.

        Raises:
            TypeError, ValueError: see `stream`.
        """
        if file is not None and not callable(getattr(file, "write", None)):
            raise TypeError(f"`file` must be a text file, or None. Received: file={file!r} of {type(file).__name__}.")
        pieces = []
        for piece in self.stream(text, max_new_tokens):
            pieces.append(piece)
            if file is not None:
                print(piece, end="", file=file, flush=True)
        if file is not None:
            print(file=file)
        return "".join(pieces).strip()

    def stream(self, text: str, max_new_tokens: int = 512) -> Iterator[str]:
        """One turn; yields the answer as it comes.

        The turn counts as said as soon as the first piece is asked for. An answer that is not read to its end ends
        there.

        Args:
            text: str, what the user says.
            max_new_tokens: int, where an answer is cut off that does not end before.

        Returns:
            iterator of str.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range, by name; a text that holds special
                tokens of the format; a sampler that does not draw one token after another.
        """
        check_integer("max_new_tokens", max_new_tokens, 1)
        _check_text("text", text, FORMATS[self.format].special)
        ids, stops = self._turn(text), self._stop_token_ids()
        pieces = self.lm.generate_stream([ids], self.state, max_new_tokens, stops)
        silent = (*(getattr(self._tokenizer, "special_token_ids", None) or ()), *stops)
        return self._answer(pieces, Decoder(self._tokenizer, ids, silent))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the conversation to one file; see `keras_fam.save_state`. Call it between two turns.

        A system text is read with the first turn, so a conversation without a turn is saved without it.

        Args:
            path: str or path-like. A file that is there is replaced in one step.

        Raises:
            TypeError, ValueError: see `keras_fam.save_state`.
        """
        save_state(path, self.state)

    @classmethod
    def load(
        cls, path: str | os.PathLike, lm: FAMCausalLM, system: str | None = None, format: str | None = None
    ) -> "Chat":
        """The conversation that `save` wrote, to go on with.

        Args:
            path: str or path-like.
            lm: the model that the conversation was held with.
            system: str or None, for a conversation that had no turn yet; else it is not read again.
            format: see `Chat`.

        Returns:
            `Chat`.

        Raises:
            FileNotFoundError, TypeError, ValueError: see `keras_fam.load_state` and `Chat`.
        """
        return cls(lm, system, format, load_state(check_path("path", path)))

    @property
    def _tokenizer(self):
        return self.lm.preprocessor.tokenizer

    def _answer(self, pieces, decoder):
        chat_format, before, said, ended = FORMATS[self.format], pieces.state, False, False
        try:
            for token in pieces:
                piece = decoder.piece(token)
                if not chat_format.end:
                    piece = piece if said else piece.lstrip()
                    piece, newline, _ = piece.partition("\n")
                    ended = bool(newline)
                if piece:
                    said = True
                    yield piece
                if ended:
                    return
            if rest := decoder.rest():
                yield rest
        finally:
            if pieces.state is not before:  # Nothing was said if the prompt was not read.
                self.state = self._closed(pieces, ended)

    def _closed(self, pieces, ended):
        """The state behind the answer's end and what stands between turns."""
        chat_format = FORMATS[self.format]
        behind = "" if ended and not chat_format.end else chat_format.after
        if chat_format.end and pieces.stopped_by != self._tokenizer.token_to_id(chat_format.end):
            behind = chat_format.end + behind
        ids = self._encode(behind)
        return self.lm.backbone.read_into(pieces.state, np.array([ids], "int32")) if ids else pieces.state

    def _turn(self, text):
        """The tokens of a turn of the user, with start token and system text in front of the first."""
        chat_format, start = FORMATS[self.format], getattr(self._tokenizer, "start_token_id", None)
        if self.state.tokens != [0]:
            return self._encode(chat_format.user, text=text)
        template = chat_format.user
        if self.system is not None:
            template = chat_format.first or chat_format.system + chat_format.user
        ids = self._encode(template, text=text, system=self.system)
        return ids if start is None or ids[0] == start else [start, *ids]

    def _encode(self, template, **texts):
        """Token ids of a template: special tokens by their ids, what is between them by the tokenizer."""
        special = FORMATS[self.format].special
        parts = re.split(f"({'|'.join(map(re.escape, special))})", template) if special else [template]
        ids = []
        for part in parts:
            if part in special:
                ids.append(int(self._tokenizer.token_to_id(part)))
            elif part:
                ids += token_list(self._tokenizer(part.format(**texts)))
        return ids

    def _stop_token_ids(self):
        """The tokens that end an answer."""
        names = ("end_token_id", "end_token2_id")
        ids = {getattr(self._tokenizer, name, None) for name in names} - {None}
        if FORMATS[self.format].end:
            ids.add(int(self._tokenizer.token_to_id(FORMATS[self.format].end)))
        return tuple(sorted(ids))


def _check_text(name, value, special):
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a str. Received: {name} of type {type(value).__name__}.")
    if not value.strip():
        raise ValueError(f"`{name}` must hold text. Received: {name}={value!r}.")
    for token in special:
        if token in value:
            raise ValueError(f"`{name}` must not hold special tokens of the chat format. Received: {token!r} in it.")
