"""Text from files in pieces, and tokens from any tokenizer."""

import re
from collections.abc import Callable, Generator, Iterator
from typing import Any

# Matches end in front of the last run of whitespace, and in front of the last whitespace character.
TO_LAST_RUN = re.compile(r".*\S(?=\s)", re.DOTALL)
TO_LAST_SPACE = re.compile(r".+(?=\s)", re.DOTALL)


def check_tokenizer(tokenizer: Any) -> Callable[[str], Any]:
    """The function of a tokenizer.

    Args:
        tokenizer: a KerasHub tokenizer, another object with a method `tokenize`, or a callable from a str to tokens.

    Returns:
        callable from str to a sequence of tokens.

    Raises:
        TypeError: neither of them.
        ValueError: a tokenizer that pads, cuts, or adds special tokens, so that pieces of a text do not add up.
    """
    tokenize = getattr(tokenizer, "tokenize", tokenizer)
    if isinstance(tokenizer, type) or not callable(tokenize):
        raise TypeError(
            "`tokenizer` must be a KerasHub tokenizer or a callable from a str to tokens. Received: "
            f"tokenizer={tokenizer!r}."
        )
    for name in ("sequence_length", "add_bos", "add_eos"):
        if getattr(tokenizer, name, None):
            raise ValueError(
                "`tokenizer` must neither pad, cut nor add special tokens. Received: a tokenizer with "
                f"{name}={getattr(tokenizer, name)!r}."
            )
    return tokenize


def read_pieces(path: str, chunk_size: int) -> Generator[str, None, None]:
    """Reads a text file in pieces that together are its text.

    Pieces are cut in front of whitespace, where tokenizers that split at words cut too; only a word of at least
    `chunk_size` characters is cut within.

    Args:
        path: str, a file in UTF-8, with or without a byte order mark.
        chunk_size: int, characters that are read at once.

    Yields:
        str, at least 1 and less than `2 * chunk_size` characters.

    Raises:
        ValueError: the file is no UTF-8 text.
    """
    with open(path, encoding="utf-8-sig") as file:
        yield from cut_pieces(lambda: _read(file, path, chunk_size), chunk_size)


def cut_pieces(read: Callable[[], str], chunk_size: int) -> Iterator[str]:
    """Pieces as of `read_pieces` out of chunks; `read` returns at most `chunk_size` characters, and "" at the end."""
    rest = ""
    while chunk := read():
        text = rest + chunk
        cut = _end(TO_LAST_RUN, text)
        if len(text) - cut >= chunk_size:
            cut = _end(TO_LAST_SPACE, text)
        if len(text) - cut >= chunk_size:
            cut = len(text)
        if cut:
            yield text[:cut]
        rest = text[cut:]
    if rest:
        yield rest


def _end(pattern, text):
    match = pattern.match(text)
    return match.end() if match else 0


def _read(file, path, chunk_size):
    try:
        chunk = file.read(chunk_size)
    except UnicodeDecodeError as error:
        raise ValueError(f"`paths` must name text files in UTF-8. Received: {path!r}: {error}.") from error
    if "\0" in chunk:
        raise ValueError(f"`paths` must name text files in UTF-8. Received: {path!r}, which holds NUL bytes.")
    return chunk
