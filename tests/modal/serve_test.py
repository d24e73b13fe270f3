"""modal/serve.py as a plain process with the small checkpoint, behind an imitation of Modal's HTTP (front.py).

Environment: SOURCE, CALL_SERVER, and what finds the plugin.
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest
import urllib.error
import urllib.request

SOURCE = pathlib.Path(os.environ["SOURCE"])
sys.path[:0] = [str(SOURCE / "tests/support"), str(SOURCE / "modal"), str(SOURCE / "tests/modal")]
import serve  # noqa: E402
import tap  # noqa: E402
from front import Front  # noqa: E402

TOKEN = "0123456789abcdef" * 2
OFFER = (SOURCE / "tests/call-server/offers/chromium.sdp").read_bytes()
COMMAND = [sys.executable, str(SOURCE / "modal/serve.py")]


def environment(**more: str) -> dict[str, str]:
    return dict(os.environ, MINICPMO_CALL_SERVER=f"{os.environ['CALL_SERVER']} --device cpu", MINICPMO_CALL_TOKEN=TOKEN, PORT="0",
                MINICPMO_MAX_CALLS="1", OMP_NUM_THREADS="1", G_MESSAGES_DEBUG="") | more


def request(url: str, body: bytes | None = None, method: str | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    asked = urllib.request.Request(url, body, {k.replace("_", "-"): v for k, v in headers.items()}, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, dict(e.headers), e.read()


def offer(front: Front, body: bytes = OFFER, token: str = TOKEN, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return request(front.url + "/whip", body, Content_Type="application/sdp", Authorization=f"Bearer {token}", **headers)


class Command(unittest.TestCase):
    def test_everything_that_can_be_set(self):
        words = serve.command({"MINICPMO_CALL_TOKEN": TOKEN, "PORT": "81", "MINICPMO_MAX_CALLS": "3", "MINICPMO_MODEL": "/m",
                               "MINICPMO_ORIGINS": "https://a https://b", "MINICPMO_STUN_SERVER": "stun://s:1",
                               "MINICPMO_TURN_SERVERS": "turn://u:p@t:1 turns://u:p@t:2", "MINICPMO_DRAIN": "7",
                               "MINICPMO_TRANSPORT": "webrtc"})
        self.assertEqual(words, ["minicpmo-call-server", "--address", "0.0.0.0", "--port", "81", "--max-calls", "3", "--drain-timeout", "7",
                                 "--offers-per-minute", "600", "--transport", "webrtc", "--model", "/m", "--stun-server", "stun://s:1", "--turn-server",
                                 "turn://u:p@t:1", "--turn-server", "turns://u:p@t:2", "--origin", "https://a", "--origin", "https://b"])

    def test_the_token_is_on_no_command_line(self):
        self.assertNotIn(TOKEN, " ".join(serve.command({"MINICPMO_CALL_TOKEN": TOKEN})))

    def test_bad_settings(self):
        for bad, said in (({}, "MINICPMO_CALL_TOKEN"), ({"MINICPMO_CALL_TOKEN": "short"}, "32 characters"),
                          ({"PORT": "http"}, "PORT=http"), ({"PORT": "65536"}, "PORT=65536"), ({"MINICPMO_MAX_CALLS": "0"}, "from 1 to 1000"),
                          ({"MINICPMO_MAX_CALLS": "²"}, "MINICPMO_MAX_CALLS"), ({"MINICPMO_DRAIN": "-1"}, "MINICPMO_DRAIN")):
            given = bad if "TOKEN" in said or "32" in said else {"MINICPMO_CALL_TOKEN": TOKEN} | bad
            with self.assertRaisesRegex(serve.Failed, said):
                serve.command(given)


class Process(unittest.TestCase):
    def ended(self, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(COMMAND, env=environment(**more), capture_output=True, text=True, timeout=60)

    def test_a_program_that_is_not_there(self):
        done = self.ended(MINICPMO_CALL_SERVER="/no/such/program")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("/no/such/program", done.stderr)

    def test_a_model_that_is_not_there(self):
        done = self.ended(MINICPMO_MODEL="/no/such/model")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("/no/such/model", done.stderr)

    def test_no_token(self):
        done = self.ended(MINICPMO_CALL_TOKEN="")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("openssl rand", done.stderr)

    def test_a_server_that_is_never_ready(self):
        server = serve.CallServer(environment(MINICPMO_CALL_SERVER="sh -c 'exec sleep 60'"))
        began = time.monotonic()
        with self.assertRaisesRegex(serve.Failed, "not ready after 1 s"):
            server.start(timeout=1)
        self.assertLess(time.monotonic() - began, 10)

    def test_a_server_that_dies_is_noticed(self):
        with subprocess.Popen(COMMAND, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            self.assertIn("listening", process.stdout.readline())
            child = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
            os.kill(int(child), signal.SIGKILL)
            self.assertEqual(process.wait(20), 1)
            self.assertIn("ended with status -9", process.stderr.read())


class Service(unittest.TestCase):
    def front(self, **options) -> Front:
        return self.enterContext(Front(COMMAND, environment(), **options))

    def test_scale_to_zero_and_cold_start(self):
        front = self.front(scaledown_window=0.5)
        for start in (1, 2):
            began = time.monotonic()
            self.assertEqual(request(front.url + "/healthz")[0], 200)
            print(f"# cold start {start}: {time.monotonic() - began:.2f} s to the first reply", flush=True)
            self.assertEqual(front.starts, start)
            self.assertEqual(request(front.url + "/")[0], 200)
            self.assertEqual(front.starts, start, "while it runs it is not started again")
            end = time.monotonic() + 30
            while front.process is not None and time.monotonic() < end:
                time.sleep(0.05)
            self.assertIsNone(front.process)
        self.assertEqual(front.statuses, [0, 0])

    def test_overload(self):
        front = self.front()
        status, headers, _ = offer(front)
        self.assertEqual(status, 201)
        refused, more, body = offer(front)
        self.assertEqual((refused, json.loads(body)["error"]["code"]), (503, "server_full"))
        self.assertGreaterEqual(int(more["Retry-After"]), 1)
        self.assertEqual(request(front.url + "/healthz")[0], 200, "the page and the probes are there all the same")
        self.assertEqual(request(front.url + headers["Location"], method="DELETE", Authorization=f"Bearer {TOKEN}")[0], 200)
        end = time.monotonic() + 20
        while (status := offer(front)[0]) == 503 and time.monotonic() < end:
            time.sleep(0.1)
        self.assertEqual(status, 201)

    def test_drain(self):
        front = self.front()
        self.assertEqual(offer(front)[0], 201)
        began = time.monotonic()
        front.process.terminate()
        self.assertEqual(front.process.wait(serve.DRAIN_S + 5), 0)
        self.assertLess(time.monotonic() - began, 10, "a call without an answer under way does not hold it up")

    def test_who_may_not_call(self):
        front = self.front()
        self.assertEqual(offer(front, token="f" * 32)[0], 401)
        self.assertEqual(request(front.url + "/whip", OFFER, Content_Type="application/sdp")[0], 401)
        self.assertEqual(offer(front, Origin="https://evil.example")[0], 403)
        self.assertEqual(offer(front, body=b"v" * 70000)[0], 413)
        self.assertEqual(offer(front, Origin=front.url)[0], 201, "the page that comes through the proxy is its own")


if __name__ == "__main__":
    tap.main()
