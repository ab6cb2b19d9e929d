"""Training on own samples: what is drawn, what the loss is, where it ends, and that it goes on where it stopped."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from byte_tokenizer import PieceTokenizer
from tiny_torch import module_of
from transformers import LlamaConfig

from likely.alignment.labellers import PreferencePair
from likely.alignment.links import Square, pair_loss
from likely.alignment.online.policy_gradient import nash_md_loss
from likely.alignment.online.tabular import kl, mirror_descent_fixed_point
from likely.alignment.online.training import OnlinePreferences, OnlineSettings, train_online
from likely.alignment.scores import Completion, completion_scores
from likely.alignment.sources import Prompt
from likely.runtimes.torch.runtime import TorchRuntime
from likely.training.fit import TrainingSettings
from likely.training.policy import LoraSettings, Policy

PIECES = [b"a", b"b", b"c", b"d"]
END = 4
V = 5
PROMPT = Prompt((0, 1), "ab")


@dataclass
class Loaded:
    runtime: TorchRuntime
    tokenizer: PieceTokenizer


def policy_of(seed=0, lora=None, std=0.3):
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    runtime = TorchRuntime(module_of(config, seed=seed, std=std), tokens_held=4096, sequences=256, tokens_per_call=512)
    return Policy(Loaded(runtime, PieceTokenizer(PIECES, control=("<end>",))), lora)


LORA = LoraSettings(rank=4, alpha=8)


def moved(policy, scale=0.3):
    """The same policy, away from its reference."""
    with policy.reference():
        pass
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in policy.parameters():
            parameter += scale * torch.randn_like(parameter)
    policy.refresh()
    return policy


def later(firsts, seconds):
    """The first is preferred where its first token is the later letter."""
    return np.array([1 / (1 + np.exp(b.tokens[0] - a.tokens[0])) for a, b in zip(firsts, seconds, strict=True)])


def next_logprobs(module, text):
    with torch.no_grad():
        return module(torch.tensor([text])).logits[0, -1].log_softmax(-1)


# --- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "LoRA"])
def test_samples_have_the_probability_of_the_policy_and_of_the_mixture(lora):
    with moved(policy_of(lora=lora)) as policy:
        for method, beta in (("online_ipo", None), ("ipo_md", 0.3)):
            loss = OnlinePreferences(policy, later, OnlineSettings(method, beta=beta, samples=4, max_tokens=4))
            firsts, seconds = loss.draw(0, (PROMPT, Prompt((2,))))
            assert [c.prompt for c in firsts] == [c.prompt for c in seconds] == [(0, 1)] * 2 + [(2,)] * 2
            for drawn in (*firsts, *seconds):
                own = mixed = 0.0
                for i, token in enumerate(drawn.tokens):
                    text = [*drawn.prompt, *drawn.tokens[:i]]
                    ours = next_logprobs(policy.module, text)
                    with policy.reference() as module:
                        theirs = next_logprobs(module, text)
                    assert (ours - theirs).abs().max() > 1e-3
                    own += ours[token].item()
                    mixed += (
                        ((1 - loss.settings.mixture_weight) * ours + loss.settings.mixture_weight * theirs)
                        .log_softmax(-1)[token]
                        .item()
                    )
                assert drawn.logprob == pytest.approx(own, abs=1e-4)
                assert drawn.sampling_logprob == pytest.approx(mixed, abs=1e-4)
                assert drawn.finished == (drawn.tokens[-1] == END)


def test_steps_and_players_draw_anew_and_seeds_repeat():
    with policy_of() as policy:
        nash = OnlinePreferences(policy, later, OnlineSettings("nash_md", samples=16, max_tokens=6), seed=3)
        firsts, seconds = nash.draw(0, (PROMPT,))
        assert [c.tokens for c in firsts] != [c.tokens for c in seconds]
        again, other = nash.draw(0, (PROMPT,))[0], nash.draw(1, (PROMPT,))[0]
        assert [c.tokens for c in again] == [c.tokens for c in firsts] != [c.tokens for c in other]


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["online_ipo", "ipo_md", "online_dpo", "nash_md"])
def test_pieces_add_up_to_the_loss_of_whole_forwards(method):
    with moved(policy_of()) as policy:
        online = OnlinePreferences(policy, later, OnlineSettings(method, tau=0.4, samples=6, max_tokens=5))
        prompts = (PROMPT, Prompt((3, 2, 1)))
        pairs = online.pairs(2, prompts)
        parts = [online.loss(pairs[:4]).loss, online.loss(pairs[4:]).loss]
        found = torch.autograd.grad(sum(parts), policy.parameters())
        firsts, seconds = online.draw(2, prompts)
        same = [a.tokens == b.tokens for a, b in zip(firsts, seconds, strict=True)]
        p = torch.tensor(np.where(same, 0.5, later(firsts, seconds)), dtype=torch.float32)
        ours = [completion_scores(policy.module, side) for side in (firsts, seconds)]
        with policy.reference() as module:
            theirs = [completion_scores(module, side) for side in (firsts, seconds)]
        if method == "nash_md":
            wanted = nash_md_loss(ours[0].token_logprobs, theirs[0].token_logprobs, ours[0].mask, p, tau=0.4).sum()
        else:
            margin = (ours[0].sum - theirs[0].sum) - (ours[1].sum - theirs[1].sum)
            link = online.settings.pair_method.link
            wanted = pair_loss(link, margin, p).sum()
            torch.testing.assert_close(pair_loss(link, -margin, 1 - p).sum(), wanted)  # the other way round
        assert sum(parts).item() == pytest.approx(wanted.item(), rel=1e-5)
        for one, other in zip(found, torch.autograd.grad(wanted, policy.parameters()), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["online_ipo", "nash_md"])
def test_meeting_all_is_the_mean_over_all_ways_of_meeting_one(method):
    """Of 4 samples: 6 pairs are three ways to pair them; of 2 against 2 of the mixture: two ways."""
    with moved(policy_of()) as policy:
        online = OnlinePreferences(policy, later, OnlineSettings(method, tau=0.4, samples=4, max_tokens=5))
        firsts, seconds = online.draw(0, (PROMPT,))
        a, b, c, d = firsts[0], firsts[1], seconds[0], seconds[1]
        ways = [((a, c), (b, d)), ((a, d), (b, c))]
        if method == "online_ipo":
            ways.append(((a, b), (c, d)))
        losses = [float(online.loss(paired(way)).loss.detach()) / len(way) for way in ways]
        every = OnlinePreferences(policy, later, OnlineSettings(method, tau=0.4, samples=4, max_tokens=5,
                                                                opponents="all"))  # fmt: skip
        pairs = every.pairs(0, (PROMPT,))
        assert len(pairs) == {"online_ipo": 6, "nash_md": 4}[method]
        assert float(every.loss(pairs).loss.detach()) / len(pairs) == pytest.approx(np.mean(losses), rel=1e-5)


def paired(meetings):
    firsts, seconds = zip(*meetings, strict=True)
    p = later(firsts, seconds)
    same = [a.tokens == b.tokens for a, b in meetings]
    return [PreferencePair(a, b, 0.5 if s else x) for (a, b), x, s in zip(meetings, p.tolist(), same, strict=True)]


@pytest.mark.slow
def test_online_ipo_is_trls_online_dpo_trainer_with_loss_ipo():
    """One training step of trl itself, on given completions and rewards: value and gradients."""
    online_dpo = pytest.importorskip("trl.experimental.online_dpo.online_dpo_trainer")
    module, reference = (module_of_size(seed) for seed in (0, 1))
    generator = torch.Generator().manual_seed(0)
    prompts, completions = (torch.randint(0, 60, (n, t), generator=generator) for n, t in ((3, 4), (6, 7)))
    lengths = torch.tensor([7, 3, 5, 2, 7, 6])
    mask = (torch.arange(7) < lengths[:, None]).long()
    rewards = torch.tensor([1.0, 0.2, 3.0, 0.5, 2.0, 2.5])  # of first halves and second halves
    tau = 0.3
    caught = []
    whole = SimpleNamespace(
        args=SimpleNamespace(use_vllm=False, missing_eos_penalty=None, loss_type="ipo", torch_empty_cache_steps=None,
                             n_gpu=1, optim="adamw_torch", gradient_accumulation_steps=1),
        eos_token_ids=[63], ref_model=reference,
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: [""] * 6),
        _generate=lambda *_: (prompts.repeat(2, 1), torch.ones(6, 4).long(), completions, mask, None),
        _calculate_rewards_from_functions=lambda **_: rewards.clone(), beta=tau, stats=defaultdict(list),
        max_length=64, reward_funcs=[None], state=SimpleNamespace(global_step=1), is_fsdp_enabled=False, use_apex=False,
        accelerator=SimpleNamespace(
            gather_for_metrics=lambda x: x, backward=lambda loss, **_: caught.append(loss), num_processes=1,
        ),
    )  # fmt: skip
    whole._forward = lambda *given: online_dpo.OnlineDPOTrainer._forward(whole, *given)
    online_dpo.OnlineDPOTrainer.training_step(whole, module, {"prompt": ["p"] * 3})
    module.eval()
    texts = [
        Completion(tuple(prompts[i % 3].tolist()), tuple(completions[i, : lengths[i]].tolist()), finished=False)
        for i in range(6)
    ]
    ratios = completion_scores(module, texts).sum - completion_scores(reference, texts).sum.detach()
    hard = (rewards[:3] >= rewards[3:]).float()
    ours = pair_loss(Square(tau), ratios[:3] - ratios[3:], hard).mean()
    torch.testing.assert_close(ours, caught[0], atol=1e-5, rtol=1e-5)
    ends = [torch.autograd.grad(loss, list(module.parameters()), retain_graph=True) for loss in (ours, caught[0])]
    scale = max(g.abs().max().item() for g in ends[0])
    assert all((a - b).abs().max() <= 1e-5 * scale for a, b in zip(*ends, strict=True))


def module_of_size(seed):
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    return module_of(config, seed=seed, std=0.1)


# --- where it ends ----------------------------------------------------------------------------------------------------

STRENGTH = np.array([[0, 3, -3, 2, 2], [-3, 0, 3, 2, 2], [3, -3, 0, 2, 2], [-2, -2, -2, 0, 0], [-2, -2, -2, 0, 0]])
GAME = 1 / (1 + np.exp(-STRENGTH))


def cyclic(firsts, seconds):
    """Answers are first tokens; a beats b, b beats c, c beats a, and all of them d and the end."""
    return np.array([GAME[a.tokens[0], b.tokens[0]] for a, b in zip(firsts, seconds, strict=True)])


@pytest.mark.parametrize(
    ("method", "lora"),
    [
        ("online_ipo", None),
        pytest.param("ipo_md", LORA, marks=pytest.mark.slow),
        pytest.param("nash_md", None, marks=pytest.mark.slow),
    ],
)
def test_training_ends_at_the_fixed_point_of_a_cyclic_game(method, lora):
    tau, beta = 0.2, 0.0 if method == "online_ipo" else 0.5
    settings = OnlineSettings(method, tau=tau, beta=beta or None, samples=48, max_tokens=1)
    with policy_of(seed=4, lora=lora) as policy:
        reference = next_logprobs(policy.module, [0, 1]).double().numpy()
        wanted = mirror_descent_fixed_point(GAME, reference, tau, beta=beta)
        training = TrainingSettings(steps=40, batch=1, piece=48, lr=0.03, warmup=0, decay="cosine")
        train_online(policy, [PROMPT], cyclic, training, settings)
        found = next_logprobs(policy.module, [0, 1]).double().numpy()
    assert kl(wanted, reference) > 0.1
    assert kl(found, wanted) < 0.2 * kl(reference, wanted)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    settings = OnlineSettings("ipo_md", samples=4, max_tokens=3)
    training = TrainingSettings(steps=4, batch=2, lr=1e-2, checkpoint_every=1)
    prompts = [PROMPT, Prompt((2,)), Prompt((3, 3))]

    def run(folder=None, stop_in=None):
        with policy_of() as policy:
            judged = []

            def preference(firsts, seconds):
                judged.append(len(firsts))
                if len(judged) == stop_in:
                    raise KeyboardInterrupt
                return later(firsts, seconds)

            return train_online(policy, prompts, preference, training, settings, folder=folder)

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_in=5)
    assert run(tmp_path) == whole


def test_one_sided_judges_are_symmetrised_and_ties_left_out():
    with policy_of() as policy:
        settings = OnlineSettings(samples=8, max_tokens=2)
        with pytest.warns(UserWarning, match="both orders are averaged"):
            pairs = OnlinePreferences(policy, lambda a, b: np.full(len(a), 0.7), settings).pairs(0, (PROMPT,))
        assert [pair.preference for pair in pairs] == [0.5] * 4
        even = OnlinePreferences(policy, lambda a, b: np.full(len(a), 0.5), OnlineSettings(samples=8, hard=True))
        assert even.pairs(0, (PROMPT,)) == [] and even.ties == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "ppo"}, "unknown method"),
        ({"method": "ipo_md", "beta": 2.0}, r"beta must lie in \[0, 1\]"),
        ({"method": "online_ipo", "beta": 0.5}, "drop beta=0.5, or take ipo_md"),
        ({"tau": 0.0}, "tau must be > 0, got 0"),
        ({"samples": 3}, "even number >= 2, got 3"),
        ({"opponents": "two"}, "unknown opponents"),
    ],
)
def test_settings_that_make_no_sense(settings, said):
    with pytest.raises(ValueError, match=said):
        OnlineSettings(**settings)
