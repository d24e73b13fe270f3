"""Runs unittest cases and prints TAP, which meson reads case by case."""
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


def main() -> None:
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])
    print(f"1..{suite.countTestCases()}", flush=True)
    result = _TapResult()
    suite.run(result)
    sys.exit(0 if result.wasSuccessful() else 1)
