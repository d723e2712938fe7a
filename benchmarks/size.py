"""How large the measured models are, and how much arithmetic that means."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A Gemma-shaped model; every head has its own keys."""

    hidden_dim: int = 512
    num_layers: int = 4
    num_heads: int = 8
    intermediate_dim: int = 4096  # both halves of the gated feed-forward
    block_size: int = 1024
    memory_segments: int = 3
    fam_length: int = 64
    vocabulary_size: int = 256


def _products(size, window):
    """Multiplications of one token in one decoder layer, forward, that sees `window` places."""
    return (4 * size.hidden_dim + 3 * size.intermediate_dim // 2 + 2 * window) * size.hidden_dim


def products_per_token(size, length):
    """What a ratio of times has to be held against; masked places of a token's own block count, they are computed."""
    blocks = length // size.block_size
    window = sum(min(block, size.memory_segments) + 1 for block in range(blocks)) / blocks * size.block_size
    updates = size.fam_length / size.block_size * (blocks - 1) / blocks
    return _products(size, window + size.fam_length) + updates * _products(size, size.block_size + size.fam_length)


def stock_products_per_token(size, length):
    """The same for full attention that computes masked places too."""
    return _products(size, length)
