"""Property 5: cached generation equals full forward passes, with every sampler, for prompts of different lengths."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.models import FAMILIES, fam_backbone, forward, token_ids

import keras_fam

pytestmark = pytest.mark.shared_out

LENGTH = 22  # Five block boundaries at block_size 4.


def prompts(lengths=(3, 7, 1)):
    ids = token_ids(len(lengths), LENGTH, seed=4)
    mask = np.arange(LENGTH)[None] < np.array(lengths)[:, None]
    return {"token_ids": np.where(mask, ids, 0).astype("int32"), "padding_mask": mask}


def language_model(family="gpt2", sampler="greedy", layers=1, **options):
    lm = keras_fam.FAMCausalLM(fam_backbone(family, stock={"num_layers": layers}, **options))
    lm.compile(sampler=sampler)
    return lm


def generate(lm, given=None, stop_token_ids=None):
    given = prompts() if given is None else given
    return lm.generate(dict(given), stop_token_ids=stop_token_ids)


@pytest.mark.parametrize(
    "family, fam_length",
    [*((family, 3) for family in FAMILIES), *((family, 0) for family in ("gemma", "gemma2", "gpt2"))],
)
def test_greedy_is_the_arg_max_of_full_forward_passes(family, fam_length):
    lm = language_model(family, layers=2 if family in ("gemma3", "gpt2") else 1, fam_length=fam_length)
    given = prompts()
    generated = generate(lm)["token_ids"]
    # One full pass over the finished text gives every step's logits, since nothing looks ahead.
    logits = forward(lm, generated.astype("int32"))
    expected = np.where(given["padding_mask"][:, 1:], given["token_ids"][:, 1:], logits.argmax(-1)[:, :-1])
    np.testing.assert_array_equal(generated[:, 1:], expected)
    assert len(np.unique(generated)) > 4


@pytest.mark.parametrize("length", [3, 4, 5, 8, 9])
def test_prompts_around_block_boundaries(length):
    lm = language_model()
    generated = generate(lm, prompts((length, length)))["token_ids"]
    logits = forward(lm, generated.astype("int32"))
    np.testing.assert_array_equal(generated[:, length:], logits.argmax(-1)[:, length - 1 : -1])


def test_a_batch_generates_what_its_rows_generate_alone():
    lm = language_model("gemma")
    given = prompts()
    together = generate(lm)["token_ids"]
    for row in range(3):
        alone = generate(lm, {name: value[row : row + 1] for name, value in given.items()})["token_ids"]
        np.testing.assert_array_equal(alone[0], together[row])


SAMPLERS = {
    "greedy": lambda samplers: samplers.GreedySampler(),
    "top_k": lambda samplers: samplers.TopKSampler(k=1),
    "top_p": lambda samplers: samplers.TopPSampler(p=1e-6),
    "random": lambda samplers: samplers.RandomSampler(temperature=1e-4),
    "beam": lambda samplers: samplers.BeamSampler(num_beams=1),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_that_are_greedy_in_the_limit(sampler):
    expected = generate(language_model())["token_ids"]
    lm = language_model(sampler=SAMPLERS[sampler](keras_hub.samplers))
    np.testing.assert_array_equal(generate(lm)["token_ids"], expected)


def brute_force_beams(lm, ids, start, num_beams):
    """Beam search by full forward passes, for one row."""
    beams = [(0.0, ids)]
    for place in range(start, LENGTH):
        batch = np.stack([tokens for _, tokens in beams] + [ids] * (num_beams - len(beams))).astype("int32")
        logits = forward(lm, batch)[: len(beams), place - 1].astype("float64")
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        candidates = [
            (score + logs[row, token], row, token)
            for row, (score, _) in enumerate(beams)
            for token in range(logs.shape[1])
        ]
        beams_before, beams = beams, []
        for score, row, token in sorted(candidates, reverse=True)[:num_beams]:
            tokens = beams_before[row][1].copy()
            tokens[place] = token
            beams.append((score, tokens))
    return beams[0][1]


@pytest.mark.parametrize("family", ["gemma", "gpt2"])
def test_beam_search_reorders_the_state(family):
    lm = language_model(family, sampler=keras_hub.samplers.BeamSampler(num_beams=3))
    given = prompts((3, 3))
    generated = generate(lm, given)["token_ids"]
    for row in range(2):
        np.testing.assert_array_equal(generated[row], brute_force_beams(lm, given["token_ids"][row], 3, 3))


def test_contrastive_search():
    """Against full forward passes: at each step the candidate that is probable and unlike what was read."""
    k, alpha, start = 3, 0.6, 6
    lm = language_model("gemma", keras_hub.samplers.ContrastiveSampler(k=k, alpha=alpha), layers=2)
    generated = generate(lm, prompts((start,)))["token_ids"].astype("int32")
    places = np.arange(start, LENGTH)
    logits = forward(lm, generated)[0, places - 1].astype("float64")  # No token has a part in what comes before it.
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    candidates = np.argsort(-probabilities)[:, :k]
    texts = np.tile(generated, (len(places), k, 1))
    texts[np.arange(len(places)), :, places] = candidates
    hidden = forward(lm.backbone, texts.reshape(-1, LENGTH)).astype("float64").reshape(len(places), k, LENGTH, -1)
    for index, place in enumerate(places):
        past, new = hidden[index, :, :place], hidden[index, :, place : place + 1]
        cosine = (past * new).sum(-1) / (np.linalg.norm(past, axis=-1) * np.linalg.norm(new, axis=-1))
        score = (1 - alpha) * probabilities[index, candidates[index]] - alpha * cosine.max(axis=1)
        assert generated[0, place] == candidates[index, np.argmax(score)], place


def test_sampling_follows_its_seed():
    draws = [
        generate(language_model(sampler=keras_hub.samplers.RandomSampler(seed=seed)))["token_ids"] for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_stop_tokens_end_the_padding_mask():
    lm = language_model()
    free = generate(lm)
    stop = int(free["token_ids"][0, 9])
    stopped = generate(lm, stop_token_ids=(stop,))
    first = 3 + int(np.flatnonzero(free["token_ids"][0, 3:] == stop)[0])
    mask = np.asarray(stopped["padding_mask"][0], "bool")
    assert mask[: first + 1].all() and not mask[first + 1 :].any()
    np.testing.assert_array_equal(stopped["token_ids"][0, : first + 1], free["token_ids"][0, : first + 1])


def test_learned_positions_go_round_beyond_their_table():
    """GPT-2's table has 24 rows; generation goes on past it, as full passes do."""
    lm = language_model()
    ids = np.zeros((1, 60), "int32")
    ids[0, :5] = token_ids(1, 5)
    generated = generate(lm, {"token_ids": ids, "padding_mask": np.arange(60)[None] < 5})["token_ids"]
    logits = forward(lm, generated.astype("int32"))
    np.testing.assert_array_equal(generated[:, 5:], logits.argmax(-1)[:, 4:-1])


