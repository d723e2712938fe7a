"""Text files to stream, and documents read off a stream's batches."""

import keras
import numpy as np


def letters(text):
    """One token a character."""
    return [ord(letter) for letter in text]


def write(folder, texts):
    paths = [folder / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts):
        path.write_bytes(text.encode())
    return paths


def equal(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right) > 0
    keras.tree.map_structure(np.testing.assert_array_equal, left, right)


def documents(batches):
    """Each row's documents as lists of tokens, read off the batches by the rules of the stream, which are checked."""
    batches = list(batches)
    rows = [[] for _ in batches[0][1]]
    for inputs, targets, weights in batches:
        ids, mask, start = inputs["token_ids"], inputs["padding_mask"], inputs["document_start"]
        assert ids.dtype == mask.dtype == start.dtype == targets.dtype == "int32" and weights.dtype == "float32"
        assert ids.shape == mask.shape == targets.shape == weights.shape and start.shape == ids.shape[:1]
        assert set(mask.flat) | set(start) <= {0, 1}
        for row, found in enumerate(rows):
            length = mask[row].sum()
            assert mask[row, :length].all() and not ids[row, length:].any()  # padding lies at the end
            open_end = bool(found and found[-1]["open"])
            assert start[row] == (not open_end)
            if start[row] and length:
                found.append({"tokens": [], "target": None})
            if length:
                document = found[-1]
                assert document["target"] in (None, ids[row, 0])  # the last target was this batch's first token
                document["tokens"] += ids[row, :length].tolist()
                known = int(weights[row].sum())
                assert known in (length - 1, length) and weights[row, :known].all()
                assert (targets[row, : length - 1] == ids[row, 1:length]).all() and not targets[row, known:].any()
                document["target"] = targets[row, -1] if known == ids.shape[1] else None
                document["open"] = known == length
            else:
                assert not weights[row].any() and not targets[row].any()
    assert all(not found or not found[-1]["open"] for found in rows)
    return [[document["tokens"] for document in found] for found in rows]
