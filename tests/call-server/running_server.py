"""minicpmo-call-server as a process, and plain HTTP to it.

Environment: CALL_SERVER (the program), SOURCE (the checkout), GST_PLUGIN_PATH, MINICPMO_BACKEND_DIR, MINICPMO_VAD.
"""
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
import urllib.parse

SOURCE = pathlib.Path(os.environ["SOURCE"])
LIMIT = 60  # seconds that anything may take on a loaded machine


def wait_for(condition, what: str, limit: float = LIMIT):
    """The condition's value as soon as it is true."""
    end = time.monotonic() + limit
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit} s: {what}")
        time.sleep(0.02)
    return value


class Server:
    def __init__(self, *arguments: str, program: str | None = None, **environment: str):
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [program or os.environ["CALL_SERVER"], "--port", "0", "--device", "cpu", "--late-pause", "0", *arguments], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
            env=dict(os.environ, OMP_NUM_THREADS="1", G_MESSAGES_DEBUG="", **environment))
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.log.append(line.rstrip("\n"))

    @property
    def url(self) -> str:
        def find():
            if self.process.poll() is not None and not any("listening" in line for line in self.log):
                raise AssertionError("the server ended: " + "\n".join(self.log))
            return next((line.split()[-1] for line in list(self.log) if line.startswith("listening on ")), None)
        return wait_for(find, "the server listens").rstrip("/")

    def request(self, method: str, path: str, body: bytes | str | None = None, **headers: str):
        """status, headers, body. Headers are given with _ for -."""
        place = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=LIMIT)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def raw(self, data: bytes) -> bytes:
        """All that comes back for these bytes until the connection is closed."""
        place = urllib.parse.urlsplit(self.url)
        reply = b""
        with socket.create_connection((place.hostname, place.port), LIMIT) as connection:
            try:
                connection.sendall(data)
                while part := connection.recv(65536):
                    reply += part
            except (ConnectionResetError, BrokenPipeError):
                pass  # it was closed before all was read
        return reply

    def error(self, *request, **headers) -> tuple[int, str]:
        """Status and code of a refusal."""
        status, _, body = self.request(*request, **headers)
        return status, json.loads(body)["error"]["code"]

    def metric(self, name: str, label: str = "") -> float:
        """The sum over its labels, or over those that hold this: end="client"."""
        lines = self.request("GET", "/metrics")[2].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name and label in line)

    def calls(self) -> int:
        return int(self.metric("minicpmo_calls"))

    def usage(self) -> tuple[int, int, int]:
        """Threads, descriptors, bytes of memory."""
        folder = pathlib.Path(f"/proc/{self.process.pid}")
        pages = int((folder / "statm").read_text().split()[1])
        return len(list((folder / "task").iterdir())), len(list((folder / "fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE")

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> int:
        """Its exit status after SIGTERM."""
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.reader.join(10)
            self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
