from __future__ import annotations

import numpy as np
from scipy.stats import kstest
from statistics_of_draws import chi_square_p

from likely.decoding.sampling import gumbel, noise_of, stream_key, uniform_bits

FROZEN = [2999768614, 3234306293, 911728517, 1072260869]


def test_same_numbers_on_every_machine():
    """Frozen values: a change here changes the text of every seeded request."""
    bits = uniform_bits(stream_key(7, 1, 42), np.array([0, 1, 2, 262143]))
    assert bits.tolist() == FROZEN


def test_ids_are_independent_of_which_others_are_asked():
    everything = gumbel(3, 0, 9, np.arange(1000))
    some = np.array([999, 0, 512, 7])
    np.testing.assert_array_equal(gumbel(3, 0, 9, some), everything[some])


def test_a_number_of_ids_stands_for_all_of_them():
    np.testing.assert_array_equal(gumbel(3, 0, 9, 1000), gumbel(3, 0, 9, np.arange(1000)))


def test_prompts_have_independent_noise():
    """The first picks of many prompts at one seed, in pairs of neighbours, are independent draws from p."""
    p = np.array([0.6, 0.3, 0.1])
    logp, ids = np.log(p).astype(np.float32), np.arange(3)
    prompts = [(n % 7, n, *range(n % 3)) for n in range(30_000)]
    picks = [int((logp + gumbel(noise_of(0, prompt), 0, 5, ids)).argmax()) for prompt in prompts]
    law = {(a, b): p[a] * p[b] for a in range(3) for b in range(3)}
    assert chi_square_p(zip(picks[::2], picks[1::2], strict=True), law) > 1e-6
    assert chi_square_p(picks, dict(enumerate(p))) > 1e-6


def test_equal_requests_have_equal_noise():
    assert noise_of(3, (1, 2)) == noise_of(3, [1, 2]) == noise_of(3, np.array([1, 2]))
    keys = [noise_of(*key) for key in ((3, (1, 2)), (4, (1, 2)), (3, (2, 1)), (3, (1,)), (3, (1, 2, 0)), (-3, (1, 2)))]
    assert len(set(keys)) == len(keys) and all(0 <= key < 2**64 for key in keys)


def test_noise_is_standard_gumbel():
    draws = np.concatenate([gumbel(1, 0, t, np.arange(5000)) for t in range(40)])
    assert kstest(draws.astype(np.float64), "gumbel_r").pvalue > 1e-6
    assert np.isfinite(draws).all()


def test_streams_differ_in_every_argument_and_are_uncorrelated():
    ids = np.arange(20000)
    base = gumbel(1, 2, 3, ids)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (3, 2, 1), (-1, 2, 3)):
        r = np.corrcoef(base, gumbel(*other, ids))[0, 1]
        assert abs(r) < 6 / np.sqrt(len(ids))
    lag = np.corrcoef(base[:-1], base[1:])[0, 1]
    assert abs(lag) < 6 / np.sqrt(len(ids))


def test_argmax_draws_from_p_over_positions_seeds_and_samples():
    p = np.array([0.5, 0.2, 0.15, 0.1, 0.04, 0.01])
    law = dict(enumerate(p))
    logp, ids = np.log(p).astype(np.float32), np.arange(6)
    for stream in (lambda i: (5, 0, i), lambda i: (i, 0, 5), lambda i: (5, i, 0)):
        draws = [int((logp + gumbel(*stream(i), ids)).argmax()) for i in range(20000)]
        assert chi_square_p(draws, law) > 1e-6


def test_pairs_of_positions_are_independent():
    p = np.array([0.6, 0.3, 0.1])
    logp, ids = np.log(p).astype(np.float32), np.arange(3)
    picks = [int((logp + gumbel(11, 0, t, ids)).argmax()) for t in range(40001)]
    law = {(a, b): p[a] * p[b] for a in range(3) for b in range(3)}
    assert chi_square_p(zip(picks[::2], picks[1::2], strict=False), law) > 1e-6
