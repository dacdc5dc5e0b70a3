"""The progress bar of a training: what compiles, how fast it trains, how long it still takes."""

from typing import Any

from tqdm import tqdm

FORM = "{desc} {percentage:3.0f}%|{bar:12}| {elapsed}{left}{postfix}{speed}"


class Bar(tqdm):
    """A bar over the steps of a training; its rate leaves compilation out.

    Args:
      total: steps of the whole training.
      step: what a step is, in the singular.
      hidden: nothing is shown.
    """

    def __init__(self, total: int, step: str, hidden: bool):
        self._step = step
        self._steps, self._seconds = 0, 0.0  # of the calls that did not compile
        self._compiled: list[float] = []  # seconds of those that did
        self._to_compile = 0
        self._compiling = False
        # Of a narrow terminal the end of the line is cut off, and never the bar.
        super().__init__(
            desc="starting",
            total=total,
            bar_format=FORM,
            dynamic_ncols=True,
            mininterval=0.5,
            disable=hidden,
        )

    def compiling(self, number: int, count: int) -> None:
        """Show that the next batch compiles: it has a new length, one of `count`."""
        self._compiling, self._to_compile = True, max(0, count - number) + 1
        self.set_description_str(f"compiling (length {number} of {max(number, count)})")

    def trained(self, done: int, seconds: float, epoch: str) -> None:
        """Show a batch that took so many seconds, after which `done` steps are trained on."""
        if self._compiling:
            self._compiling, self._to_compile = False, self._to_compile - 1
            self._compiled.append(seconds)
        else:
            self._steps, self._seconds = self._steps + done - self.n, self._seconds + seconds
        self.set_description_str(epoch, refresh=False)
        self.update(done - self.n)

    def seconds_left(self) -> float | None:
        """Of training, and of the lengths that are still to be compiled; None: not known yet."""
        if not self._steps:
            return None
        mean = sum(self._compiled) / max(1, len(self._compiled))
        return (self.total - self.n) * self._seconds / self._steps + self._to_compile * mean

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the line is made of."""
        found, left = {**super().format_dict, "left": "", "speed": ""}, self.seconds_left()
        if left is not None:
            rate = self.format_sizeof(self._steps / self._seconds)
            found["speed"] = f", {rate} {self._step}s/s"
            found["left"] = f", {self.format_interval(left)} left" if self.n < self.total else ""
        return found
