"""The call server as the one process of a container: its options come from the environment, it is ready when it listens,
and it gets time for the answers under way when it stops. modal/app.py uses this; as a program it is what Modal runs:

    MINICPMO_CALL_TOKEN=$(openssl rand -hex 32) python3 modal/serve.py

    MINICPMO_CALL_TOKEN     what clients must know; needed, 32 characters or more
    PORT                    where to listen, on all addresses (default 8000)
    MINICPMO_MODEL          the checkpoint (default: the small one)
    MINICPMO_MAX_CALLS      calls at once; more get 503 and Retry-After (default 2)
    MINICPMO_ORIGINS        other pages that may call, with spaces between them
    MINICPMO_STUN_SERVER    stun://HOST:PORT
    MINICPMO_TURN_SERVERS   turn(s)://USER:PASSWORD@HOST:PORT, with spaces between them
    MINICPMO_TRANSPORT      what the page calls over: websocket (default: Modal lets no UDP in), or webrtc with a TURN server
    MINICPMO_DRAIN          seconds that answers under way get (default 25; Modal kills a container 30 s after it asked)
    MINICPMO_CALL_SERVER    the program (default minicpmo-call-server)
"""
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

DRAIN_S = 25
# Behind a proxy all callers have one address: this is the limit for all of them.
OFFERS_PER_MINUTE = 600
MIN_TOKEN = 32


class Failed(Exception):
    """The call server does not run; the message says why and what to do."""


def number(environment: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = environment.get(name, "") or str(default)
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise Failed(f"{name}={text}: must be a whole number from {low} to {high}")
    return int(text)


def command(environment: Mapping[str, str]) -> list[str]:
    """The call server's command line. The token is not in it: command lines can be read by others."""
    if len(environment.get("MINICPMO_CALL_TOKEN", "")) < MIN_TOKEN:
        raise Failed(f"MINICPMO_CALL_TOKEN must be set, to {MIN_TOKEN} characters or more: everybody can reach this server, "
                     "and would use its GPU. `openssl rand -hex 32` makes one")
    words = [*shlex.split(environment.get("MINICPMO_CALL_SERVER") or "minicpmo-call-server"), "--address", "0.0.0.0",
             "--port", str(number(environment, "PORT", 8000, 0, 65535)),
             "--max-calls", str(number(environment, "MINICPMO_MAX_CALLS", 2, 1, 1000)),
             "--drain-timeout", str(number(environment, "MINICPMO_DRAIN", DRAIN_S, 0, 3600)),
             "--offers-per-minute", str(OFFERS_PER_MINUTE), "--transport", environment.get("MINICPMO_TRANSPORT") or "websocket"]
    if environment.get("MINICPMO_MODEL"):
        words += ["--model", environment["MINICPMO_MODEL"]]
    if environment.get("MINICPMO_STUN_SERVER"):
        words += ["--stun-server", environment["MINICPMO_STUN_SERVER"]]
    for name, option in (("MINICPMO_TURN_SERVERS", "--turn-server"), ("MINICPMO_ORIGINS", "--origin")):
        for word in environment.get(name, "").split():
            words += [option, word]
    return words


class CallServer:
    """Runs while this object is started."""

    def __init__(self, environment: Mapping[str, str] = os.environ):
        self.environment = environment
        self.process: subprocess.Popen | None = None
        self.url = ""

    def start(self, timeout: float = 300) -> None:
        """Returns when calls can be made, which is when the model is loaded. Failed if it ends before, or takes longer."""
        words = command(self.environment)
        try:
            self.process = subprocess.Popen(words, env=dict(self.environment), stdout=subprocess.PIPE, text=True)
        except OSError as e:
            raise Failed(f"{words[0]}: {e.strerror}. MINICPMO_CALL_SERVER names the program") from e
        timer = threading.Timer(timeout, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if not line.startswith("listening on "):
            self.stop()
            raise Failed(f"the call server was not ready after {timeout:.0f} s" if late else
                         f"the call server ended with status {self.process.returncode}; it said why above")
        self.url = line.removeprefix("listening on ").strip()

    def stop(self) -> int:
        """Refuses new calls, lets answers finish (MINICPMO_DRAIN), and returns the exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(number(self.environment, "MINICPMO_DRAIN", DRAIN_S, 0, 3600) + 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()
        return self.process.wait()


def main() -> int:
    server = CallServer()
    asked = threading.Event()
    for number_ in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number_, lambda *_: asked.set())
    try:
        server.start()
    except Failed as e:
        print(f"serve.py: {e}", file=sys.stderr)
        return 1
    print(f"listening on {server.url}", flush=True)
    while not asked.wait(0.2):
        if server.process.poll() is not None:
            print(f"serve.py: the call server ended with status {server.process.returncode}", file=sys.stderr)
            return 1
    return server.stop()


if __name__ == "__main__":
    sys.exit(main())
