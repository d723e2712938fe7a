"""Valid calls of models, conversations, files and pictures, and what looks like nonsense there and means something."""

import keras
import numpy as np

import keras_fam
from helpers.bad_arguments import Call
from helpers.calls.world import SIZES

TEXT = "str, empty str"  # A text, or a name.
OPTIONS = dict(
    **SIZES,
    random_state_passing=0.0,
    random_position_offset=False,
    stop_gradient_memory=False,
    truncate_bptt=2,
    stateful_batch_size=None,
    memory_span=None,
    memory_gate=None,
    sink_token_id=1,
)
OPTIONS_MEANING = {
    "memory_segments": "zero",  # no past block
    "fam_length": "zero",
    "random_state_passing": "zero",
    "memory_span": "fraction, huge",
    "memory_gate": "zero, negative, fraction, huge",  # any finite score
    "sink_token_id": "zero",
}
STOPS = "None, zero, empty"
NAME = "str, empty str, None"  # None is one that Keras makes up.
# None switches off what `from_preset` would choose; some of these mean more.
OPTIONAL = dict.fromkeys(("truncate_bptt", "stateful_batch_size", "sink_token_id", "dtype"), "None")
OPTIONAL |= {name: f"None, {OPTIONS_MEANING[name]}" for name in ("memory_span", "memory_gate")}
OPTIONAL["sink_token_id"] = "None, zero"
PATH = "str"  # A new file or folder here.


def own(method, name="lm"):
    """What is called, by the world's object."""
    return lambda world: getattr(getattr(world, name), method)


def _set_random_state_passing(world):
    return lambda value: setattr(world.passing, "random_state_passing", value)


SAVED = {"preset_dir": PATH, "max_shard_size": "None, fraction, huge"}
SAVE = Call(
    lambda w: dict(filepath="model.keras", overwrite=True, zipped=True), own("save"), meaning={"zipped": "None"}
)
LOAD = Call(lambda w: dict(filepath=w.weights, skip_mismatch=False), own("load_weights"), received="Received|filepath=")
INPUTS = {"inputs": "inputs|token_ids|padding_mask"}  # Messages name the part that is wrong.
CHUNK = {"inputs": "inputs|token_ids|padding_mask|state"}  # A chunk of other rows than the state has.

RUN = {"verbose": "True, zero", "callbacks": "None, empty", "x": "padding_mask as bools"}
LESSON = {**RUN, "y": "of more rank", "sample_weight": "of more rank, as halves, below 0, too large, as bools"}

