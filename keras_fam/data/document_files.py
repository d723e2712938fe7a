"""The files of a corpus: found in a folder or by a pattern, looked at, split into subsets, dealt to rows."""

import glob
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from keras_fam.data.tokenizing import read_pieces

Paths = str | os.PathLike | Sequence[str | os.PathLike]


def find_files(paths: Paths) -> list[str]:
    """The files of a folder, of a glob pattern, or of a list.

    Args:
        paths: a folder, for all files `*.txt` in and below it; a glob pattern, `**` for any folders; or a sequence of
            paths of files. Files of a folder and of a pattern are sorted by path, those of a list stay in its order.

    Returns:
        list of str, at least one.

    Raises:
        FileNotFoundError: a path in a list that is no file.
        TypeError, ValueError: no paths; a folder or a pattern without files.
    """
    if isinstance(paths, (str, os.PathLike)):
        return _found(os.fsdecode(paths))
    if isinstance(paths, bytes) or not isinstance(paths, Sequence):
        raise TypeError(
            "`paths` must be a folder, a glob pattern or a list of paths. Received: "
            f"paths={paths!r} of type {type(paths).__name__}."
        )
    if not paths:
        raise ValueError("`paths` must hold at least one path. Received: none.")
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"`paths` must hold paths. Received: {path!r} of type {type(path).__name__}.")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"`paths` must name existing files. Received: {os.fspath(path)!r}.")
    return [os.fsdecode(path) for path in paths]


def _found(place):
    if os.path.isdir(place):
        found, wanted = map(str, pathlib.Path(place).rglob("*.txt")), "a folder with files *.txt in or below it"
    else:
        names = [place] if os.path.isfile(place) else glob.glob(place, recursive=True)
        found, wanted = names, "a folder, a glob pattern that matches files, or a list of paths"
    found = sorted(filter(os.path.isfile, found))
    if not found:
        raise ValueError(f"`paths` must be {wanted}. Received: paths={place!r}, where there are none.")
    return found


def check_text(path: str, chunk_size: int) -> None:
    """Looks at a file's first chunk.

    Raises:
        ValueError: it is empty, or no UTF-8 text.
    """
    pieces = read_pieces(path, chunk_size)
    if next(pieces, None) is None:
        raise ValueError(f"`paths` must name files that hold text. Received: {path!r}, which is empty.")
    pieces.close()


def split_files(paths: list[str], validation_split: float, subset: str, seed: int | None) -> list[str]:
    """One subset's files, in the order given; the two subsets share no file and together are all.

    Args:
        paths: list of str, at least two.
        validation_split: float in (0, 1), the share of files held out: at least one, and not all.
        subset: str, `"training"` or `"validation"`.
        seed: int, draws the files that are held out; None holds out the last ones.
    """
    if len(paths) < 2:
        raise ValueError(
            f"`validation_split` must have at least two documents to split. Received: {len(paths)} document in `paths`."
        )
    count = min(max(1, round(validation_split * len(paths))), len(paths) - 1)
    order = np.arange(len(paths)) if seed is None else np.random.default_rng([seed, 0, 1]).permutation(len(paths))
    held_out = set(order[-count:].tolist())
    return [path for index, path in enumerate(paths) if (index in held_out) == (subset == "validation")]


def deal_files(paths: list[str], rows: int) -> list[list[str]]:
    """Each row's documents, in the order given: the largest file first, to the row with the fewest bytes so far.

    Returns:
        list of `min(rows, len(paths))` lists: further rows have no document.
    """
    rows = min(rows, len(paths))
    dealt: list[list[int]] = [[] for _ in range(rows)]
    loads = np.zeros(rows)
    sizes = [os.path.getsize(path) for path in paths]
    for index in sorted(range(len(paths)), key=lambda i: -sizes[i]):
        row = int(loads.argmin())
        dealt[row].append(index)
        loads[row] += sizes[index]
    return [[paths[index] for index in sorted(row)] for row in dealt]
