"""Callers of minicpmo-call-server that are not what they should be, by aiortc. Environment: see running_server.py."""
import asyncio
import json
import pathlib
import re
import signal
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import tap  # noqa: E402
from aiortc import RTCSessionDescription  # noqa: E402
from aiortc_client import Client, samples_of  # noqa: E402
from running_server import SOURCE, Server, wait_for  # noqa: E402
from webrtcbin_client import Client as Webrtcbin  # noqa: E402

SAMPLES = SOURCE / "tools/tiny/samples"
OSLO = "The capital of Norway is Oslo."
FINGERPRINT = re.compile(r"(?<=a=fingerprint:)(\S+) (\S+)")


def other(fingerprint: str) -> str:
    return f"{fingerprint[:-2]}{int(fingerprint[-2:], 16) ^ 1:02X}"


def run(work):
    return asyncio.run(asyncio.wait_for(work, 180))


class Case(tap.RealtimeTestCase):
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
        return self.server.metric("minicpmo_calls_total", f'end="{why}"')


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


CANDIDATE = re.compile(r"(a=candidate:\S+ 1) udp (\d+) \S+ \d+ typ host\r\n")


class Candidates(Case):
    arguments = ("--connect-timeout", "4")

    def test_nobody_there(self):
        for place in ("udp {} 1fdb64a9-aec1-4c2f-9676-95a6ec06f488.local 40000 typ host", "udp {} 2001:db8::1 40000 typ host",
                      "tcp {} 127.0.0.1 1 typ host tcptype passive", "tcp {} 127.0.0.1 9 typ host tcptype active"):
            async def call():
                client, before = Client(self.url), self.ended("unconnected")
                sdp = CANDIDATE.sub(lambda m: f"{m[1]} {place.format(m[2])}\r\n", await client.offer())
                self.assertIn(place.split()[-2], sdp)
                self.assertEqual(client.post(sdp)[0], 201)
                await self.ends("unconnected", before)
                await client.close()
            run(call())
            if place.startswith("udp {} 1fd"):
                before = self.left()
        self.assertEqual(self.left(), before)

    def left(self) -> tuple[int, int]:
        """Threads and descriptors, when they have stopped changing."""
        last = ()
        while (now := self.server.usage()[:2]) != last:
            last = now
            time.sleep(1)
        return now

    def test_hidden_or_useless_ones(self):
        """The caller finds the way itself, as browsers do that hide their addresses."""
        for place in ("udp {} 1fdb64a9-aec1-4c2f-9676-95a6ec06f488.local 40000 typ host",
                      "tcp {} 127.0.0.1 1 typ host tcptype passive"):
            run(self.talk(lambda sdp: CANDIDATE.sub(lambda m: f"{m[1]} {place.format(m[2])}\r\n", sdp)))

    def test_ipv6(self):
        def only(sdp: str) -> str:
            return CANDIDATE.sub(lambda m: m[0] if ":" in m[0].split()[4] else "", sdp)

        async def offer():
            client = Client(self.url)
            sdp = await client.offer()
            await client.close()
            return only(sdp)
        if "a=candidate:" not in run(offer()):
            self.skipTest("this machine has no IPv6 address")
        run(self.talk(only))

    async def talk(self, change) -> None:
        client = Client(self.url)
        await self.call(client, change)
        await client.event("session.created")
        self.assertEqual(await client.hang_up(), 200)


class Hostile(Case):
    arguments = ("--idle-timeout", "4")

    def still_answers(self, mischief, **of_client) -> Client:
        """A caller who is answered after some mischief."""
        async def call():
            client = Client(self.url, **of_client)
            await client.call()
            await mischief(client)
            self.assertEqual(await client.ask(SAMPLES / "q01_cap.wav"), OSLO)
            self.assertEqual(await client.hang_up(), 200)
            return client
        return run(call())

    def test_flood(self):
        async def flood(client):
            for _ in range(5000):
                client.channel.send('{"type": "response.create"}')
            await client.until(lambda: client.channel.bufferedAmount == 0, "all is sent")
            await asyncio.sleep(1.5)  # the second after which messages are read again
        client = self.still_answers(flood)
        self.assertLess(len(client.of("error")), 1000)
        self.assertIn("rate_limit_exceeded", [e["error"]["code"] for e in client.of("error")])

    def test_messages_that_are_no_events(self):
        async def send(client):
            client.channel.send(bytes(1000))
            client.channel.send("x" * 60000)
            await client.event("error")
        client = self.still_answers(send)
        self.assertEqual([e["error"]["code"] for e in client.of("error")], ["message_too_long"])

    def test_a_megabyte(self):
        async def call():
            client = Client(self.url)
            await client.call()
            client.connection.sctp._remote_max_message_size = 0  # the answer says 65536
            client.channel.send("x" * 1000000)
            await asyncio.sleep(1)
            await client.close()
        run(call())
        wait_for(lambda: self.server.calls() == 0, "the call is over")
        self.still_answers(nothing)

    def test_a_second_channel(self):
        async def open_another(client):
            other = client.connection.createDataChannel("another")
            heard = []
            other.on("message", heard.append)
            await client.until(lambda: other.readyState == "open", "another channel")
            other.send('{"type": "no such event"}')
            await asyncio.sleep(0.5)
            self.assertEqual(heard, [])
        self.assertEqual(self.still_answers(open_another).of("error"), [])

    def test_packets_of_no_codec(self):
        async def send(client):
            packets = Packets(client)
            packets.change = lambda p: p[:1] + bytes([p[1] & 0x80 | 35]) + p[2:]
            client.microphone.say(samples_of(SAMPLES / "q01_cap.wav"))
            await client.until(client.microphone.silent, "it is said")
            packets.change = None
            self.assertEqual(client.of("input_audio_buffer.speech_started"), [])
        self.still_answers(send)

    def test_another_source_in_the_middle(self):
        """It is not heard, and the call ends as one in which nobody speaks."""
        async def call():
            client, before = Client(self.url), self.ended("idle")
            await client.call()
            self.assertEqual(await client.ask(SAMPLES / "q01_cap.wav"), OSLO)
            Packets(client).change = lambda p: p[:8] + b"abcd" + p[12:]
            await self.ends("idle", before)
            await client.close()
        run(call())

    def test_killed_while_it_connects(self):
        for delay in (0, 0.05, 0.1, 0.2):
            with tempfile.TemporaryDirectory() as folder, Webrtcbin(self.url, pathlib.Path(folder) / "sound.raw"):
                wait_for(lambda: self.server.calls() == 1, "a call")
                time.sleep(delay)
            wait_for(lambda: self.server.calls() == 0, "the call is over")
        self.still_answers(nothing)


