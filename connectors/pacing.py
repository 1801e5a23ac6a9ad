"""When to wait: between the tries of what may succeed later, and before what would exceed a rate.

Clock and sleep are arguments, so that tests need neither.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

# Waits between tries, in seconds: each twice the one before, and somewhere between its half and its whole, so that
# writers that failed together do not come back together.
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0
# How long a writer that fell behind its rate may be faster.
BURST_SECONDS = 0.1


@dataclass
class Patience:
    """Waits between tries, until for so many seconds nothing went forward."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[float, float], float] = random.uniform
    _since: float = field(init=False)
    _tries: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Something went forward."""
        self._since, self._tries = self.clock(), 0

    def wait(self) -> bool:
        """Wait before the next try; False when patience is over."""
        if self.clock() - self._since >= self.seconds:
            return False
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2**self._tries)
        self._tries += 1
        self.sleep(self.draw(longest / 2, longest))
        return True


@dataclass
class TokenBucket:
    """At most `rate` a second, over any time longer than a burst. May be shared by threads."""

    rate: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _tokens: float = field(init=False, default=0.0)
    _at: float = field(init=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"a rate is above 0, found {self.rate}")
        self._at = self.clock()

    @property
    def burst(self) -> float:
        """How many may go at once."""
        return self.rate * BURST_SECONDS

    def take(self, count: int) -> None:
        """Wait until so many are allowed. More than there are makes a debt, which this call waits for."""
        with self._lock:
            now = self.clock()
            self._tokens = min(self._tokens + (now - self._at) * self.rate, self.burst) - count
            self._at = now
            debt = -self._tokens
        if debt > 0:
            self.sleep(debt / self.rate)
