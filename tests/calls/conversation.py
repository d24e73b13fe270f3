"""A conversation script of pipelines/ at work, and the synthetic caller that talks with it.

Environment: SOURCE (the checkout), CALLER (minicpmo-caller).
"""
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time

SOURCE = pathlib.Path(os.environ["SOURCE"])
# The small checkpoint learnt conversations of up to three turns: a longer one starts anew.
THREE_TURNS = "context-length=330"


def free_ports(count: int) -> list[int]:
    """Nobody uses them now. All are open at once, so they differ."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Conversation:
    """Runs a script; `answers` are (monotonic time, turn, finish, text), `begins` the times at which turns began."""

    def __init__(self, script: str, *arguments: str, listen: int, llm: str = THREE_TURNS, **environment: str):
        self.listen = listen
        self.answers: list[tuple[float, int, str, str]] = []
        self.begins: list[float] = []
        self.output: list[str] = []
        self.process = subprocess.Popen(
            [str(SOURCE / "pipelines" / script), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True, env=dict(os.environ, LLM=llm, **environment))
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.output.append(line.rstrip("\n"))
            if re.fullmatch(r"turn \d+ begins", self.output[-1]):
                self.begins.append(time.monotonic())
            if m := re.fullmatch(r"turn (\d+) \((\w+)\): (.*)", self.output[-1]):
                self.answers.append((time.monotonic(), int(m[1]), m[2], m[3]))

    def alive(self) -> bool:
        return self.process.poll() is None

    def texts(self) -> list[str]:
        return [a[3] for a in self.answers]

    def memory(self) -> int:
        """Bytes in use."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.alive():
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.reader.join(10)
        self.process.stdout.close()


def opus(llm: str = THREE_TURNS) -> tuple[Conversation, list[str]]:
    """call-rtp-opus on ports of its own, and the caller's arguments."""
    here, there = free_ports(2)
    return (Conversation("call-rtp-opus", str(here), "127.0.0.1", str(there), listen=here, llm=llm),
            ["--to", f"127.0.0.1:{here}", "--listen", str(there)])


def call(*arguments, timeout: float = 15, limit: float = 120) -> tuple[dict, str, int]:
    """The caller's report, what it complained of, and its exit status."""
    run = subprocess.run([os.environ["CALLER"], "--json", "--timeout", str(timeout), *map(str, arguments)],
                         capture_output=True, text=True, timeout=limit)
    return (json.loads(run.stdout) if run.stdout else {}), run.stderr, run.returncode


def captions_by_turn(report: dict, conversation: Conversation) -> list[str]:
    """The words that came between the begin of each turn of the caller and the next."""
    begins = [report["sent"]["clock"] + t["said"]["from"] for t in report["turns"]] + [float("inf")]
    return [" ".join(a[3] for a in conversation.answers if b <= a[0] < e) for b, e in zip(begins, begins[1:])]