async def nothing(client: Client) -> None:
    pass


class Packets:
    """Changes the RTP packets that a client sends."""

    def __init__(self, client: Client):
        self.change = None
        transport = client.connection.getSenders()[0].transport
        send = transport._send_rtp

        async def changed(packet: bytes) -> None:
            rtcp = 192 <= packet[1] <= 223
            await send(self.change(packet) if self.change and not rtcp else packet)
        transport._send_rtp = changed


class Overload(tap.RealtimeTestCase):
    def test_a_gap_in_an_answer_keeps_new_calls_away(self):
        """The program stands still for longer than sound waits to be played: nothing is that slow by itself here."""
        async def call(server):
            client, other = Client(server.url), Client(server.url)
            await client.call()
            client.microphone.say(samples_of(SAMPLES / "q05_count.wav"))
            await client.event("output_audio_buffer.started")
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(3)
            server.process.send_signal(signal.SIGCONT)
            await asyncio.to_thread(wait_for, lambda: server.metric("minicpmo_sound_late_total") > 0, "late sound")
            offer = await other.offer()
            status, headers, body = await asyncio.to_thread(other.post, offer)
            self.assertEqual((status, json.loads(body)["error"]["code"]), (503, "overloaded"))
            self.assertEqual(headers["Retry-After"], "4")
            # The one that there is goes on, and others may come when it has been well for a while.
            await client.event("output_audio_buffer.stopped")
            await asyncio.to_thread(wait_for, lambda: other.post(offer)[0] == 201, "there is room again")
            self.assertEqual(await client.hang_up(), 200)
            await other.close()
        with Server("--late-pause", "4", "--offers-per-minute", "10000") as server:
            run(call(server))
            self.assertEqual(server.metric("minicpmo_offers_refused_total", 'reason="overload"') > 0, True)


class Ends(tap.RealtimeTestCase):
    def test_the_longest_call(self):
        """The client is told, rather than to find out."""
        async def call(url):
            client = Client(url)
            await client.call()
            begin = time.monotonic()
            await client.until(lambda: client.channel.readyState == "closed", "the channel is closed")
            await client.until(lambda: client.connection.connectionState == "closed", "the connection is closed")
            self.assertTrue(2 < time.monotonic() - begin < 10)
            await client.close()
        with Server("--max-call", "4") as server:
            run(call(server.url))
            self.assertEqual(server.metric("minicpmo_calls_total", 'end="too-long"'), 1)

    def test_silence(self):
        async def call(server):
            client = Client(server.url)
            await client.call()
            client.connection.getSenders()[0].replaceTrack(None)
            await client.until(lambda: client.channel.readyState == "closed", "the call is over")
            await client.close()
        with Server("--idle-timeout", "3") as server:
            run(call(server))
            self.assertEqual(server.metric("minicpmo_calls_total", 'end="idle"'), 1)

    def test_going_down_waits_for_an_answer(self):
        async def call(server):
            client = Client(server.url)
            await client.call()
            client.microphone.say(samples_of(SAMPLES / "q01_cap.wav"))
            await client.event("response.created")
            server.process.send_signal(signal.SIGTERM)
            late = Client(server.url)
            status, headers, body = await asyncio.to_thread(late.post, await late.offer())
            self.assertEqual((status, json.loads(body)["error"]["code"]), (503, "draining"))
            self.assertIn("Retry-After", headers)
            await client.event("output_audio_buffer.stopped")
            await client.until(lambda: client.channel.readyState == "closed", "the call is over")
            await late.close()
            await client.close()
            return client
        with Server() as server:
            client = run(call(server))
            self.assertEqual(server.process.wait(60), 0)
        self.assertEqual(client.transcripts(), [OSLO])
        self.assertEqual(client.of("response.done")[0]["response"]["status"], "completed")


if __name__ == "__main__":
    tap.main()
