"""How many steps to use for a piece or a gradient: what the data suggest, and what divides T.

These are suggestions to start from. How far back a network has to look is known only after training
it (`gradient_bias`, `credit_by_lag`).
"""

from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tbptt_jax.arguments import check_choice, check_count
from tbptt_jax.data.coerce import Sequences, marks_of

# A chance hit at one lag after the true order is common, at two in a row it is not; and a zero
# coefficient in between should not end the search.
GAP = 2
# A later peak has to be that much higher than an earlier one not to count as its repetition.
REPETITION = 0.9
MAX_LAG = 400


class Suggestion(NamedTuple):
    """A number of steps and what it was read from; index k of the arrays is lag k, 0 to L.

    Attributes:
      steps: the suggested number of steps, for k1, k2 or the length of pieces.
      acf: float [L + 1], autocorrelation.
      pacf: float [L + 1], partial autocorrelation.
      acf_band, pacf_band: float [L + 1], half-widths of the confidence band around zero:
        `abs(acf) > acf_band` at significant lags. Bartlett's formula for the ACF, one over
        the root of the number of steps for the PACF; 0 at lag 0.
      why: one sentence that says how the number follows.
    """

    steps: int
    acf: np.ndarray
    pacf: np.ndarray
    acf_band: np.ndarray
    pacf_band: np.ndarray
    why: str


class Candidate(NamedTuple):
    """A length of pieces: its steps, how many a sequence has, and the padded steps of the last."""

    steps: int
    pieces: int
    padded: int


