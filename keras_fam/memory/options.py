"""The options of working memory, and what each may be. Every option is named and checked here and nowhere else."""

import math
from dataclasses import asdict, dataclass, fields

from keras_fam.checks import check_finite, check_flag, check_integer, check_probability, check_spans


@dataclass(frozen=True)
class MemoryOptions:
    """How one layer remembers.

    Attributes:
        block_size: int >= 1, B. Tokens per block.
        memory_segments: int >= 0, m. Past blocks whose keys and values stay visible.
        stop_gradient_memory: bool. No gradient through memory segments (the Transformer-XL habit).
        truncate_bptt: int >= 1 or None. Cut FAM's gradient every that many blocks.
        memory_span: float > 0, a tuple of N of them, or None. A vector of FAM keeps at most that many times the length
            of what a block adds to it, so that it can be written again at any age; None is the paper's plain sum.
        memory_gate: float or None. Where a trained scalar starts that is added to the tokens' scores on FAM: 0 is the
            paper, -9 nearly hides FAM; None adds no weight.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range, by name.
    """

    block_size: int
    memory_segments: int = 0
    stop_gradient_memory: bool = False
    truncate_bptt: int | None = None
    memory_span: float | tuple[float, ...] | None = None
    memory_gate: float | None = None

    def __post_init__(self):
        self._set("block_size", check_integer("block_size", self.block_size, 1))
        self._set("memory_segments", check_integer("memory_segments", self.memory_segments, 0))
        self._set("stop_gradient_memory", check_flag("stop_gradient_memory", self.stop_gradient_memory))
        if self.truncate_bptt is not None:
            self._set("truncate_bptt", check_integer("truncate_bptt", self.truncate_bptt, 1))
        if self.memory_span is not None:
            self._set("memory_span", check_spans("memory_span", self.memory_span))
        if self.memory_gate is not None:
            self._set("memory_gate", check_finite("memory_gate", self.memory_gate))

    def _set(self, name, value):
        object.__setattr__(self, name, value)

    @property
    def slots(self) -> int:
        """Places of a ring of m+1 blocks."""
        return (self.memory_segments + 1) * self.block_size

    def check_fam_length(self, fam_length: int | None) -> None:
        """Refuses spans for another number of vectors than there are."""
        if isinstance(self.memory_span, tuple) and fam_length is not None and len(self.memory_span) != fam_length:
            raise ValueError(
                f"`memory_span` must be a number or one number for each of the {fam_length} FAM vectors. Received: "
                f"{len(self.memory_span)} numbers."
            )

    def get_config(self) -> dict:
        """The options by name, for a layer's `get_config`."""
        return asdict(self)


@dataclass(frozen=True)
class ModelOptions(MemoryOptions):
    """How a whole model remembers: the options of its layers, and those that only a model has.

    Attributes:
        fam_length: int, 0 <= N <= B. Memory vectors per layer; 0 is block sliding window attention (BSWA).
        sink_token_id: int or None. The start token, whose key and value stay visible for ever.
        random_state_passing: float in [0, 1], training: the probability that a step starts from the last one's memory.
        random_position_offset: bool, training, learned positions: shift each row's places at random.
        stateful_batch_size: int >= 1 or None, training: rows that go on from batch to batch.
    """

    fam_length: int = 64
    sink_token_id: int | None = None
    random_state_passing: float = 0.0
    random_position_offset: bool = False
    stateful_batch_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        limit = f" (block_size={self.block_size})"
        self._set("fam_length", check_integer("fam_length", self.fam_length, 0, self.block_size, limit))
        self.check_fam_length(self.fam_length)
        if self.sink_token_id is not None:
            self._set("sink_token_id", check_integer("sink_token_id", self.sink_token_id, 0))
        self._set("random_state_passing", check_probability("random_state_passing", self.random_state_passing))
        self._set("random_position_offset", check_flag("random_position_offset", self.random_position_offset))
        if self.stateful_batch_size is not None:
            self._set("stateful_batch_size", check_integer("stateful_batch_size", self.stateful_batch_size, 1))
            if self.random_state_passing or self.random_position_offset:
                raise ValueError(
                    "`stateful_batch_size` carries every row's own state and place: expected random_state_passing=0 "
                    f"and random_position_offset=False with it. Received: random_state_passing="
                    f"{self.random_state_passing}, random_position_offset={self.random_position_offset}."
                )
        for name in ("random_state_passing", "memory_gate", "memory_span"):
            if getattr(self, name) and not self.fam_length:
                raise ValueError(
                    f"`{name}` needs FAM: expected fam_length of at least 1. Received: {name}={getattr(self, name)}, "
                    "fam_length=0."
                )

    def check_model(self, vocabulary_size: int | None, position_table_length: int | None) -> None:
        """Refuses options that do not fit a model.

        Args:
            vocabulary_size: int, or None if it is not known yet.
            position_table_length: int, rows of a table of learned positions; None for rotary positions.

        Raises:
            ValueError: by name.
        """
        if self.sink_token_id is not None and vocabulary_size is not None and self.sink_token_id >= vocabulary_size:
            raise ValueError(
                f"`sink_token_id` must lie in the vocabulary, 0 to {vocabulary_size - 1}. Received: sink_token_id="
                f"{self.sink_token_id}."
            )
        if position_table_length is None and self.random_position_offset:
            raise ValueError(
                "`random_position_offset` is for learned positions only: rotary positions are relative and would not "
                "change. Expected False. Received: random_position_offset=True."
            )
        if position_table_length is not None and self.slots > position_table_length:
            raise ValueError(
                "(memory_segments + 1) * block_size must not exceed the position table, max_sequence_length="
                f"{position_table_length}. Received: memory_segments={self.memory_segments}, "
                f"block_size={self.block_size}, together {self.slots}."
            )

    def for_layers(self) -> MemoryOptions:
        """The part that every layer has."""
        return MemoryOptions(**{field.name: getattr(self, field.name) for field in fields(MemoryOptions)})


MEMORY_ARGUMENTS = tuple(field.name for field in fields(ModelOptions))
# Options that say how a model is trained or used, and not what its weights are for: they may change from run to run.
RUN_ARGUMENTS = (
    "stop_gradient_memory",
    "truncate_bptt",
    "memory_span",
    "random_state_passing",
    "random_position_offset",
    "stateful_batch_size",
)


def position_period(slots: list[int], position_table_length: int | None) -> int:
    """What a stream counts its places modulo: a multiple of every ring, and of a table of learned positions.

    Args:
        slots: places of the rings, at least one.
        position_table_length: int or None.

    Returns:
        int, below 2**31.

    Raises:
        ValueError: no such number fits 32 bits.
    """
    period = math.lcm(*slots, position_table_length or 1)
    if period >= 2**31:
        raise ValueError(
            "`block_size` and `memory_segments` must have a common multiple with the position table below 2**31. "
            f"Received: rings of {sorted(set(slots))} places and a table of {position_table_length}: {period}."
        )
    return period
