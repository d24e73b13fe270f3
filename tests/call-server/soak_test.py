"""Calls and offers, many, leave nothing in minicpmo-call-server. Environment: see running_server.py, and WEBRTCBIN_CLIENT.

MINICPMO_SOAK=1000 makes a thousand calls and a thousand half-open offers; it takes 20 minutes.
"""
import os
import pathlib
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import tap  # noqa: E402
from running_server import SOURCE, Server, wait_for  # noqa: E402

COUNT = int(os.environ.get("MINICPMO_SOAK", "20"))
WARM_UP = max(10, COUNT // 10)
# What a thousand may add. Caches and arenas that fill make steps, not slopes.
MEGABYTES = 8
OFFER = (SOURCE / "tests/call-server/offers/chromium.sdp").read_text()


class Soak(unittest.TestCase):
    def setUp(self):
        # MKL and glibc keep memory for each thread that there ever was.
        self.server = self.enterContext(Server("--offers-per-minute", "100000", "--connect-timeout", "10", "--max-calls", "20",
                                               MKL_DISABLE_FAST_MM="1", MALLOC_ARENA_MAX="2"))

    def calls(self, count: int) -> None:
        self.assertEqual(subprocess.run([os.environ["WEBRTCBIN_CLIENT"], "--calls", str(count), self.server.url], timeout=4 * 60 + 10 * count,
                                        stdout=subprocess.DEVNULL).returncode, 0)

    def offers(self, count: int) -> None:
        """Half of them are ended by the client, half are forgotten."""
        for i in range(count):
            wait_for(lambda: self.server.calls() < 20, "there is room")
            status, headers, _ = self.server.request("POST", "/whip", OFFER, Content_Type="application/sdp")
            self.assertEqual(status, 201)
            if i % 2:
                self.assertEqual(self.server.request("DELETE", headers["Location"])[0], 200)

    def settled(self) -> tuple[int, int, int]:
        """Threads, descriptors, memory, when nothing is going on any more."""
        wait_for(lambda: self.server.calls() == 0, "all calls are over")
        last, since = self.server.usage(), time.monotonic()
        while time.monotonic() < since + 2:
            time.sleep(0.1)
            if (now := self.server.usage())[:2] != last[:2]:
                last, since = now, time.monotonic()
        return last[:2] + self.server.usage()[2:]

    def leaves_nothing(self, what) -> None:
        what(WARM_UP)
        begin, began = self.settled(), time.monotonic()
        print(f"# after {WARM_UP}: threads, files, bytes {begin}", flush=True)
        for part in range(4):
            what(COUNT // 4)
            end = self.settled()
            print(f"# after {COUNT // 4 * (part + 1)} more, {time.monotonic() - began:.0f} s: {end}", flush=True)
        self.assertLessEqual(end[0], begin[0])
        self.assertLessEqual(end[1], begin[1])
        self.assertLess((end[2] - begin[2]) / 1e6, MEGABYTES)

    def test_calls(self):
        self.leaves_nothing(self.calls)

    def test_offers_half_open(self):
        self.leaves_nothing(self.offers)


if __name__ == "__main__":
    tap.main()
