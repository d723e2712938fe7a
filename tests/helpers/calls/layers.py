"""Valid calls of layers and of what trains, and what looks like nonsense there and means something."""

import numpy as np

import keras_fam
from helpers.bad_arguments import Call
from helpers.calls.world import BLOCK

ATTENTION = dict(
    **BLOCK,
    use_bias=True,
    rope_max_wavelength=100.0,
    logit_soft_cap=5.0,
    sliding_window_size=3,
    dropout=0.1,
    stop_gradient_memory=False,
    truncate_bptt=2,
    memory_span=4.0,
    kernel_initializer="glorot_uniform",
)
OF_KERAS = dict(name="layer", trainable=True, dtype="float32")
NAME = "str, empty str, None"
OWN = {"name": NAME, "dtype": "None"}
VALUES = "as nan"  # Hidden states are taken as they are: to look at them would stop the device.
WIDTHS = {
    **OWN,
    "memory_segments": "zero",
    "rope_max_wavelength": "None, fraction, huge",
    "logit_soft_cap": "fraction, huge",
    "dropout": "zero",
    "memory_span": "fraction, huge, floats, huge ids",
}

LAYERS = {
    "ChunkedCrossentropy": Call(lambda w: dict(piece=4, name="loss"), meaning={"name": NAME}),
    "FAMDecoderBlock": Call(
        lambda w: dict(
            **ATTENTION,
            intermediate_dim=8,
            normalization="rms_norm",
            gated_feedforward=True,
            use_post_attention_norm=True,
            use_post_ffw_norm=True,
            layer_norm_epsilon=1e-6,
            memory_gate=-1.0,
            **OF_KERAS,
        ),
        keywords=tuple(OF_KERAS),
        meaning={**WIDTHS, "layer_norm_epsilon": "fraction, huge", "memory_gate": "zero, negative, fraction, huge"},
    ),
    "FAMDecoderBlock.__call__": Call(
        lambda w: dict(inputs=w.x, fam=w.fam, inputs_mask=w.mask, carried={"passed": np.zeros(1, "bool")}, sink=w.sink),
        lambda w: w.block,
        meaning={"inputs": VALUES, "fam": f"without places, {VALUES}", "inputs_mask": "as twos", "sink": VALUES},
    ),
    "FAMDecoderBlock.initial_state": Call(
        lambda w: dict(batch_size=2, fam=w.fam, sink=w.sink),
        lambda w: w.block.initial_state,
        meaning={"fam": f"without places, {VALUES}", "sink": VALUES},
    ),
    "FAMDecoderBlock.lift_prompt": Call(
        lambda w: dict(fam=w.fam),
        lambda w: w.block.lift_prompt,
        meaning={"fam": f"of more rows, without places, {VALUES}"},
    ),
    "FAMDecoderBlock.lift_sink": Call(
        lambda w: dict(sink=w.sink),
        lambda w: w.block.lift_sink,
        meaning={"sink": VALUES},
    ),
    "FAMDecoderBlock.read": Call(
        lambda w: dict(x=w.x, state=w.block.initial_state(1, w.fam), inputs_mask=w.mask),
        lambda w: w.block.read,
        also={"x": "x|state"},  # A chunk of other rows than the state has.
        meaning={"x": VALUES},
    ),
    "FAMPrompt": Call(
        lambda w: dict(fam_length=3, embeddings_initializer="uniform", **OF_KERAS),
        keywords=tuple(OF_KERAS),
        meaning=OWN,
    ),
    "FAMPrompt.__call__": Call(
        lambda w: dict(inputs=w.x),
        lambda w: keras_fam.FAMPrompt(3),
        meaning={"inputs": f"{VALUES}, of more rows, without places, of another width"},
    ),
    "FeedbackAttention": Call(lambda w: dict(**ATTENTION, **OF_KERAS), keywords=tuple(OF_KERAS), meaning=WIDTHS),
    "FeedbackAttention.__call__": Call(
        lambda w: dict(inputs=w.x, fam=w.fam, inputs_mask=w.mask),
        lambda w: w.attention,
        meaning={"inputs": VALUES, "fam": f"without places, {VALUES}", "inputs_mask": "as twos"},
    ),
    "RandomStatePassingSchedule": Call(lambda w: dict(schedule=lambda step: 0.5), meaning={"schedule": "class"}),
    "register_family": Call(lambda w: dict(family=keras_fam.families.GPT2Family)),
}
