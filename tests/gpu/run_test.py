"""tools/gpu/run: a failure of a program, of the sanitizer, or of the bundle makes it fail, too. The programs are made up.

Environment: SOURCE (the checkout).
"""
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ["SOURCE"])
sys.path[:0] = [str(SOURCE / "tests/support")]
import tap  # noqa: E402

PASSED = "echo '[  PASSED  ] 3 tests.'"
FAILED = "echo '[  FAILED  ] Some.Test'; exit 1"
CHECKS = "echo 'so far: 12 checks, 0 failed'"
SKIPPED = "echo '[  SKIPPED ] 3 tests, listed below:'; echo '[  PASSED  ] 0 tests.'"
KERNELS = ("decode-kernels-test", "token-sampling-test", "language-kernels-test")
RUNNERS = ("speech-runner-test", "encoder-runner-test", "vocoder-runner-test")
CLEAN = {"memcheck": "ERROR SUMMARY: 0 errors", "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"}
WARNINGS = "RACECHECK SUMMARY: 4 hazards displayed (0 errors, 4 warnings)"
RACE = """Error: Race reported between Write access at KERNEL(const Args)+0x10
=========     and Read access at KERNEL(const Args)+0x20 [8 hazards]
========= 
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"""
ERRORS = {"memcheck": "ERROR SUMMARY: 2 errors", "racecheck": RACE.replace("KERNEL", "minicpmo::cuda::draw_codes_kernel")}


def script(path: pathlib.Path, body: str) -> None:
    path.write_text("#!/bin/sh\n" + body + "\n")
    path.chmod(0o755)


class Run(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name)
        self.bundle = self.work / "bundle"
        (self.bundle / "bin").mkdir(parents=True)
        (self.work / "path").mkdir()
        script(self.bundle / "run", 'PATH=$(dirname "$0")/bin:$PATH exec "$@"')
        (self.bundle / "commit").write_text("none\n")
        (self.bundle / "source").write_text(f"{SOURCE}\n")
        self.listed: list[str] = []

    def program(self, name: str, body: str, kind: str = "tests") -> None:
        script(self.bundle / "bin" / name, body)
        self.listed.append(f"{kind}|{name}|{name}||\n")

    def run_tool(self, *arguments: str, **environment: str) -> tuple[int, str]:
        (self.bundle / "tests.list").write_text("".join(self.listed))
        packed = self.work / "bundle.tar.xz"
        with tarfile.open(packed, "w:xz", preset=0) as tar:
            tar.add(self.bundle, "bundle")
        done = subprocess.run(
            [SOURCE / "tools/gpu/run", *arguments], capture_output=True, text=True,
            env=os.environ | environment | dict(BUNDLE=str(packed), OUT=str(self.work / "out"), TMPDIR=str(self.work),
                                                PYTHON=sys.executable, PATH=f"{self.work / 'path'}:{os.environ['PATH']}"))
        return done.returncode, done.stdout + done.stderr

    def assert_fails(self, word: str, *arguments: str, **environment: str) -> None:
        status, shown = self.run_tool(*arguments, **environment)
        self.assertEqual(status, 1, shown)
        self.assertIn(word, shown)
        self.assertIn(f"failed: {arguments[0]}", shown)

    # Programs that pass, and a sanitizer that says what is in `summaries` and ends with 9 if it has found anything.
    def sanitizer(self, summaries: dict[str, str]) -> None:
        for name in KERNELS + RUNNERS:
            self.program(name, CHECKS if name in KERNELS else PASSED)
        said = " ".join(f"{tool}) summary='{summary}' ;;" for tool, summary in summaries.items())
        script(self.work / "path/compute-sanitizer", f"""
tool=$2
while [ "$1" != --error-exitcode ]; do shift; done
shift 2
"$@"; status=$?
case $tool in {said} esac
echo "========= $summary"
case $summary in *" 0 hazards"*|"ERROR SUMMARY: 0 errors"*|"") exit $status ;; esac
exit 9""")