def suggest_steps(
    series: ArrayLike,
    *,
    rule: Literal["order", "period"] = "order",
    max_lag: int | None = None,
    alpha: float = 0.05,
) -> Suggestion:
    """Read a number of steps off the ACF and PACF of a series; needs statsmodels.

    The rules:

    - "order": the lag of the PACF before the first two insignificant ones in a row, as many as an
      autoregression needs; 1 if there is none.
    - "period": the lag of the dominant peak of the ACF. The search starts at the first lag at which
      the ACF is not significantly positive, and uses the band there. The maximum of each run of
      lags above the band is a peak; the dominant one is the first that is at least 0.9 times as
      high as the highest. As the highest of many it must be significant at alpha / max_lag.

    A trend makes every lag significant: subtract it, or take differences, beforehand.

    Args:
      series: numbers [T]. For several channels or sequences call it for each.
      rule: one of the two above.
      max_lag: the largest lag L that is used, at most T // 2. None: a quarter of T, at most 400.
      alpha: share of the lags of white noise that are called significant.

    Returns:
      The suggestion. The time grows with T squared: of a very long series pass a part.

    Raises:
      ModuleNotFoundError: statsmodels is not installed.
      TypeError: series is not of real numbers, or max_lag is not an integer.
      ValueError: series is not [T] finite numbers that vary, an argument is out of range, or rule
        is "period" and there is no such peak.

    Examples:
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
    values = _real_numbers(series)
    check_choice("suggest_steps", "rule", rule, "order", "period")
    if max_lag is not None:
        check_count("suggest_steps", "max_lag", max_lag)
    if not (isinstance(alpha, float) and 0 < alpha < 1):
        raise ValueError(f"suggest_steps: alpha must be between 0 and 1, got {alpha!r}")
    last = min(len(values) // 4, MAX_LAG) if max_lag is None else max_lag
    if not 1 <= last <= len(values) // 2:
        raise ValueError(
            f"suggest_steps: max_lag must be 1 to T // 2 = {len(values) // 2}, got {last}; set it, "
            "or use a longer series"
        )
    # With qstat, which is not used, the ACF comes in one form in all releases.
    acf, around, *_ = stattools.acf(values, nlags=last, alpha=alpha, qstat=True)
    acf_band = np.asarray(around)[:, 1] - acf
    # Biased Levinson-Durbin is bounded by 1 for every series, also one that repeats exactly.
    pacf, around = stattools.pacf(values, nlags=last, alpha=alpha, method="ldb")
    pacf_band = np.asarray(around)[:, 1] - pacf
    if rule == "order":
        steps, why = _order(np.abs(pacf) > pacf_band)
    else:
        z = NormalDist().inv_cdf
        widen = z(1 - alpha / last / 2) / z(1 - alpha / 2)
        steps, why = _period(acf, acf_band, widen)
    return Suggestion(steps, acf, pacf, acf_band, pacf_band, why)


def _real_numbers(series: ArrayLike) -> np.ndarray:
    """A series as float64 [T], finite and not constant."""
    values = np.asarray(series)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"suggest_steps: series must be real numbers [T], got {values.dtype}")
    values = values.astype(float)
    if values.ndim != 1 or not np.isfinite(values).all() or len(np.unique(values)) < 2:
        raise ValueError(
            "suggest_steps: series must be [T], finite numbers that are not all equal, got shape "
            f"{list(values.shape)}; fill gaps, and pass one channel of one sequence at a time"
        )
    return values


def _order(significant: np.ndarray) -> tuple[int, str]:
    """The lag before the first gap of the PACF; `significant` is bool [L + 1]."""
    last = len(significant) - 1
    gaps = [k for k in range(1, last + 1) if not significant[k : k + GAP].any()]
    steps = gaps[0] - 1 if gaps else last
    if not gaps:
        why = f"significant up to the last lag, {last}; use a larger max_lag or subtract a trend"
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
    # At later lags the band would be wider because of the very period that is searched for.
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
            f'up to lag {last}; use a larger max_lag, subtract a trend, or use rule="order"'
        )
    highest = max(acf[k] for k in peaks)
    steps = next(k for k in peaks if acf[k] >= REPETITION * highest)
    return steps, (
        f"{steps} steps: the dominant peak of the ACF is at lag {steps}, where it is "
        f"{acf[steps]:.2f}; {widen * level:.2f} would be significant"
    )


def sentence_steps(ends: Sequences) -> int:
    """The average length of sentences, rounded up.

    Args:
      ends: N arrays, bool [steps]: True at the last token of a sentence, as for
        `data.sentence_windows`. What follows the last of them is a sentence too.

    Returns:
      The number of steps.

    Raises:
      TypeError: ends are not boolean.
      ValueError: there is no text, or an empty one.

    Examples:
      >>> sentence_steps([np.array([False, True, False, False, True]), np.array([True])])
      2
    """
    marks = marks_of("sentence_steps", "ends", ends)
    if not marks or any(m.ndim != 1 or len(m) == 0 for m in marks):
        raise ValueError(
            "sentence_steps: ends must hold a bool [steps] of at least one step for each of at "
            f"least one text, got shapes {[list(m.shape) for m in marks][:5]}; pass a single text "
            "as [ends]"
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
      The factors of T in ascending order, which need no padding; then the others, those with the
      least padding first, and of the same padding the shorter first.

    Raises:
      TypeError: one of them is not an integer.
      ValueError: length, minimum or count is below 1, or maximum is not minimum to `length`.

    Examples:
      >>> candidate_steps(50, minimum=5, maximum=20, count=4)
      [Candidate(steps=5, pieces=10, padded=0), Candidate(steps=10, pieces=5, padded=0),
       Candidate(steps=17, pieces=3, padded=1), Candidate(steps=13, pieces=4, padded=2)]
    """
    maximum = length if maximum is None else maximum
    for name, size in (("length", length), ("minimum", minimum), ("maximum", maximum)):
        check_count("candidate_steps", name, size)
    if count is not None:
        check_count("candidate_steps", "count", count)
    if not minimum <= maximum <= length:
        raise ValueError(
            f"candidate_steps: maximum must be minimum={minimum} to length={length}, got {maximum}"
        )
    found = [Candidate(n, -(-length // n), -length % n) for n in range(minimum, maximum + 1)]
    return sorted(found, key=lambda c: (c.padded, c.steps))[:count]
