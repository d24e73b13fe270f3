"""The image of modal/Dockerfile, built without Docker in a clean root (replay.py): it answers, as a user without rights.

CPUs only: the libraries for GPUs are 4 GB. SOURCE comes from the environment. Needs root, debootstrap and the registries.
"""
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

SOURCE = pathlib.Path(os.environ["SOURCE"])
sys.path.insert(0, str(SOURCE / "tests/support"))
sys.path.insert(0, str(SOURCE / "tests/container"))
import dockerfile  # noqa: E402
import replay  # noqa: E402
import tap  # noqa: E402

PORT = 18080


def reads(text: str) -> list[dockerfile.Stage]:
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        return dockerfile.stages(pathlib.Path(file.name))


class Dockerfile(unittest.TestCase):
    def test_stages_and_continued_lines(self):
        first, second = reads("FROM debian:12-slim AS build\nRUN a \\\n# between\n  && b\n\nFROM debian:12-slim\nCMD [\"x\"]\n")
        self.assertEqual((first.name, second.name), ("build", "1"))
        self.assertEqual(dockerfile.command(first.instructions[0].rest), ["/bin/sh", "-c", "a   && b"])
        self.assertEqual(dockerfile.command(second.instructions[0].rest), ["x"])

    def test_values(self):
        self.assertEqual(dockerfile.expand("$A ${B}c $NONE", {"A": "1", "B": "2"}), "1 2c ")
        self.assertEqual(dockerfile.assignments('A=1 B="x y" C='), {"A": "1", "B": "x y", "C": ""})

    def test_what_is_not_understood_is_an_error(self):
        for bad in ("ADD x /\n", "FROM a AS\n", "RUN x\n", "FROM a\nRUN x \\", "FROM a\nHEALTHCHECK x\n"):
            with self.assertRaises(dockerfile.Invalid, msg=bad):
                reads(bad)

    def test_an_image_that_is_no_debian(self):
        with self.assertRaises(replay.Failed):
            replay.base(pathlib.Path("/nonexistent"), "ubuntu:24.04")


def missing() -> str:
    if os.geteuid() != 0:
        return "needs root, for chroot"
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        return "no mount namespaces here"
    try:
        urllib.request.urlopen("http://deb.debian.org/debian/dists/bookworm/Release", timeout=10).close()
    except OSError as e:
        return f"no way to Debian's packages: {e}"
    return ""


@unittest.skipIf(missing(), missing())
class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(dir=os.environ["WORK"]))
        cls.addClassCleanup(shutil.rmtree, cls.work, ignore_errors=True)
        command = [sys.executable, SOURCE / "tests/container/replay.py", cls.work, "--arg", "CUDA="]
        log = cls.work / "log"
        with log.open("w") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
        text = log.read_text(errors="replace")
        if done.returncode:
            raise AssertionError("the image cannot be built:\n" + text[-4000:])
        cls.steps = [line for line in text.splitlines() if line.endswith((" s", " MB"))]
        shutil.rmtree(cls.work / "build")  # what is needed of it has been copied
        cls.container, cls.program = replay.built(cls.work, "1")

    def output(self, *command: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, SOURCE / "tests/container/replay.py", self.work, "--run", "1", *command],
                              capture_output=True, text=True, timeout=120, **options)

    def test_answers(self):
        done = self.output("minicpmo-ask", "--text", "What is two plus three?", "-o", "/tmp/answer.wav")
        self.assertIn("Two plus three is five.", done.stdout, done.stderr)
        self.assertGreater((self.work / "1/tmp/answer.wav").stat().st_size, 48000)

    def test_launch_lines_work(self):
        done = self.output("sh", "-c", "echo Hello. | gst-launch-1.0 -q fdsrc ! text/x-raw,format=utf8 ! minicpmollm ! fdsink")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"\w{2,}")

    def test_without_rights(self):
        done = self.output("sh", "-c", "id -u; touch /opt/gst-minicpmo/x || echo refused")
        self.assertEqual(done.stdout.split(), ["1000", "refused"])

    def test_nothing_to_build_with(self):
        done = self.output("sh", "-c", "command -v g++ meson pip; ls /src /usr/include/glib-2.0")
        self.assertEqual(done.stdout, "")

    def test_small(self):
        sizes = dict(line.rsplit(" ", 2)[:2] for line in self.steps if line.endswith(" MB"))
        self.assertLess(int(sizes["1:"]), 2000, self.steps)

    def test_the_call_server_wants_a_token(self):
        done = self.output(*self.program)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("MINICPMO_CALL_TOKEN", done.stderr)

    def test_call_server(self):
        command = [sys.executable, SOURCE / "tests/container/replay.py", self.work, "--run", "1", "env", "MINICPMO_CALL_TOKEN=" + "t" * 32,
                   *self.program, "--port", str(PORT)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            self.assertIn("listening", server.stdout.readline())
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=10) as reply:
                self.assertEqual(reply.status, 200)
            offer = (SOURCE / "tests/call-server/offers/chromium.sdp").read_bytes()
            for token, status in (("t" * 32, 201), ("wrong", 401)):
                request = urllib.request.Request(f"http://127.0.0.1:{PORT}/whip", offer, {
                    "Content-Type": "application/sdp", "Authorization": f"Bearer {token}"})
                try:
                    with urllib.request.urlopen(request, timeout=30) as reply:
                        self.assertEqual(reply.status, status)
                except urllib.error.HTTPError as e:
                    self.assertEqual(e.code, status, e.read())
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
            server.stdout.close()
        time.sleep(0.5)
        with self.assertRaises(OSError, msg="what ran in the container has ended with it"):
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=5)


if __name__ == "__main__":
    tap.main()
