"""The arguments that shape a model's memory, and what they may be."""

from keras_fam.checks import check_block_shape, check_flag, check_integer, check_probability

MEMORY_ARGUMENTS = (
    "block_size",
    "memory_segments",
    "fam_length",
    "random_state_passing",
    "random_position_offset",
    "stop_gradient_memory",
    "truncate_bptt",
    "stateful_batch_size",
)


def check_memory(
    block_size,
    memory_segments,
    fam_length,
    random_state_passing,
    random_position_offset,
    stop_gradient_memory,
    truncate_bptt,
    stateful_batch_size,
    position_table_length,
):
    """Refuses arguments of `FAMBackbone` that are wrong in themselves or do not fit the family.

    Args:
        block_size, ..., stateful_batch_size: see `FAMBackbone`.
        position_table_length: int, rows of a table of learned positions; None for rotary positions.

    Raises:
        TypeError, ValueError: by name.
    """
    check_block_shape(block_size, memory_segments, fam_length)
    check_probability("random_state_passing", random_state_passing)
    check_flag("random_position_offset", random_position_offset)
    check_flag("stop_gradient_memory", stop_gradient_memory)
    if truncate_bptt is not None:
        check_integer("truncate_bptt", truncate_bptt, 1)
    if stateful_batch_size is not None:
        check_integer("stateful_batch_size", stateful_batch_size, 1)
        if random_state_passing or random_position_offset:
            raise ValueError(
                "`stateful_batch_size` carries every row's own state and place: expected random_state_passing=0 and "
                f"random_position_offset=False with it. Received: random_state_passing={random_state_passing}, "
                f"random_position_offset={random_position_offset}."
            )
    if random_state_passing and not fam_length:
        raise ValueError(
            "`random_state_passing` needs FAM: expected fam_length of at least 1. Received: "
            f"random_state_passing={random_state_passing}, fam_length=0."
        )
    visible = (memory_segments + 1) * block_size
    if position_table_length is None and random_position_offset:
        raise ValueError(
            "`random_position_offset` is for learned positions only: rotary positions are relative and would not "
            "change. Expected False. Received: random_position_offset=True."
        )
    if position_table_length is not None and visible > position_table_length:
        raise ValueError(
            "(memory_segments + 1) * block_size must not exceed the position table, max_sequence_length="
            f"{position_table_length}. Received: memory_segments={memory_segments}, block_size={block_size}, together "
            f"{visible}."
        )
