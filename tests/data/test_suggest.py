"""Suggested numbers of steps, on series whose answer is known because they are made here."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbptt_jax.data.suggest import Candidate, candidate_steps, sentence_steps, suggest_steps


def autoregression(coefficients, length=4_000, seed=0):
    """x[t] = sum of coefficients[i] * x[t - 1 - i] plus white noise, after a start-up."""
    noise = np.random.default_rng(seed).normal(size=length + 200)
    x = np.zeros(len(noise))
    for t in range(len(coefficients), len(x)):
        past = x[t - len(coefficients) : t][::-1]
        x[t] = np.dot(coefficients, past) + noise[t]
    return x[200:]


def seasonal(period, length=1_200, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return np.sin(2 * np.pi * np.arange(length) / period) + noise * rng.normal(size=length)


@pytest.mark.parametrize(
    "coefficients",
    [
        [0.7],
        [0.4, 0.4],
        [1.2, -0.6],  # a damped oscillation: the ACF has peaks, the order is 2 all the same
        [0.3, 0.2, 0.3],
        [0.6, -0.18, 0.3],  # the PACF is 0.6, 0, 0.3: one insignificant lag in between
        [0.2, 0.2, 0.2, -0.2, 0.3],
    ],
)
def test_the_order_of_an_autoregression(coefficients):
    found = suggest_steps(autoregression(coefficients), max_lag=40)
    assert found.steps == len(coefficients)
    assert f"significant at lag {len(coefficients)} and not just after it" in found.why


@pytest.mark.parametrize("period", [7, 12, 48, 132])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_period_of_a_season(period, seed):
    found = suggest_steps(seasonal(period, seed=seed), rule="period")
    # Noise moves the top of a flat peak by a few steps.
    assert abs(found.steps - period) <= 0.03 * period
    assert f"{found.steps} steps: the dominant peak" in found.why


def test_of_two_seasons_the_stronger_one_is_found():
    day, week = seasonal(24, noise=0), seasonal(24 * 7, noise=0)
    assert suggest_steps(day + 0.2 * week, rule="period").steps == 24
    assert suggest_steps(0.3 * day + week, rule="period").steps == 24 * 7


@pytest.mark.parametrize(("first", "second", "both"), [(8, 28, 56), (6, 21, 42)])
def test_two_seasons_of_one_strength_repeat_at_their_common_multiple(first, second, both):
    """The ACF has significant peaks before, which are lower."""
    series = seasonal(first, noise=0.1) + seasonal(second, noise=0)
    found = suggest_steps(series, rule="period")
    assert found.steps == both
    assert found.acf[first] > 3 * found.acf_band[first]


def test_a_series_that_repeats_exactly():
    pulses = np.tile([5.0, 0, 1, 0, 0, 2, 0], 60)
    assert suggest_steps(pulses, rule="period").steps == 7
    assert np.isfinite(suggest_steps(pulses).pacf).all()


def test_acf_pacf_and_their_bands():
    series = autoregression([0.6], length=500)
    found = suggest_steps(series, max_lag=20, alpha=0.05)
    for field in found[1:5]:
        assert field.shape == (21,)
    centred = series - series.mean()
    acf = [centred[: 500 - k] @ centred[k:] / (centred @ centred) for k in range(21)]
    np.testing.assert_allclose(found.acf, acf, atol=1e-12)
    # By definition: the last coefficient of the best linear prediction from k steps.
    for k in (1, 2, 7):
        toeplitz = np.array([[acf[abs(i - j)] for j in range(k)] for i in range(k)])
        assert found.pacf[k] == pytest.approx(np.linalg.solve(toeplitz, acf[1 : k + 1])[-1])
    z = 1.959964
    np.testing.assert_allclose(found.pacf_band, [0] + 20 * [z / math.sqrt(500)], rtol=1e-6)
    bartlett = [math.sqrt((1 + 2 * sum(r * r for r in acf[1:k])) / 500) for k in range(1, 21)]
    np.testing.assert_allclose(found.acf_band[1:], z * np.array(bartlett), rtol=1e-6)
    assert suggest_steps(series, max_lag=20, alpha=0.5).pacf_band[1] < found.pacf_band[1]


def test_white_noise_gives_one_step_and_no_period():
    noise = np.random.default_rng(3).normal(size=2_000)
    found = suggest_steps(noise)
    assert found.steps == 1
    assert found.why.startswith("1 step: the PACF is not significant at the first lags")
    with pytest.raises(ValueError, match="no peak .* lag 400"):
        suggest_steps(noise, rule="period")


def test_dependence_that_reaches_the_last_lag_says_so():
    found = suggest_steps(autoregression([0.3, 0.3, 0.3]), max_lag=2)
    assert found.steps == 2
    assert "up to the last lag, 2" in found.why
    for max_lag in (5, 50):
        with pytest.raises(ValueError, match="subtract a trend"):
            suggest_steps(np.arange(300.0), rule="period", max_lag=max_lag)


def test_a_period_beyond_the_last_lag_is_not_made_up():
    with pytest.raises(ValueError, match="use a larger max_lag"):
        suggest_steps(seasonal(100), rule="period", max_lag=95)


def test_statsmodels_missing_is_answered_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.tsa", None)
    with pytest.raises(ModuleNotFoundError, match="pip install statsmodels"):
        suggest_steps(np.arange(50.0))


@given(
    length=st.integers(1, 120),
    minimum=st.integers(1, 120),
    maximum=st.none() | st.integers(1, 120),
    count=st.none() | st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_candidates_are_factors_first(length, minimum, maximum, count):
    minimum = min(minimum, length)
    maximum = None if maximum is None else min(max(minimum, maximum), length)
    every = candidate_steps(length, minimum=minimum, maximum=maximum)
    allowed = range(minimum, (maximum or length) + 1)
    assert sorted(c.steps for c in every) == list(allowed)
    factors = [n for n in allowed if length % n == 0]
    assert [c.steps for c in every[: len(factors)]] == factors
    for c in every:
        assert c.steps * c.pieces - c.padded == length
        assert 0 <= c.padded < c.steps
        assert (c.padded == 0) == (c.steps in factors)
    others = every[len(factors) :]
    assert others == sorted(others, key=lambda c: (c.padded, c.steps))
    limited = candidate_steps(length, minimum=minimum, maximum=maximum, count=count)
    assert limited == every[:count]


def test_candidates_of_a_long_sequence():
    found = candidate_steps(50_000, minimum=100, maximum=1_000, count=12)
    assert found[0] == Candidate(steps=100, pieces=500, padded=0)
    assert [c.steps for c in found[:8]] == [100, 125, 200, 250, 400, 500, 625, 1000]
    assert found[8:10] == [Candidate(108, 463, 4), Candidate(463, 108, 4)]
    assert len(found) == 12


def test_the_average_sentence():
    stop = 9
    texts = [np.array([1, 2, stop, 3, stop]), np.array([4, stop, 5, 6, 7])]
    # Three sentences and a rest, of 3, 2, 2 and 3 steps.
    assert sentence_steps([text == stop for text in texts]) == 3
    assert sentence_steps([np.zeros(8, bool)]) == 8
    assert sentence_steps([np.ones(8, bool)]) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: suggest_steps(np.zeros((4, 9))), r"series must .* got shape \[4, 9\]"),
        (lambda: suggest_steps(np.ones(50)), r"series must .* got shape \[50\]"),
        (lambda: suggest_steps([*range(50), np.nan]), r"series must .* got shape \[51\]"),
        (lambda: suggest_steps(np.arange(3)), "max_lag must .* 1, got 0"),
        (lambda: suggest_steps(np.arange(50), max_lag=26), "max_lag must .* 25, got 26"),
        (lambda: suggest_steps(np.arange(50), alpha=5), "alpha must .* got 5"),
        (
            lambda: suggest_steps(np.arange(50), rule="acf"),  # pyright: ignore
            'rule must .*"order".*"period".* got',
        ),
        (lambda: sentence_steps([]), r"ends must .* got shapes \[\]"),
        (lambda: sentence_steps([np.zeros(0, bool)]), r"ends must .* got shapes \[\[0\]\]"),
        (lambda: sentence_steps(np.zeros(4, bool)), "ends must .* got shapes"),
        (lambda: candidate_steps(0), "length must .* got 0"),
        (lambda: candidate_steps(9, minimum=0), "minimum must .* got 0"),
        (lambda: candidate_steps(9, count=0), "count must .* got 0"),
        (lambda: candidate_steps(9, maximum=10), "maximum must .*minimum=1 .*length=9, got 10"),
        (
            lambda: candidate_steps(9, minimum=5, maximum=4),
            "maximum must .*minimum=5 .*length=9, got 4",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
