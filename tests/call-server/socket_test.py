"""Calls of minicpmo-call-server over WebSockets, by aiohttp. Environment: see running_server.py."""
import asyncio
import base64
import pathlib
import socket
import sys
import time
import unittest
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import aiohttp  # noqa: E402
import numpy  # noqa: E402
import tap  # noqa: E402
from running_server import SOURCE, Server, wait_for  # noqa: E402
from socket_client import BLOCK, PATH, RATE, Client, samples_of  # noqa: E402

sys.path.insert(0, str(SOURCE / "tools/tiny/evaluate"))
from recogniser import Recogniser  # noqa: E402

SAMPLES = SOURCE / "tools/tiny/samples"
CAPITAL, COUNT = SAMPLES / "q01_cap.wav", SAMPLES / "q05_count.wav"
OSLO = "The capital of Norway is Oslo."
MANUAL = {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}}}
QUESTION = {"type": "conversation.item.create", "item": {
    "type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is the capital of Norway?"}]}}
# Of a spoken turn that is answered to its end, each at its first place.
ORDER = ["session.created", "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
         "conversation.item.added", "response.created", "response.output_item.added", "response.content_part.added",
         "response.output_audio_transcript.delta", "response.output_audio.delta", "response.output_audio.done",
         "response.output_audio_transcript.done", "response.content_part.done", "response.output_item.done", "response.done"]


def run(work):
    return asyncio.run(asyncio.wait_for(work, 180))