def test_the_cache_does_not_depend_on_the_length_generated():
    """What the sampler carries from token to token has one size for 20 tokens and for 60."""
    sizes = []

    class Recorder(keras_hub.samplers.GreedySampler):
        def __call__(self, next, prompt, cache=None, **kwargs):
            sizes.append(sum(int(np.prod(x.shape)) for x in keras.tree.flatten(cache)))
            return super().__call__(next, prompt, cache=cache, **kwargs)

    lm = language_model(sampler=Recorder())
    for length in (20, 60):
        ids = np.ones((1, length), "int32")
        generate(lm, {"token_ids": ids, "padding_mask": np.arange(length)[None] < 5})
    assert len(sizes) == 2 and sizes[0] == sizes[1] > 0


def test_score_agrees_with_the_model():
    lm = language_model("gemma2", layers=2)
    ids = token_ids(2, 13)
    logits = forward(lm, ids)
    seen = []

    def intercept(x, index):
        seen.append(index)
        return x

    scored = keras.ops.convert_to_numpy(lm.score(ids, layer_intercept_fn=intercept))
    np.testing.assert_allclose(scored, logits, rtol=1e-5, atol=1e-5)
    assert seen == [-1, 0, 1]
    targets = np.roll(ids, -1, axis=1)
    losses = keras.ops.convert_to_numpy(lm.score(ids, scoring_mode="loss", target_ids=targets))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(losses, -np.take_along_axis(logs, targets[..., None], -1)[..., 0], rtol=1e-4, atol=1e-4)
