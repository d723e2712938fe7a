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


def products_per_token(size, length):
    """Multiplications per token in one decoder layer, forward: what a ratio of times has to be held against."""
    blocks = length // size.block_size
    weights = (4 * size.hidden_dim + 3 * size.intermediate_dim // 2) * size.hidden_dim
    window = sum(min(block, size.memory_segments) + 1 for block in range(blocks)) / blocks * size.block_size
    token = weights + 2 * size.hidden_dim * (window + size.fam_length)
    update = weights + 2 * size.hidden_dim * (size.block_size + size.fam_length)
    return token + update * size.fam_length / size.block_size * (blocks - 1) / blocks