MODELS = {
    "FAMBackbone": Call(
        lambda w: dict(OPTIONS, backbone=w.stock, name="model", trainable=True),
        meaning={**OPTIONS_MEANING, "name": NAME},
        keywords=("name", "trainable"),
    ),
    "FAMBackbone.__call__": Call(
        lambda w: dict(inputs=w.inputs),
        lambda w: w.lm.backbone,
        also=INPUTS,
        meaning={"inputs": "padding_mask as bools"},
    ),
    "FAMBackbone.enable_lora": Call(
        lambda w: dict(rank=2, target_layer_names=["query"], memory_only=False),
        lambda w: w.lm.backbone.enable_lora,
        fresh=lambda w: w.new_lm().backbone.enable_lora,
    ),
    "FAMBackbone.from_preset": Call(
        lambda w: dict(preset=w.preset, load_weights=True, **OPTIONS, dtype="float32"),
        meaning={**OPTIONS_MEANING, **OPTIONAL},
    ),
    "FAMBackbone.get_layout_map": Call(
        lambda w: dict(
            device_mesh=keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"]),
            backbone=w.stock,
            model_parallel_dim_name="model",
            data_parallel_dim_name="batch",
        ),
        also={"backbone": "backbone|preset"},  # A str is a preset, as in `from_preset`.
    ),
    "FAMBackbone.hidden_states": Call(
        lambda w: dict(token_ids=w.ids, padding_mask=w.mask, document_start=None, layer_intercept_fn=None),
        lambda w: w.lm.backbone.hidden_states,
    ),
    "FAMBackbone.initial_state": Call(lambda w: dict(batch_size=2), lambda w: w.lm.backbone.initial_state),
    "FAMBackbone.load_lora_weights": Call(
        lambda w: dict(filepath=w.adapter), lambda w: w.lora_lm.backbone.load_lora_weights
    ),
    "FAMBackbone.load_weights": LOAD,
    "FAMBackbone.logits": Call(
        lambda w: dict(hidden=np.ones((1, 6, 16), "float32")),
        lambda w: w.lm.backbone.logits,
        meaning={"hidden": "as nan, of less rank, of more rows, without rows, without places"},
    ),
    "FAMBackbone.random_state_passing": Call(
        lambda w: dict(value=0.5),
        _set_random_state_passing,
        also={"value": "random_state_passing"},
        meaning={"value": "zero"},
    ),
    "FAMBackbone.save": SAVE,
    "FAMBackbone.save_lora_weights": Call(
        lambda w: dict(filepath="new.lora.h5"), lambda w: w.lora_lm.backbone.save_lora_weights
    ),
    "FAMBackbone.save_to_preset": Call(
        lambda w: dict(preset_dir="saved", max_shard_size=1.0),
        lambda w: w.lm.backbone.save_to_preset,
        meaning=SAVED,
    ),
    "FAMBackbone.stream": Call(lambda w: dict(inputs=w.ids, state=w.state), lambda w: w.lm.backbone.stream, also=CHUNK),
    "FAMCausalLM": Call(
        lambda w: dict(backbone=w.lm.backbone, preprocessor=w.preprocessor, compile=True, name="model", trainable=True),
        keywords=("compile", "name", "trainable"),
        meaning={"name": NAME},
    ),
    "FAMCausalLM.__call__": Call(
        lambda w: dict(inputs=w.inputs), lambda w: w.lm, also=INPUTS, meaning={"inputs": "padding_mask as bools"}
    ),
    "FAMCausalLM.calibrate_gates": Call(
        lambda w: dict(text=w.ids, share=0.01), own("calibrate_gates", "gated_lm"), meaning={"text": "of less rank"}
    ),
    "FAMCausalLM.compile": Call(
        lambda w: dict(
            optimizer="adam",
            loss="auto",
            weighted_metrics=["accuracy"],
            sampler="greedy",
            metrics=None,
            loss_weights=None,
            run_eagerly=False,
            steps_per_execution=1,
            jit_compile="auto",
            auto_scale_loss=True,
        ),
        own("compile"),
        fresh=lambda w: w.new_lm().compile,
        meaning=dict.fromkeys(("metrics", "weighted_metrics"), "None, empty, empty dict")
        | {"optimizer": "None", "loss": "None", "loss_weights": "None", "jit_compile": "True"},
    ),
    "FAMCausalLM.enable_lora": Call(
        lambda w: dict(rank=2, target_layer_names=["query"], memory_only=False),
        own("enable_lora"),
        fresh=lambda w: w.new_lm().enable_lora,
    ),
    "FAMCausalLM.evaluate": Call(
        lambda w: dict(
            x=w.inputs, y=w.ids, batch_size=1, sample_weight=w.ones, verbose=0, steps=1, callbacks=[], return_dict=True
        ),
        own("evaluate"),
        meaning={**LESSON, "steps": "None"},
    ),
    "FAMCausalLM.fit": Call(
        lambda w: dict(
            x=w.inputs,
            y=w.ids,
            batch_size=1,
            sample_weight=w.ones,
            validation_data=None,
            validation_split=0.0,
            epochs=1,
            verbose=0,
            callbacks=[],
            shuffle=True,
            class_weight=None,
            initial_epoch=0,
            steps_per_epoch=1,
            validation_steps=1,
            validation_batch_size=1,
            validation_freq=1,
        ),
        own("fit"),
        fresh=lambda w: w.new_lm().fit,
        meaning={**LESSON, "class_weight": "None", "validation_split": "zero"}
        | dict.fromkeys(("steps_per_epoch", "validation_steps", "validation_batch_size"), "None")
        | {"initial_epoch": "zero"},
    ),
    "FAMCausalLM.from_preset": Call(
        lambda w: dict(
            preset=w.preset,
            load_weights=True,
            **OPTIONS,
            dtype="float32",
            preprocessor=None,
            compile=True,
            name="model",
            trainable=True,
        ),
        meaning={**OPTIONS_MEANING, **OPTIONAL, "preprocessor": "None", "name": NAME},
        keywords=("compile", "name", "trainable"),
    ),
    "FAMCausalLM.generate": Call(
        lambda w: dict(
            inputs=w.inputs,
            max_length=8,
            stop_token_ids=None,
            strip_prompt=False,
            max_new_tokens=None,
            state=w.state,
            return_state=False,
        ),
        own("generate"),
        also=INPUTS,
        meaning={"inputs": "padding_mask as bools", "stop_token_ids": STOPS},
    ),
    "FAMCausalLM.generate_stream": Call(
        lambda w: dict(prompt=w.ids, state=w.state, max_new_tokens=2, stop_token_ids=None),
        own("generate_stream"),
        also={"prompt": "prompt|padding_mask"},
        meaning={"stop_token_ids": STOPS},
    ),
    "FAMCausalLM.initial_state": Call(lambda w: dict(batch_size=2), own("initial_state")),
    "FAMCausalLM.load_lora_weights": Call(lambda w: dict(filepath=w.adapter), own("load_lora_weights", "lora_lm")),
    "FAMCausalLM.load_weights": LOAD,
    "FAMCausalLM.perplexity": Call(
        lambda w: dict(texts=w.ids, page=4, batch_size=1, verbose=0),
        own("perplexity"),
        meaning={"texts": "of less rank, of more rows", "verbose": "zero"},
    ),
    "FAMCausalLM.predict": Call(
        lambda w: dict(x=w.inputs, batch_size=1, verbose=0, steps=1, callbacks=[]),
        own("predict"),
        meaning={**RUN, "steps": "None"},
    ),
    "FAMCausalLM.save": SAVE,
    "FAMCausalLM.save_lora_weights": Call(lambda w: dict(filepath="new.lora.h5"), own("save_lora_weights", "lora_lm")),
    "FAMCausalLM.save_to_preset": Call(
        lambda w: dict(preset_dir="saved", max_shard_size=1.0), own("save_to_preset"), meaning=SAVED
    ),
    "FAMCausalLM.score": Call(
        lambda w: dict(
            token_ids=w.ids,
            padding_mask=w.ones,
            scoring_mode="loss",
            layer_intercept_fn=lambda x, index: x,
            target_ids=w.ids,
        ),
        own("score"),
        meaning={"padding_mask": "as bools"},
    ),
    "FAMCausalLM.stream": Call(lambda w: dict(inputs=w.ids, state=w.state), own("stream"), also=CHUNK),
    # === Conversations ===
    "Chat": Call(
        lambda w: dict(lm=w.text_lm, system="the fox", format="plain", state=w.text_state), meaning={"system": "str"}
    ),
    "Chat.load": Call(
        lambda w: dict(path=w.state_file, lm=w.text_lm, system=None, format=None), meaning={"system": "str"}
    ),
    "Chat.save": Call(
        lambda w: dict(path="chat.npz"), lambda w: keras_fam.Chat(w.text_lm).save, meaning={"path": PATH}
    ),
    "Chat.say": Call(
        lambda w: dict(text="the fox", max_new_tokens=1, file=None),
        lambda w: keras_fam.Chat(w.text_lm).say,
        meaning={"text": "str"},
    ),
    "Chat.stream": Call(
        lambda w: dict(text="the fox", max_new_tokens=1),
        lambda w: keras_fam.Chat(w.text_lm).stream,
        meaning={"text": "str"},
    ),
    # === Functions ===
    "load_state": Call(lambda w: dict(path=w.state_file)),
    "plot_attention": Call(
        lambda w: dict(model=w.lm, tokens=w.ids, layer=0, head=0),
        meaning={"tokens": "of less rank", "layer": "zero", "head": "zero"},
    ),
    "plot_loss_by_position": Call(
        lambda w: dict(models=w.lm, token_ids=w.ids, bin_size=2), meaning={"token_ids": "of less rank, of more rows"}
    ),
    "save_state": Call(
        lambda w: dict(path="new.npz", state=w.state), meaning={"path": PATH, "state": "of more rows, of another dtype"}
    ),
    "summary": Call(lambda w: dict(lm=w.lm, length=8)),
    "training_memory": Call(lambda w: dict(lm=w.lm, batch_size=1, length=8)),
    "import_gguf": Call(lambda w: dict(path=w.gguf, out="imported", dtype="float32"), meaning={"out": PATH}),
}
