"""Calls through a TURN server (coturn), and what a STUN server adds. Environment: see running_server.py."""
import asyncio
import pathlib
import re
import socket
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import tap  # noqa: E402
from aiortc import RTCSessionDescription  # noqa: E402
from aiortc_client import Client  # noqa: E402
from running_server import Server, wait_for  # noqa: E402

QUESTION, OSLO = "What is the capital of Norway?", "The capital of Norway is Oslo."


def own_address() -> str:
    """One that is not the loopback's: libnice offers no candidates there. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("192.0.2.1", 9))
        return s.getsockname()[0]


class Coturn:
    """turnserver of Debian's package coturn, with one user, and neither files nor TLS."""

    def __init__(self, address: str):
        with socket.socket() as s:
            s.bind((address, 0))
            self.place = f"{address}:{s.getsockname()[1]}"
        self.folder = tempfile.TemporaryDirectory()
        log = f"{self.folder.name}/log"
        self.process = subprocess.Popen(
            ["turnserver", "-n", "--no-tls", "--no-dtls", "--no-cli", "--simple-log", "--log-file", log, "--verbose",
             "--pidfile", f"{self.folder.name}/pid", "--userdb", f"{self.folder.name}/db", "--lt-cred-mech", "--user", "caller:pass",
             "--realm", "example.org", "--allow-loopback-peers", "-L", address, "-E", address, "-p", self.place.split(":")[1]],
            stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        self.log = pathlib.Path(log)
        wait_for(lambda: self.log.exists() and "listener opened" in self.log.read_text(), "coturn listens")

    def said(self) -> str:
        return self.log.read_text()

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.folder.cleanup()


def candidates(sdp: str) -> list[tuple[str, str, str]]:
    """Type, protocol and address:port of each."""
    return [(kind, protocol.lower(), f"{address}:{port}") for protocol, address, port, kind in
            re.findall(r"a=candidate:\S+ \d (\S+) \d+ (\S+) (\d+) typ (\S+)", sdp)]


class Through(Client):
    """Knows candidates of the server of these types only."""

    async def call(self, *kinds: str) -> str:
        status, headers, answer = await asyncio.to_thread(self.post, await self.offer())
        assert status == 201, (status, answer)
        self.location = headers["Location"]
        kept = [line for line in answer.splitlines(keepends=True)
                if not line.startswith("a=candidate") or re.search(r" typ (\S+)", line)[1] in kinds]
        await self.connection.setRemoteDescription(RTCSessionDescription("".join(kept), "answer"))
        await self.until(lambda: self.connection.connectionState in ("connected", "failed"), "a connection or none")
        return answer

    async def ask_in_writing(self) -> str:
        await self.event("session.created")
        self.send({"type": "conversation.item.create", "item": {
            "type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}})
        self.send({"type": "response.create"})
        await self.event("output_audio_buffer.stopped")
        return self.transcripts()[-1]


class Relayed(tap.RealtimeTestCase):
    def setUp(self):
        self.coturn = Coturn(own_address())
        self.addCleanup(self.coturn.stop)

    def server(self, *arguments: str) -> Server:
        return self.enterContext(Server("--offers-per-minute", "1000", *arguments))

    def test_the_answer_comes_through_turn(self):
        server = self.server("--turn-server", f"turn://caller:pass@{self.coturn.place}?transport=udp")

        async def call():
            client = Through(server.url)
            answer = await client.call("relay")
            text, sound = await client.ask_in_writing(), client.sound()
            await client.hang_up()
            return answer, text, sound
        answer, text, sound = asyncio.run(asyncio.wait_for(call(), 120))
        self.assertIn("relay", [c[0] for c in candidates(answer)])
        self.assertEqual(text, OSLO)
        self.assertGreater(abs(sound.astype(int)).max(), 3000)
        self.assertIn("ALLOCATE processed, success", self.coturn.said())
        wait_for(lambda: server.calls() == 0, "the call is over")

    def test_without_the_password_there_is_no_relay(self):
        server = self.server("--turn-server", f"turn://caller:wrong@{self.coturn.place}?transport=udp")

        async def call():
            client = Through(server.url)
            answer = await client.call("host")
            text = await client.ask_in_writing()
            await client.hang_up()
            return answer, text
        answer, text = asyncio.run(asyncio.wait_for(call(), 120))
        self.assertEqual({c[0] for c in candidates(answer)}, {"host"})
        self.assertEqual(text, OSLO)  # nobody is harmed who needs no relay


class Stun(asyncio.DatagramProtocol):
    """Tells everybody that it looks like 198.51.100.7:4000 from outside."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        # A binding response with a MAPPED-ADDRESS: libnice asks in the way of RFC 3489, without a magic cookie.
        self.transport.sendto(struct.pack("!HH16sHHBBH4s", 0x101, 12, data[4:20], 1, 8, 0, 1, 4000,
                                          socket.inet_aton("198.51.100.7")), address)


class Reflected(tap.RealtimeTestCase):
    def test_the_answer_tells_the_address_that_stun_sees(self):
        async def call():
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(Stun, (own_address(), 0))
            host, port = transport.get_extra_info("sockname")
            server = await asyncio.to_thread(lambda: self.enterContext(Server("--stun-server", f"stun://{host}:{port}")))
            client = Through(await asyncio.to_thread(lambda: server.url))
            answer = await client.call("host", "srflx")
            self.assertEqual(await client.ask_in_writing(), OSLO)
            await client.hang_up()
            transport.close()
            return answer
        self.assertIn(("srflx", "udp", "198.51.100.7:4000"), candidates(asyncio.run(asyncio.wait_for(call(), 120))))


if __name__ == "__main__":
    tap.main()