class Programs(Run):
    def test_passed(self):
        self.program("one", PASSED)
        self.program("two", CHECKS)
        status, shown = self.run_tool("test")
        self.assertEqual(status, 0, shown)

    def test_a_failure_among_others(self):
        self.program("one", PASSED)
        self.program("two", FAILED)
        self.program("three", PASSED)
        self.assert_fails("FAILED (1)", "test")

    def test_failures_that_end_with_0(self):
        self.program("one", "echo '12 checks, 1 failed'")
        self.assert_fails("FAILED (by its own words)", "test")

    def test_no_test_has_run(self):
        self.program("one", "echo '[  PASSED  ] 0 tests.'")
        self.assert_fails("FAILED (no test passed)", "test")

    def test_all_is_skipped(self):
        self.program("one", "exit 77")
        self.program("two", SKIPPED)
        self.assert_fails("skipped", "test")

    def test_a_hang(self):
        self.program("one", "exec sleep 60")
        self.assert_fails("too long", "test", LIMIT="0.2")

    def test_a_program_that_is_not_there(self):
        self.listed.append("tests|one|one||\n")
        self.assert_fails("FAILED (127)", "test")

    def test_names_of_no_test(self):
        self.program("one", PASSED)
        self.assert_fails("not in the bundle: two", "test", "one", "two")

    def test_an_empty_bundle(self):
        self.assert_fails("no tests", "test")

    def test_benchmarks(self):
        self.program("overlap", "echo 1.5 ms", "benchmarks")
        status, shown = self.run_tool("overlap")
        self.assertEqual(status, 0, shown)
        self.program("overlap", "exit 77", "benchmarks")
        self.assert_fails("skipped", "overlap")

    def test_no_bundle(self):
        done = subprocess.run([SOURCE / "tools/gpu/run", "test"], capture_output=True, text=True,
                              env=os.environ | dict(BUNDLE=str(self.work / "none"), OUT=str(self.work / "out")))
        self.assertEqual(done.returncode, 1)
        self.assertIn("is not here", done.stderr)


class Sanitize(Run):
    def test_clean(self):
        self.sanitizer(CLEAN)
        status, shown = self.run_tool("sanitize")
        self.assertEqual(status, 0, shown)
        self.assertEqual(shown.count("\nok "), 11, shown)

    def test_warnings_are_no_errors(self):
        self.sanitizer(CLEAN | dict(racecheck=WARNINGS))
        status, shown = self.run_tool("sanitize")
        self.assertEqual(status, 0, shown)

    def test_errors(self):
        for tool in CLEAN:
            self.sanitizer(CLEAN | {tool: ERRORS[tool]})
            self.assert_fails("FAILED", "sanitize")

    def test_races_of_others_are_not_ours(self):
        self.sanitizer(CLEAN | dict(racecheck=RACE.replace("KERNEL", "void cublasLt::splitKreduce_kernel")))
        status, shown = self.run_tool("sanitize")
        self.assertEqual(status, 0, shown)

    def test_the_sanitizer_itself_fails(self):
        broken = "Internal Sanitizer Error: The Sanitizer failed to handle a hardware exception.\n========= " + CLEAN["racecheck"]
        self.sanitizer(CLEAN | dict(racecheck=broken))
        self.assert_fails("FAILED (sanitizer)", "sanitize")

    def test_errors_of_an_earlier_process(self):
        self.sanitizer(CLEAN | dict(racecheck=ERRORS["racecheck"] + "\n========= " + CLEAN["racecheck"]))
        self.assert_fails("FAILED (errors)", "sanitize")

    def test_a_failing_program_beside_warnings(self):
        self.sanitizer(CLEAN | dict(racecheck=WARNINGS))
        self.program("vocoder-runner-test", FAILED)
        self.assert_fails("FAILED (by its own words)", "sanitize")

    def test_a_program_that_stops_beside_warnings(self):
        self.sanitizer(CLEAN | dict(racecheck=WARNINGS))
        self.program("decode-kernels-test", "exit 1")
        self.assert_fails("FAILED (no test passed)", "sanitize")

    def test_a_filter_that_names_no_test(self):
        self.sanitizer(CLEAN)
        self.program("speech-runner-test", "echo '[  PASSED  ] 0 tests.'")
        self.assert_fails("FAILED (no test passed)", "sanitize")

    def test_no_summary(self):
        self.sanitizer(dict(memcheck=CLEAN["memcheck"], racecheck=""))
        self.assert_fails("FAILED (nothing was checked)", "sanitize")

    def test_a_hang(self):
        self.sanitizer(CLEAN)
        self.program("speech-runner-test", "exec sleep 60")
        self.assert_fails("too long", "sanitize", SANITIZE_LIMIT="0.5")

    def test_a_program_that_is_not_there(self):
        self.sanitizer(CLEAN)
        (self.bundle / "bin/token-sampling-test").unlink()
        self.assert_fails("not in the bundle: token-sampling-test", "sanitize")


if __name__ == "__main__":
    tap.main()
