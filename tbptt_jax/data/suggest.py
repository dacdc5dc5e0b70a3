"""How many steps a piece or a gradient shall have: what the data suggest, and what divides.

Suggestions to start from, not answers: what a network needs to look back is known after training
it (`gradient_bias`, `credit_by_lag`).
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np

from tbptt_jax.arguments import check_choice, check_count
from tbptt_jax.data.given import marks_of

# A chance hit at one lag after the true order is common, at two in a row it is not; and a zero
# coefficient in between should not end the search.
GAP = 2
# A later peak has to be that much higher than an earlier one not to count as its repetition.
REPETITION = 0.9
MAX_LAG = 400


class Suggestion(NamedTuple):
    """A number of steps and what it was read from; lags 0..L stand at indices 0..L.

    Attributes:
      steps: the suggested number of steps, for k1, k2 or the length of pieces.
      acf: float [L + 1], autocorrelation.
      pacf: float [L + 1], partial autocorrelation.
      acf_band, pacf_band: float [L + 1], half-widths of the confidence band around zero:
        `abs(acf) > acf_band` tells the significant lags. Bartlett's formula for the ACF, one over
        the root of the number of steps for the PACF; 0 at lag 0.
      why: one sentence that says how the steps follow.
    """

    steps: int
    acf: np.ndarray
    pacf: np.ndarray
    acf_band: np.ndarray
    pacf_band: np.ndarray
    why: str


class Candidate(NamedTuple):
    """A length of pieces: its steps, the pieces of a sequence, and padded steps of the last one."""

    steps: int
    pieces: int
    padded: int


def suggest_steps(
    series: Any,
    *,
    rule: Literal["order", "period"] = "order",
    max_lag: int | None = None,
    alpha: float = 0.05,
) -> Suggestion:
    """Read a number of steps off the ACF and PACF of a series; needs statsmodels.

    The rules:

    - "order": the lag of the PACF before the first two insignificant ones in a row, as many as an
      autoregression needs; 1 if there is none.
    - "period": the lag of the dominant peak of the ACF. Looked at are the lags from the first at
      which the ACF is not significantly positive, with the band that it has there. Each stretch
      above the band has a peak, its maximum; the dominant one is the first that is at least 0.9
      times as high as the highest. As the highest of many it has to be significant at
      alpha / max_lag.

    A trend makes every lag significant: subtract it, or take differences, beforehand.

    Args:
      series: numbers [T]. Several channels or sequences: ask for each.
      rule: which of the two.
      max_lag: the largest lag L looked at, at most T // 2. None: a quarter of T, at most 400.
      alpha: share of the lags of white noise that are called significant.

    Returns:
      The suggestion. The time it takes grows with T squared: of a very long series give a part.

    Raises:
      ModuleNotFoundError: statsmodels is not installed.
      TypeError: series are no real numbers, or max_lag is not an integer.
      ValueError: series is not [T] finite numbers that vary, an argument is out of range, or rule
        is "period" and there is no such peak.

    Example:
      >>> noise = np.random.default_rng(0).normal(size=600)
      >>> series = np.sin(2 * np.pi * np.arange(600) / 24) + 0.5 * noise
      >>> suggest_steps(series, rule="period").steps
      24
    """
    try:
        from statsmodels.tsa import stattools
    except ImportError as error:
        raise ModuleNotFoundError(
            "suggest_steps: statsmodels is needed for the ACF and PACF and is not installed; run "
            "pip install statsmodels"
        ) from error
    series = np.asarray(series)
    if series.dtype.kind not in "biuf":
        raise TypeError(f"suggest_steps: series must be real numbers [T], got {series.dtype}")
    series = series.astype(float)
    if series.ndim != 1 or not np.isfinite(series).all() or len(np.unique(series)) < 2:
        raise ValueError(
            "suggest_steps: series must be [T], finite numbers that are not all equal, got shape "
            f"{list(series.shape)}; fill gaps, and give one channel of one sequence at a time"
        )
    check_choice("suggest_steps", "rule", rule, "order", "period")
    if max_lag is not None:
        check_count("suggest_steps", "max_lag", max_lag)
    if not (isinstance(alpha, float) and 0 < alpha < 1):
        raise ValueError(f"suggest_steps: alpha must be between 0 and 1, got {alpha!r}")
    last = min(len(series) // 4, MAX_LAG) if max_lag is None else max_lag
    if not 1 <= last <= len(series) // 2:
        raise ValueError(
            f"suggest_steps: max_lag must be 1 to T // 2 = {len(series) // 2}, got {last}; give it "
            "or a longer series"
        )
    # With qstat, which is not used, the ACF comes in one form in all releases.
    acf, around, *_ = stattools.acf(series, nlags=last, alpha=alpha, qstat=True)
    acf_band = np.asarray(around)[:, 1] - acf
    # Biased Levinson-Durbin is bounded by 1 for every series, also one that repeats exactly.
    pacf, around = stattools.pacf(series, nlags=last, alpha=alpha, method="ldb")
    pacf_band = np.asarray(around)[:, 1] - pacf
    if rule == "order":
        steps, why = _order(np.abs(pacf) > pacf_band)
    else:
        z = NormalDist().inv_cdf
        widen = z(1 - alpha / last / 2) / z(1 - alpha / 2)
        steps, why = _period(acf, acf_band, widen)
    return Suggestion(steps, acf, pacf, acf_band, pacf_band, why)


def _order(significant: np.ndarray) -> tuple[int, str]:
    """The lag before the first gap of the PACF; `significant` is bool [L + 1]."""
    last = len(significant) - 1
    gaps = [k for k in range(1, last + 1) if not significant[k : k + GAP].any()]
    steps = gaps[0] - 1 if gaps else last
    if not gaps:
        why = f"significant up to the last lag looked at, {last}; look at more or subtract a trend"
    elif steps:
        why = f"significant at lag {steps} and not just after it"
    else:
        later = int(significant[1:].sum())
        why = f"not significant at the first lags, at {later} later ones up to {last} it is"
        steps = 1
    return steps, f"{steps} step{'s' if steps > 1 else ''}: the PACF is {why}"


def _period(acf: np.ndarray, band: np.ndarray, widen: float) -> tuple[int, str]:
    """The dominant peak of the ACF, if it is `widen` times as high as the band."""
    last = len(acf) - 1
    down = int(np.argmin(acf > band))
    # Beyond, the band would grow by the very period that is looked for.
    level = float(band[down])
    above = acf > level
    above[:down] = False
    edges = np.flatnonzero(np.diff(above.astype(int), prepend=0, append=0))
    peaks = [int(start + acf[start:end].argmax()) for start, end in edges.reshape(-1, 2)]
    # At the last lag the ACF may still rise; and it has not come down at all if `down` is 0.
    peaks = [k for k in peaks if acf[k] > widen * level and k < last and down]
    if not peaks:
        raise ValueError(
            'suggest_steps: series must have a period for rule="period", found no peak of the ACF '
            f'up to lag {last}; give a larger max_lag, subtract a trend, or take rule="order"'
        )
    highest = max(acf[k] for k in peaks)
    steps = next(k for k in peaks if acf[k] >= REPETITION * highest)
    return steps, (
        f"{steps} steps: the dominant peak of the ACF is at lag {steps}, where it is "
        f"{acf[steps]:.2f}; {widen * level:.2f} would be significant"
    )


def sentence_steps(ends: Sequence[Any] | np.ndarray) -> int:
    """The average length of sentences, rounded up.

    Args:
      ends: N arrays, bool [steps]: True at the last token of a sentence, as for
        `data.sentence_windows`. What follows the last of them is a sentence too.

    Returns:
      The number of steps.

    Raises:
      TypeError: ends are not boolean.
      ValueError: there is no text, or an empty one.

    Example:
      >>> sentence_steps([np.array([False, True, False, False, True]), np.array([True])])
      2
    """
    marks = marks_of("sentence_steps", "ends", ends)
    if not marks or any(m.ndim != 1 or len(m) == 0 for m in marks):
        raise ValueError(
            "sentence_steps: ends must hold a bool [steps] of at least one step for each of at "
            f"least one text, got shapes {[list(m.shape) for m in marks][:5]}; a single text is "
            "given as [ends]"
        )
    sentences = sum(int(m[:-1].sum()) + 1 for m in marks)
    return -(-sum(len(m) for m in marks) // sentences)


def candidate_steps(
    length: int, *, minimum: int = 1, maximum: int | None = None, count: int | None = None
) -> list[Candidate]:
    """Lengths of pieces to try for sequences of `length` steps.

    Args:
      length: T, steps of a sequence.
      minimum, maximum: bounds of the lengths, both included; None: `length`.
      count: how many at most; None: all of them.

    Returns:
      First the factors of T, in ascending order, which need no padding; then the others, those
      with the least padding first, shorter ones before longer ones.

    Raises:
      TypeError: one of them is not an integer.
      ValueError: length, minimum or count is below 1, or maximum is not minimum to `length`.

    Example:
      >>> candidate_steps(50, minimum=5, maximum=20, count=4)
      [Candidate(steps=5, pieces=10, padded=0), Candidate(steps=10, pieces=5, padded=0),
       Candidate(steps=17, pieces=3, padded=1), Candidate(steps=13, pieces=4, padded=2)]
    """
    for name, size in (("length", length), ("minimum", minimum), ("count", count)):
        if size is not None or name != "count":
            check_count("candidate_steps", name, size)
    maximum = length if maximum is None else maximum
    check_count("candidate_steps", "maximum", maximum)
    if not minimum <= maximum <= length:
        raise ValueError(
            f"candidate_steps: maximum must be minimum={minimum} to length={length}, got {maximum}"
        )
    found = [Candidate(n, -(-length // n), -length % n) for n in range(minimum, maximum + 1)]
    return sorted(found, key=lambda c: (c.padded, c.steps))[:count]