class Calls(tap.RealtimeTestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--offers-per-minute", "1000", "--max-calls", "9")
        cls.url = cls.server.url

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0, cls.server.log

    def tearDown(self):
        wait_for(lambda: self.server.calls() == 0, "all calls are over")

    def test_three_questions(self):
        async def call():
            async with Client(self.url) as client:
                for _ in range(3):
                    self.assertEqual(await client.ask(CAPITAL), OSLO)
                return client
        client = run(call())
        kinds = client.kinds()
        places = [kinds.index(kind) for kind in ORDER]
        self.assertEqual(places, sorted(places), kinds)
        self.assertEqual({e["response"]["status"] for e in client.of("response.done")}, {"completed"})
        self.assertEqual(client.of("error"), [])
        recogniser = Recogniser()
        for response in range(3):
            sound = client.sound(response)
            self.assertGreater(len(sound), 1.5 * RATE)
            self.assertGreater(numpy.abs(sound.astype(int)).max(), 3000)
            self.assertIn("norway", " ".join(recogniser.hear(sound, RATE)))

    def test_sound_comes_no_more_than_a_second_before_its_time(self):
        async def call():
            async with Client(self.url) as client:
                await client.ask(COUNT)
                return client
        client = run(call())
        parts = [(t, len(base64.b64decode(e["delta"])) / 2 / RATE) for e, t in zip(client.events, client.times)
                 if e["type"] == "response.output_audio.delta"]
        begin, sent = parts[0][0], 0.0
        for at, seconds in parts:
            self.assertLess(sent - (at - begin), 1.0, "how far it is ahead")
            sent += seconds
        self.assertGreater(sent, 4)

    def test_speaking_into_an_answer_ends_it(self):
        async def call():
            async with Client(self.url) as client:
                client.say(samples_of(COUNT))
                await client.event("response.output_audio.delta")
                await asyncio.sleep(1)
                client.say(samples_of(CAPITAL))
                first = await client.event("response.done")
                cleared = await client.event("output_audio_buffer.cleared")
                cut = await client.event("conversation.item.truncated")
                self.assertEqual(cleared["response_id"], first["response"]["id"])
                self.assertTrue(500 < cut["audio_end_ms"] < 5000, cut)
                await client.event("response.done", 2)
                return client, first
        client, first = run(call())
        self.assertEqual((first["response"]["status"], first["response"]["status_details"]["reason"]),
                         ("cancelled", "turn_detected"))
        self.assertEqual(client.transcripts()[-1], OSLO)
        # Nothing of the first answer after it was ended.
        over = client.events.index(first)
        late = [e for e in client.events[over:] if e["type"] == "response.output_audio.delta"
                and e["response_id"] == first["response"]["id"]]
        self.assertEqual(late, [])

    def test_a_typed_question(self):
        async def call():
            async with Client(self.url, microphone=False) as client:
                await client.send(QUESTION)
                await client.send({"type": "response.create"})
                done = await client.event("response.done")
                return client, done
        client, done = run(call())
        self.assertEqual(done["response"]["status"], "completed")
        self.assertEqual(client.transcripts(), [OSLO])
        self.assertGreater(len(client.sound()), RATE)

    def test_push_to_talk_as_fast_as_it_can_be_sent(self):
        async def call():
            async with Client(self.url, microphone=False) as client:
                await client.send(MANUAL)
                await client.event("session.updated")
                self.assertEqual((await client.error({"type": "input_audio_buffer.commit"}))[0], "input_audio_buffer_commit_empty")
                for turn in (1, 2):
                    question = samples_of(CAPITAL)
                    for at in range(0, len(question), 10 * BLOCK):
                        await client.append(question[at:at + 10 * BLOCK])
                    await client.send({"type": "input_audio_buffer.commit"})
                    await client.event("input_audio_buffer.committed", turn)
                    self.assertEqual((await client.error({"type": "input_audio_buffer.append", "audio": "AAAAAAAA"}))[0], "unsupported_mix")
                    await client.send({"type": "response.create"})
                    await client.event("response.done", turn)
                # What is thrown away is not heard.
                await client.append(samples_of(COUNT))
                await client.send({"type": "input_audio_buffer.clear"})
                await client.event("input_audio_buffer.cleared")
                self.assertEqual((await client.error({"type": "input_audio_buffer.commit"}))[0], "input_audio_buffer_commit_empty")
                await client.append(samples_of(CAPITAL))
                await client.send({"type": "input_audio_buffer.commit"})
                await client.send({"type": "response.create"})
                await client.event("response.done", 3)
                return client
        client = run(call())
        self.assertEqual(client.transcripts(), [OSLO] * 3)
        self.assertEqual(client.of("input_audio_buffer.speech_started"), [])

    def test_a_committed_turn_does_not_wait_for_silence(self):
        async def call():
            async with Client(self.url, microphone=False) as client:
                await client.append(samples_of(CAPITAL))
                await client.event("input_audio_buffer.speech_started")
                await client.send({"type": "input_audio_buffer.commit"})
                await client.event("response.done")
                return client
        self.assertEqual(run(call()).transcripts(), [OSLO])

    def test_names_from_before(self):
        async def call(*protocols, **headers):
            async with Client(self.url, *protocols, **headers) as client:
                client.say(samples_of(CAPITAL))
                await client.event("response.done")
                return client
        for protocols, headers in ((["realtime", "openai-beta.realtime-v1"], {}), ([], {"OpenAI_Beta": "realtime=v1"})):
            client = run(call(*protocols, **headers))
            self.assertIn("response.audio.delta", client.kinds())
            self.assertIn("response.audio_transcript.done", client.kinds())
            self.assertEqual(client.events[0]["session"]["modalities"], ["audio", "text"])

    def test_sound_that_is_none(self):
        def append(audio):
            return {"type": "input_audio_buffer.append", "audio": audio}

        async def call():
            async with Client(self.url, microphone=False) as client:
                for event, code in ((append("!!!!"), "invalid_value"), (append("AAA"), "invalid_value"), (append("AA=A"), "invalid_value"),
                                    (append("AA=="), "invalid_value"), (append(7), "invalid_type"), (append(None), "invalid_type"),
                                    ({"type": "input_audio_buffer.append"}, "missing_required_parameter"),
                                    ("{", "invalid_json"), ("[]", "invalid_json"),
                                    ({"type": "session.update", "session": {}, "x": "y" * 20000}, "message_too_long")):
                    self.assertEqual((await client.error(event))[0], code, event)
                await client.append(samples_of(CAPITAL))  # it goes on
                await client.append(numpy.zeros(RATE, numpy.int16))
                await client.event("response.done")
                return client
        self.assertEqual(run(call()).transcripts(), [OSLO])

    def test_more_sound_than_fits(self):
        async def call():
            async with Client(self.url, microphone=False) as client:
                second = numpy.zeros(RATE, numpy.int16)
                for _ in range(90):
                    await client.append(second)
                told = (await client.event("error"))["error"]["code"]
                self.assertIn(told, ("input_audio_buffer_full", "rate_limit_exceeded"))
        run(call())

    def test_closed_for_what_it_sent(self):
        async def call(send):
            async with Client(self.url, microphone=False) as client:
                await send(client.socket)
                return await client.closed()

        self.assertEqual(run(call(lambda s: s.send_bytes(b"1234"))), 1003)
        # What it still sends may cut the connection before the code is read.
        self.assertIn(run(call(lambda s: s.send_str("x" * 300000))), (1009, 1006))

    def test_a_client_that_vanishes(self):
        async def call():
            client = Client(self.url)
            await client.__aenter__()
            client.socket._response.connection.transport.abort()
            for task in client.tasks:
                task.cancel()
            await client.session.close()
        run(call())
        wait_for(lambda: self.server.calls() == 0, "the call is over", 10)

    def test_eight_at_once(self):
        async def one(client):
            return await client.ask(CAPITAL)

        async def all_of_them():
            async with asyncio.TaskGroup() as group:
                async def call():
                    async with Client(self.url) as client:
                        return await client.ask(CAPITAL)
                tasks = [group.create_task(call()) for _ in range(8)]
            return [t.result() for t in tasks]
        self.assertEqual(run(all_of_them()), [OSLO] * 8)


class RawSocket:
    """A WebSocket by hand, for what no library sends."""

    def __init__(self, url: str, receive_buffer: int = 0):
        place = urllib.parse.urlsplit(url)
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect((place.hostname, place.port))
        self.socket.settimeout(30)
        self.socket.sendall(f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                            "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n".encode())
        self.head = b""
        while b"\r\n\r\n" not in self.head:
            self.head += self.socket.recv(1)

    def frame(self, opcode: int, data: bytes, final: bool = True) -> None:
        length = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0x80 | 126]) + len(data).to_bytes(2, "big")
        self.socket.sendall(bytes([0x80 * final | opcode]) + length + bytes(4) + data)


