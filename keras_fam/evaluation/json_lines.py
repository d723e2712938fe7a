"""Files of examples in JSON lines, as SCROLLS has them: looked through once, read one example at a time."""

import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from keras_fam.checks import check_path

_SHOWN = 5  # Broken lines that a warning names.


class Record(NamedTuple):
    """One example of a file.

    Attributes:
        id: str.
        input: str.
        outputs: list of str, the references of all lines with this id.
        choices: list of str, or None.
    """

    id: str
    input: str
    outputs: list[str]
    choices: list[str] | None


class JsonLines:
    """The examples of a file with a JSON object of `id`, `input`, `output` and, if need be, `choices` in every line.

    Lines with one `id` and the same `input` are one example with several references. A line that is broken is left out;
    a warning names it. No more than one example's text is in memory.

    Args:
        path: str or path-like.
        parse: callable on a `Record` that raises ValueError if a task cannot use it.

    Attributes:
        broken: list of str, the number of each line that is left out, and why.
        checksum: int, of the whole file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file without a line that can be used.
    """

    def __init__(self, path: str | os.PathLike, parse: Callable[[Record], Any]):
        if not os.path.isfile(check_path("path", path)):
            raise FileNotFoundError(f"`path` must name an existing file. Received: {os.fspath(path)!r}.")
        self.path, self.broken, self.checksum = os.fspath(path), [], 0
        self._entries: dict[str, tuple] = {}  # id: (offset of its first line, checksum of its input, outputs)
        with open(self.path, "rb") as file:
            for number, (offset, line) in enumerate(_lines(file), 1):
                self.checksum = zlib.crc32(line, self.checksum)
                try:
                    self._look_at(offset, line, parse)
                except ValueError as error:
                    self.broken.append(f"line {number}: {error}")
        if not self._entries:
            why = f" the first is {self.broken[0]}" if self.broken else " it is empty"
            raise ValueError(
                "`path` must name a file of JSON lines with `id`, `input` and `output`. Received: "
                f"{self.path!r}, where no line can be used:{why}"
            )
        if self.broken:
            more = len(self.broken) - _SHOWN
            shown = "; ".join(self.broken[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
            warnings.warn(f"{len(self.broken)} lines of {self.path!r} are left out: {shown}", stacklevel=4)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Record]:
        with open(self.path, "rb") as file:
            for offset, _, outputs in self._entries.values():
                file.seek(offset)
                yield _record(file.readline())._replace(outputs=outputs)

    def _look_at(self, offset, line, parse):
        if not line.strip():
            return
        record = _record(line)
        parse(record)
        checksum = zlib.crc32(record.input.encode())
        if record.id not in self._entries:
            self._entries[record.id] = (offset, checksum, record.outputs)
            return
        _, first, outputs = self._entries[record.id]
        if checksum != first:
            raise ValueError(f"id {record.id!r} was there before, with another `input`")
        outputs += [each for each in record.outputs if each not in outputs]


def _lines(file):
    offset = 0
    for line in file:
        yield offset, line
        offset += len(line)


def _record(line):
    """A line's `Record`; ValueError says what is wrong with it."""
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"no JSON ({error})") from error
    except RecursionError:
        raise ValueError("no JSON (too deep)") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object, received {type(fields).__name__}")
    missing = [name for name in ("id", "input", "output") if fields.get(name) is None]
    if missing:
        raise ValueError(f"no `{'`, `'.join(missing)}`")
    name, text, outputs, choices = (fields.get(each) for each in ("id", "input", "output", "choices"))
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise ValueError(f"`id` must be a str or an integer, received {name!r:.80}")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"`input` must be a str with text in it, received {text!r:.80}")
    outputs = [outputs] if isinstance(outputs, str) else outputs
    for label, texts in (("output", outputs), ("choices", [""] if choices is None else choices)):
        if not isinstance(texts, list) or not texts or not all(isinstance(each, str) for each in texts):
            raise ValueError(f"`{label}` must be a str or a list of str, received {texts!r:.80}")
    return Record(str(name), text, list(outputs or ()), choices)
