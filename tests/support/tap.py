"""Runs unittest cases and prints TAP, which meson reads case by case."""
import os
import sys
import unittest


class _TapResult(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def _add(self, test: unittest.TestCase, ok: bool, suffix: str = "", details: str = "") -> None:
        name = test.id().split(".", 1)[-1]
        self.lines.append(f"{'ok' if ok else 'not ok'} {len(self.lines) + 1} {name}{suffix}")
        print(self.lines[-1], flush=True)
        for line in details.splitlines():
            print("# " + line, flush=True)

    def addSuccess(self, test):
        self._add(test, True)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._add(test, False, details=self.failures[-1][1])

    def addError(self, test, err):
        super().addError(test, err)
        self._add(test, False, details=self.errors[-1][1])

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._add(test, True, f" # SKIP {reason}")


class RealtimeTestCase(unittest.TestCase):
    """A conversation at the speed of speech. A busy machine may be late once or twice, a fault is there each time:
    what failed is tried again, and each failed attempt is printed."""
    attempts = 3

    def run(self, result=None):
        for attempt in range(1, self.attempts):
            trial = unittest.TestResult()
            super().run(trial)
            if trial.wasSuccessful():
                break
            print(f"# attempt {attempt} of {self.attempts} failed: {self.id()}, load {os.getloadavg()[0]:.1f}")
            for _, details in trial.failures + trial.errors:
                print("# " + details.rstrip().replace("\n", "\n# "), flush=True)
        else:
            return super().run(result)
        for test, reason in trial.skipped:
            result.addSkip(test, reason)
        if not trial.skipped:
            result.addSuccess(self)
        return result


def main() -> None:
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])
    print(f"1..{suite.countTestCases()}", flush=True)
    result = _TapResult()
    suite.run(result)
    sys.exit(0 if result.wasSuccessful() else 1)
