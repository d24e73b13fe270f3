"""A caller of minicpmo-call-server made of webrtcbin: the program $WEBRTCBIN_CLIENT, see webrtcbin_client.cpp."""
import json
import os
import pathlib
import subprocess
import threading

import numpy
from running_server import wait_for

RATE = 16000


class Client:
    def __init__(self, url: str, recording: pathlib.Path, setup: str = ""):
        self.recording = recording
        self.told: list[dict] = []
        self.process = subprocess.Popen([os.environ["WEBRTCBIN_CLIENT"], url, str(recording), *filter(None, [setup])], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.told.append(json.loads(line))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdin.close()
        self.process.stdout.close()

    def _ask(self, command: str) -> None:
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def say(self, wav: pathlib.Path) -> None:
        self._ask(f"say {wav}")

    def send(self, event: dict) -> None:
        self._ask("send " + json.dumps(event))

    def hang_up(self) -> int:
        """The status of the DELETE."""
        self._ask("hang-up")
        assert self.process.wait(60) == 0
        self.reader.join()
        return self.told[-1]["hung_up"]

    def of(self, kind: str) -> list[dict]:
        """Events of a kind, each with "at": the seconds of the recording when it came."""
        return [dict(t["event"], at=t["at"] / 2 / RATE) for t in list(self.told) if t.get("event", {}).get("type") == kind]

    def event(self, kind: str, count: int = 1) -> dict:
        """The count-th event of the kind."""
        def find():
            assert self.process.poll() is None, "the caller ended"
            return self.of(kind)[count - 1:count]
        try:
            return wait_for(find, f"{kind} number {count}")[0]
        except AssertionError as late:
            raise AssertionError(f"{late}; events: {[t.get('event', {}).get('type') for t in self.told]}") from None

    def sound(self, begin: float, end: float) -> numpy.ndarray:
        """Int16, at RATE."""
        return numpy.fromfile(self.recording, numpy.int16)[max(0, int(begin * RATE)):int(end * RATE)]