class Limits(unittest.TestCase):
    def server(self, *arguments: str) -> Server:
        return self.enterContext(Server("--offers-per-minute", "1000", *arguments))

    def refused(self, url: str, *protocols: str, **headers: str) -> tuple[int, dict]:
        async def call():
            async with Client(url, *protocols, **headers):
                raise AssertionError("it was let in")
        try:
            run(call())
        except aiohttp.WSServerHandshakeError as e:
            return e.status, e.headers

    def test_longest_speech(self):
        async def call():
            async with Client(self.server("--max-codes", "50").url) as client:
                await client.ask(COUNT)
                return client.sound()
        # 4 s without a limit.
        self.assertEqual(len(run(call())), 50 * 512)

    def test_who_is_let_in(self):
        async def call(*protocols, **headers):
            async with Client(server.url, *protocols, **headers) as client:
                return client.socket.protocol
        server = self.server("--token", "right", "--origin", "https://page.example")
        for protocols, headers in (((), {}), ((), {"Authorization": "Bearer wrong"}), (("realtime",), {}),
                                   (("realtime", "openai-insecure-api-key.wrong"), {})):
            self.assertEqual(self.refused(server.url, *protocols, **headers)[0], 401)
        self.assertEqual(self.refused(server.url, Authorization="Bearer right", Origin="https://evil.example")[0], 403)
        self.assertIsNone(run(call(Authorization="Bearer right")))
        self.assertEqual(run(call("realtime", "openai-insecure-api-key.right", Origin="https://page.example")), "realtime")
        self.assertNotIn("right", "".join(server.log))

    def test_a_page_that_has_this_address_by_another_name(self):
        self.assertEqual(self.refused(self.server().url, Host="evil.example")[0], 403)

    def test_no_websocket(self):
        server = self.server()
        self.assertEqual(server.error("GET", PATH), (426, "websocket_required"))
        self.assertEqual(server.error("POST", PATH, "x", Connection="Upgrade", Upgrade="websocket"), (426, "websocket_required"))
        self.assertEqual(server.error("GET", "/v1/realtime/calls")[0], 405)
        self.assertEqual(server.error("GET", "/v1/realtime/other", Connection="Upgrade", Upgrade="websocket")[0], 404)
        self.assertEqual(server.calls(), 0)

    def test_full_and_too_many(self):
        async def call():
            async with Client(server.url, microphone=False):
                return await asyncio.to_thread(lambda: (self.refused(server.url), server.error("GET", PATH)))
        server = self.server("--max-calls", "1")
        (status, headers), without_upgrade = run(call())
        self.assertEqual(status, 503)
        # What browsers do not tell a page that asked for a WebSocket.
        self.assertEqual(without_upgrade, (503, "server_full"))
        self.assertGreaterEqual(int(headers["Retry-After"]), 1)
        server = self.enterContext(Server("--offers-per-minute", "1"))
        run(self.hang_up(server.url))
        status, headers = self.refused(server.url)
        self.assertEqual(status, 429)
        self.assertGreaterEqual(int(headers["Retry-After"]), 1)

    async def hang_up(self, url: str) -> None:
        async with Client(url, microphone=False):
            pass

    def closed(self, url: str, microphone: bool = False) -> tuple[int, float]:
        async def call():
            async with Client(url, microphone=microphone) as client:
                began = time.monotonic()
                return await client.closed(), time.monotonic() - began
        return run(call())

    def test_a_call_that_lasts_too_long(self):
        code, seconds = self.closed(self.server("--max-call", "2").url, microphone=True)
        self.assertEqual(code, 1000)
        self.assertTrue(1 < seconds < 10, seconds)

    def test_a_silent_client_that_answers_is_not_idle(self):
        code, seconds = self.closed(self.server("--idle-timeout", "3", "--max-call", "8").url)
        self.assertEqual(code, 1000)
        self.assertGreater(seconds, 6)

    def test_a_client_that_does_not_answer(self):
        server = self.server("--idle-timeout", "2")
        raw = RawSocket(server.url)
        wait_for(lambda: server.calls() == 1, "the call")
        wait_for(lambda: server.calls() == 0, "the call is over", 20)
        self.assertEqual(server.metric("minicpmo_calls_total", 'end="idle"'), 1)
        raw.socket.close()

    def test_drain(self):
        async def call():
            async with Client(server.url) as client:
                client.say(samples_of(CAPITAL))
                await client.event("response.output_audio.delta")
                stopped = asyncio.create_task(asyncio.to_thread(server.stop))
                code = await client.closed()
                return client, code, await stopped
        server = self.server()
        client, code, status = run(call())
        self.assertEqual((code, status), (1001, 0))
        self.assertEqual(client.of("response.done")[0]["response"]["status"], "completed")
        self.assertGreater(len(client.sound()), 1.5 * RATE)

    def test_nothing_is_unpacked(self):
        raw = RawSocket(self.server().url)
        self.assertIn(b" 101 ", raw.head)
        self.assertNotIn(b"deflate", raw.head.lower())

    def test_a_message_without_an_end(self):
        server = self.server()
        run(self.hang_up(server.url))
        raw = RawSocket(server.url)
        time.sleep(1)  # a call takes memory, too
        before = server.usage()[2]
        with self.assertRaises((BrokenPipeError, ConnectionResetError)):
            raw.frame(1, b'{"', final=False)
            for _ in range(3000):
                raw.frame(0, b"x" * 50000, final=False)
                time.sleep(0.002)
        self.assertLess(server.usage()[2] - before, 32 << 20)
        wait_for(lambda: server.calls() == 0, "the call is over")

    def test_a_client_that_does_not_read(self):
        server = self.server()
        raw = RawSocket(server.url, receive_buffer=4096)
        raw.frame(1, b'{"type":"conversation.item.create","item":{"id":"long","type":"message","role":"user","content":'
                     b'[{"type":"input_text","text":"' + b"x" * 14000 + b'"}]}}')
        end = time.monotonic() + 60
        try:
            while time.monotonic() < end and server.calls():
                for _ in range(25):
                    raw.frame(1, b'{"type":"conversation.item.retrieve","item_id":"long"}')
                time.sleep(0.5)
        except (BrokenPipeError, ConnectionResetError):
            pass
        wait_for(lambda: server.calls() == 0, "the call is over")
        self.assertEqual(server.metric("minicpmo_calls_total", 'end="slow"'), 1)


if __name__ == "__main__":
    tap.main()
