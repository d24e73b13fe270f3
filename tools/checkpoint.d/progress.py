"""A progress bar on a terminal, a line now and then elsewhere. On stderr."""
import sys
import time


class Progress:
    def __init__(self, what: str, total: int, quiet: bool = False) -> None:
        self._what, self._total, self._quiet = what, max(total, 1), quiet
        self._start = self._shown = time.monotonic()
        self._done = 0
        self._terminal = sys.stderr.isatty()

    def add(self, amount: int) -> None:
        self._done += amount
        now = time.monotonic()
        if not self._quiet and now - self._shown >= (0.2 if self._terminal else 10):
            self._shown = now
            self._show(now - self._start, "\r" if self._terminal else "\n")

    def finish(self) -> None:
        if not self._quiet:
            self._show(time.monotonic() - self._start, "\n")

    def _show(self, seconds: float, end: str) -> None:
        share = min(self._done / self._total, 1)
        rate = self._done / max(seconds, 1e-3)
        left = f", {(self._total - self._done) / rate:.0f} s left" if 0 < share < 1 else f" in {seconds:.1f} s"
        bar = f"[{'#' * int(24 * share):24s}] " if self._terminal else ""
        print(f"{self._what} {bar}{share:4.0%} {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB, "
              f"{rate / 1e6:.0f} MB/s{left}    ", end=end, file=sys.stderr, flush=True)
