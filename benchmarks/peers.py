"""A training step of this package and of the public implementations of other recurrent memories, at equal size.

All read the same number of tokens in segments of `size.block_size`, with `size.fam_length` memory vectors where the
method has vectors, and train every weight by plain gradient descent.

`lora` is a step of the same pretrained weights by `transformers` and `peft`.
"""

import pathlib

import keras
import models
import numpy as np


def fam(size, tokens):
    lm = models.language_model(models.fam(size))
    inputs, targets = models.batch(size.vocabulary_size, tokens)
    return lambda: lm.train_on_batch(inputs, targets), lm.count_params()


def _shape(size):
    """What all peers' constructors call alike."""
    return dict(
        num_tokens=size.vocabulary_size,
        dim=size.hidden_dim,
        depth=size.num_layers,
        dim_head=size.hidden_dim // size.num_heads,
        heads=size.num_heads,
    )


def _peer(wrapper, loss_of, tokens, vocabulary_size):
    """`loss_of(wrapper, ids)` is differentiated here, or returns None if it has been already."""
    import torch

    ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary_size, (1, tokens + 1)))
    optimizer = torch.optim.SGD(wrapper.parameters(), 1e-3)

    def step():
        optimizer.zero_grad()
        loss = loss_of(wrapper, ids)
        if loss is not None:
            loss.backward()
        optimizer.step()

    return step, sum(p.numel() for p in wrapper.parameters())


def infini(size, tokens):
    from infini_transformer_pytorch import InfiniTransformer, InfiniTransformerWrapper

    model = InfiniTransformer(
        **_shape(size),
    )
    wrapper = InfiniTransformerWrapper(model, segment_length=size.block_size)
    return _peer(wrapper, lambda w, ids: w(ids, backward=True) and None, tokens, size.vocabulary_size)


def recurrent_memory(size, tokens):
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper

    model = RecurrentMemoryTransformer(
        **_shape(size),
        num_memory_tokens=size.fam_length,
        seq_len=size.block_size,
    )
    wrapper = RecurrentMemoryTransformerWrapper(model)
    return _peer(wrapper, lambda w, ids: w(ids, return_loss=True)[0], tokens, size.vocabulary_size)


def block_recurrent(size, tokens):
    from block_recurrent_transformer_pytorch import BlockRecurrentTransformer, RecurrentTrainerWrapper

    model = BlockRecurrentTransformer(
        **_shape(size),
        max_seq_len=size.block_size,
        block_width=size.block_size,
        num_state_vectors=size.fam_length,
    )
    return _peer(RecurrentTrainerWrapper(model), lambda w, ids: w(ids), tokens, size.vocabulary_size)


def lora(gguf, length, dtype="float32", remat=False):
    """A LoRA step of the GGUF file's model with full attention; the step returns the loss."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    path = pathlib.Path(gguf)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=getattr(torch, dtype))
    rank = models.LORA_RANK
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj"]))
    if remat:
        model.gradient_checkpointing_enable()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    inputs, targets = models.batch(model.config.vocab_size, length)
    ids, targets = (torch.from_numpy(x).long().to(device) for x in (inputs["token_ids"], targets))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4)

    def step():
        optimizer.zero_grad()
        loss = model(ids, shift_labels=targets, labels=targets, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


STEPS = {"keras_fam": fam}
if keras.config.backend() == "torch":
    STEPS.update(infini=infini, recurrent_memory=recurrent_memory, block_recurrent=block_recurrent)
