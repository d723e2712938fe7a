"""A small language model with a real tokenizer that answers without chance."""

import keras_hub

import keras_fam
from helpers.models import fam_backbone
from helpers.presets import gemma_tokenizer


def evaluated_lm(fam_length=3, **options):
    tokenizer = gemma_tokenizer()
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=16)
    stock = {"num_layers": 1, "vocabulary_size": tokenizer.vocabulary_size()}
    lm = keras_fam.FAMCausalLM(fam_backbone("gemma", fam_length=fam_length, stock=stock, **options), preprocessor)
    lm.compile(sampler="greedy")
    return lm
