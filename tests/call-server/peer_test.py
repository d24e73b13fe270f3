"""Callers of minicpmo-call-server that are not what they should be, by aiortc. Environment: see running_server.py."""
import asyncio
import pathlib
import re
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import tap  # noqa: E402
from aiortc import RTCSessionDescription  # noqa: E402
from aiortc_client import Client, samples_of  # noqa: E402
from running_server import SOURCE, Server, wait_for  # noqa: E402

SAMPLES = SOURCE / "tools/tiny/samples"
OSLO = "The capital of Norway is Oslo."
FINGERPRINT = re.compile(r"(?<=a=fingerprint:)(\S+) (\S+)")


def other(fingerprint: str) -> str:
    return f"{fingerprint[:-2]}{int(fingerprint[-2:], 16) ^ 1:02X}"


def run(work):
    return asyncio.run(asyncio.wait_for(work, 180))


class Case(unittest.TestCase):
    arguments = ("--connect-timeout", "10")

    @classmethod
    def setUpClass(cls):
        cls.server = Server("--offers-per-minute", "1000", *cls.arguments)
        cls.url = cls.server.url

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0, cls.server.log

    def tearDown(self):
        wait_for(lambda: self.server.calls() == 0, "all calls are over")

    async def call(self, client: Client, change) -> None:
        """A call whose offer is changed on the way."""
        status, headers, answer = await asyncio.to_thread(client.post, change(await client.offer()))
        self.assertEqual(status, 201, answer)
        client.location = headers["Location"]
        await client.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    async def ends(self, why: str, before: float) -> None:
        await asyncio.to_thread(wait_for, lambda: self.ended(why) > before, f"the call ends: {why}")

    def ended(self, why: str) -> float:
        lines = self.server.request("GET", "/metrics")[2].decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f'minicpmo_calls_total{{end="{why}"}}'))


class Certificates(Case):
    def refuses(self, change) -> None:
        async def call():
            client, before = Client(self.url), self.ended("fingerprint")
            client.microphone.say(samples_of(SAMPLES / "q01_cap.wav"))
            await self.call(client, change)
            await self.ends("fingerprint", before)
            await client.close()
            return client
        turns = self.server.metric("minicpmo_turns_total")
        client = run(call())
        self.assertEqual((client.events, client.heard), ([], []))
        self.assertEqual(self.server.metric("minicpmo_turns_total"), turns)
        self.assertTrue(any("a=fingerprint" in line for line in self.server.log), self.server.log)

    def takes(self, change) -> None:
        async def call():
            client = Client(self.url)
            await self.call(client, change)
            await client.event("session.created")
            self.assertEqual(await client.hang_up(), 200)
        run(call())

    def test_of_somebody_else(self):
        self.refuses(lambda sdp: FINGERPRINT.sub(lambda m: f"{m[1]} {other(m[2])}", sdp))

    def test_the_strongest_hash_counts(self):
        self.refuses(lambda sdp: FINGERPRINT.sub(lambda m: f"{m[1]} {other(m[2]) if m[1] == 'sha-512' else m[2]}", sdp))

    def test_one_of_several(self):
        self.takes(lambda sdp: FINGERPRINT.sub(lambda m: f"{m[1]} {other(m[2])}\r\na=fingerprint:{m[0]}", sdp))

    def test_in_any_case(self):
        self.takes(lambda sdp: FINGERPRINT.sub(lambda m: f"{m[1].upper()} {m[2].lower()}", sdp))


if __name__ == "__main__":
    tap.main()
