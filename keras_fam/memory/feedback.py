"""The FAM half of Algorithm 2: how one layer's working memory is projected, and updated from one block."""

from typing import NamedTuple

from keras import ops

from keras_fam.memory.core import Core
from keras_fam.memory.rotary import Rotation, turn
from keras_fam.memory.state import Sink, started_after
from keras_fam.types import Tensor


class FAM(NamedTuple):
    """One layer's working memory between two blocks, with what the layer projects from it.

    Attributes:
        vectors: `[b, N, d]`, F, in `DecoderParts.fam_dtype`.
        key: `[b, N, k, c]`, Kf on the last N places of the block before; with a sink `[b, 1 + N, k, c]`, its key first.
        value: like `key`, Vf.
        query: `[b, N, h, c]`, Qf, not yet rotated.
        started: bool `[b]`, False while the row still holds the learned prompt.
    """

    vectors: Tensor
    key: Tensor
    value: Tensor
    query: Tensor
    started: Tensor


class Block(NamedTuple):
    """One whole block as FAM reads it.

    Attributes:
        key: `[b, B, k, c]`, rotated.
        value: `[b, B, k, c]`.
        valid: bool `[b, B]`, False for padding, or None.
        rotation: `Rotation` of the block's last N places, where Qf sits, or None.
    """

    key: Tensor
    value: Tensor
    valid: Tensor | None
    rotation: Rotation | None


def project_fam(
    core: Core, vectors: Tensor, started: Tensor | None, rotation: Rotation | None, sink: Sink | None = None
) -> FAM:
    """Qf, Kf, Vf = QKV(norm(F)), with Kf on the last N places of the block that F compressed.

    Args:
        core: `Core`.
        vectors: `[1 or b, N, d]`, F.
        started: bool `[b]`, or None.
        rotation: `Rotation` of those N places, or None.
        sink: `Sink` on its place before them, or None.

    Returns:
        `FAM`.
    """
    parts = core.fam_parts
    normed = parts.normalize(vectors)
    key, value = parts.project_key_value(normed)
    key = turn(key, rotation)
    if sink is not None:
        key, value = (
            ops.concatenate([ops.broadcast_to(x, (ops.shape(y)[0], *x.shape[1:])), y], axis=1)
            for x, y in ((sink.key, key), (sink.value, value))
        )
    return FAM(vectors, key, value, parts.project_query(normed), started)


def update_fam(core: Core, fam: FAM, block: Block, seeds: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """F_tau from F_{tau-1} and one whole block.

        A^F = Attention(Qf, [Kf, K_tau], [Vf, V_tau]) + R;   F_tau = FF(norm(A^F)) + A^F

    Args:
        core: `Core`.
        fam: `FAM` after the block before.
        block: `Block`.
        seeds: dict of drawn seeds for the dropouts, or None.

    Returns:
        `(vectors [b, N, d], started [b])`. Rows whose block is nothing but padding keep theirs.
    """
    parts, vectors, valid = core.fam_parts, fam.vectors, block.valid
    if valid is None:
        valid = ops.ones((1, block.key.shape[1]), "bool")
    always = ops.ones((ops.shape(valid)[0], fam.key.shape[1]), "bool")
    attended = parts.attend(
        turn(fam.query, block.rotation),
        ops.concatenate([fam.key, block.key], axis=1),
        ops.concatenate([fam.value, block.value], axis=1),
        ops.concatenate([always, valid], axis=1)[:, None],
        seeds,
    )
    # R: the learned prompt carries no context, so the first block after it has no residual.
    residual = ops.where(fam.started[:, None, None], vectors, ops.zeros_like(vectors))
    updated = parts.complete(parts.project_output(attended), residual, seeds)
    updated = bound_residual(updated, residual, core.options.memory_span)
    read = started_after(ops.zeros_like(fam.started), valid)
    return ops.where(read[:, None, None], updated, vectors), started_after(fam.started, valid)


def bound_residual(updated: Tensor, residual: Tensor, span: float | tuple[float, ...] | None) -> Tensor:
    """Bounded memory: the residual is at most `span` times as long as what the block adds to it.

        D = F_tau - R;   F_tau = D + R * min(1, span * |D| / |R|)

    Lengths are over d, for each vector by itself; the factor has no gradient. Norms hide the length of F, so what is
    read of it in the same step is unchanged, and a block's share of F is about 1 / span at any age.

    Args:
        updated: `[b, N, d]`, F_tau by the paper's plain sum.
        residual: `[b, N, d]`, R.
        span: float, a tuple of N floats, or None for the plain sum.

    Returns:
        `[b, N, d]`.
    """
    if span is None:
        return updated
    added = updated - residual
    length, longest = (
        ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True)) for x in map(ops.stop_gradient, (residual, added))
    )
    span = ops.reshape(ops.convert_to_tensor(span, updated.dtype), (1, -1, 1))
    limit = span * longest
    factor = ops.where(length > limit, limit / ops.maximum(length, 1e-30), ops.ones_like(length))
    return added + residual * factor
