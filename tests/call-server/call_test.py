"""Calls of minicpmo-call-server by aiortc, a WebRTC implementation of its own. Environment: see running_server.py."""
import asyncio
import json
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import numpy  # noqa: E402
import tap  # noqa: E402
from aiortc import RTCSessionDescription  # noqa: E402
from aiortc_client import Client, samples_of  # noqa: E402
from running_server import SOURCE, Server, wait_for  # noqa: E402

SAMPLES = SOURCE / "tools/tiny/samples"
OSLO = "The capital of Norway is Oslo."

TOKEN = "secret-of-16-chars"
PAGE = "https://page.example"
# What OpenAI's library for JavaScript sends by itself, as soon as the channel is open.
LIBRARY_SESSION = {
    "type": "realtime", "instructions": "Answer in a word.", "model": "gpt-realtime", "output_modalities": ["audio"],
    "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000}, "noise_reduction": None,
                        "transcription": {"model": "gpt-4o-mini-transcribe"}, "turn_detection": {"type": "semantic_vad"}},
              "output": {"format": {"type": "audio/pcm", "rate": 24000}, "speed": 1}}}
BEGUN = ["response.created", "rate_limits.updated"]
SAID = ["response.output_item.added", "conversation.item.added", "response.content_part.added",
        "response.output_audio_transcript.delta"]
OVER = ["response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done",
        "conversation.item.done", "response.output_item.done", "response.done"]
# Every client event where it is out of place or incomplete, and the error's code.
REFUSED = [
    ({"type": "session.update"}, "missing_required_parameter"),
    ({"type": "session.update", "session": {"type": "realtime", "audio": {"output": {"voice": "marin"}}}}, "invalid_value"),
    ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "unsupported_event"),
    ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty"),
    ({"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "x", "output": "y"}}, "unsupported_parameter"),
    ({"type": "conversation.item.retrieve", "item_id": "item_x"}, "item_retrieve_invalid_item_id"),
    ({"type": "conversation.item.delete", "item_id": "item_x"}, "item_delete_invalid_item_id"),
    ({"type": "conversation.item.truncate", "item_id": "item_x", "content_index": 0, "audio_end_ms": 0}, "item_truncate_invalid_item_id"),
    ({"type": "response.create"}, "nothing_to_answer"),
    ({"type": "response.cancel"}, "response_cancel_not_active"),
    ({"type": "output_audio_buffer.clear"}, "output_audio_buffer_empty"),
    ({"type": "transcription_session.update"}, "invalid_value")]


def run(work):
    return asyncio.run(asyncio.wait_for(work, 180))


class Calls(tap.RealtimeTestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--offers-per-minute", "1000", "--max-calls", "9", "--connect-timeout", "5")
        cls.url = cls.server.url

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0, cls.server.log

    def tearDown(self):
        wait_for(lambda: self.server.calls() == 0, "all calls are over")

    def test_three_questions(self):
        async def call():
            client = Client(self.url)
            await client.call()
            answers = [await client.ask(SAMPLES / "q01_cap.wav") for _ in range(3)]
            sound = client.sound()
            self.assertEqual(await client.hang_up(), 200)
            return client, answers, sound
        client, answers, sound = run(call())
        self.assertEqual(answers, [OSLO] * 3)
        self.assertGreater(numpy.abs(sound.astype(int)).max(), 3000)
        kinds = [e["type"] for e in client.events]
        for before, after in [("session.created", "input_audio_buffer.speech_started"),
                              ("input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"),
                              ("input_audio_buffer.speech_stopped", "response.created"),
                              ("response.created", "response.output_audio_transcript.delta"),
                              ("response.output_audio_transcript.delta", "response.output_audio_transcript.done"),
                              ("response.output_audio_transcript.done", "response.done")]:
            self.assertLess(kinds.index(before), kinds.index(after), kinds)
        deltas = "".join(e["delta"] for e in client.of("response.output_audio_transcript.delta"))
        self.assertEqual(deltas.count("Oslo"), 3)
        self.assertEqual({e["response"]["status"] for e in client.of("response.done")}, {"completed"})
        self.assertEqual(client.of("error"), [])

    def test_speaking_into_an_answer_ends_it(self):
        async def call():
            client = Client(self.url, path="/v1/realtime/calls")
            await client.call()
            client.microphone.say(samples_of(SAMPLES / "q01_cap.wav"))
            await client.event("output_audio_buffer.started")
            client.microphone.say(samples_of(SAMPLES / "q01_cap.wav"))
            first = await client.event("response.done")
            await client.event("response.done", 2)
            await client.hang_up()
            return client, first
        client, first = run(call())
        self.assertEqual((first["response"]["status"], first["response"]["status_details"]["reason"]),
                         ("cancelled", "turn_detected"))
        self.assertEqual(client.transcripts()[-1], OSLO)

    def test_a_typed_question(self):
        async def call():
            client = Client(self.url)
            await client.call()
            client.send({"type": "conversation.item.create", "item": {
                "type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is the capital of Norway?"}]}})
            client.send({"type": "response.create"})
            await client.event("response.done")
            await client.hang_up()
            return client
        self.assertEqual(run(call()).transcripts(), [OSLO])

    def test_typed_and_spoken_questions(self):
        """In any order, and a spoken one into the answer of a typed one."""
        async def type_it(client):
            client.send({"type": "conversation.item.create", "item": {
                "type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is the capital of Norway?"}]}})
            client.send({"type": "response.create"})
            await client.event("output_audio_buffer.started", len(client.of("output_audio_buffer.started")) + 1)

        async def call():
            client = Client(self.url)
            await client.call()
            await type_it(client)
            await client.event("output_audio_buffer.stopped")
            self.assertEqual(await client.ask(SAMPLES / "q01_cap.wav"), OSLO)
            await type_it(client)
            client.microphone.say(samples_of(SAMPLES / "q01_cap.wav"))
            await client.event("response.done", 4)
            await client.event("output_audio_buffer.stopped", 3)
            await client.hang_up()
            return client
        client = run(call())
        self.assertEqual([e["response"]["status"] for e in client.of("response.done")], ["completed", "completed", "cancelled", "completed"])
        self.assertEqual(len(client.of("output_audio_buffer.cleared")), 1)
        self.assertEqual([client.transcripts()[i] for i in (0, 1, 3)], [OSLO] * 3)

    def test_eight_calls_at_once(self):
        async def one():
            client = Client(self.url)
            await client.call()
            answer = await client.ask(SAMPLES / "q01_cap.wav")
            await client.hang_up()
            return answer

        async def calls():
            return await asyncio.gather(*(one() for _ in range(8)))
        self.assertEqual(run(calls()), [OSLO] * 8)

    def test_a_caller_who_is_gone_harms_nobody(self):
        async def call():
            gone, client = Client(self.url), Client(self.url)
            await gone.call()
            await client.call()
            gone.microphone.say(samples_of(SAMPLES / "q01_cap.wav"))
            await gone.event("input_audio_buffer.speech_started")
            await gone.close()  # without a word to the server
            answer = await client.ask(SAMPLES / "q01_cap.wav")
            await client.hang_up()
            return answer
        self.assertEqual(run(call()), OSLO)

    def test_without_a_channel_one_can_talk(self):
        async def call():
            client = Client(self.url, channel=False)
            await client.call()
            client.microphone.say(samples_of(SAMPLES / "q01_cap.wav"))
            await client.until(lambda: numpy.abs(client.sound().astype(int)).max(initial=0) > 3000, "an answer")
            await client.hang_up()
        run(call())

    def test_an_answer_that_is_not_used_is_forgotten(self):
        async def call():
            client = Client(self.url)
            status, _, _ = client.post(await client.offer())
            self.assertEqual(status, 201)
            self.assertEqual(self.server.calls(), 1)
            await client.close()
        run(call())
        wait_for(lambda: self.server.calls() == 0, "it expired")

    def test_a_channel_that_is_never_opened(self):
        """Offered, but without an association of SCTP, or without the message that opens it: one can talk all the same."""
        async def nothing(*_):
            pass

        async def call(never: str):
            client = Client(self.url)
            setattr(client.connection.sctp, never, nothing)
            sdp = await client.offer()
            self.assertIn("webrtc-datachannel", sdp)
            status, headers, answer = await asyncio.to_thread(client.post, sdp)
            self.assertEqual(status, 201)
            client.location = headers["Location"]
            await client.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
            client.microphone.say(samples_of(SAMPLES / "q01_cap.wav"))
            await client.until(lambda: numpy.abs(client.sound().astype(int)).max(initial=0) > 3000, "an answer")
            self.assertEqual(client.channel.readyState, "connecting")
            self.assertEqual(await client.hang_up(), 200)
        for never in ("start", "_data_channel_flush"):
            run(call(never))
            wait_for(lambda: self.server.calls() == 0, "the call is over")


def form(**parts: str) -> bytes:
    return b"".join(f'--border\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
                    for name, value in parts.items()) + b"--border--\r\n"


class Library(Client):
    """As OpenAI's own library for JavaScript calls, from a page elsewhere."""

    def __init__(self, url: str, session: dict | None = None):
        super().__init__(url, "/v1/realtime/calls", Authorization=f"Bearer {TOKEN}", Origin=PAGE, **{"X-OpenAI-Agents-SDK": "0.1"})
        self.session = session

    def post(self, sdp: str):
        if self.session is None:
            return super().post(sdp)
        return super().post(sdp, form(sdp=sdp, session=json.dumps(self.session)), "multipart/form-data; boundary=border")

    async def answers(self, event: dict, kind: str) -> dict:
        """The event of this kind that comes of this one."""
        before = len(self.of(kind))
        self.send(event)
        return await self.event(kind, before + 1)

    def type_text(self, text: str) -> None:
        self.send({"type": "conversation.item.create", "item": {
            "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}})


class Conformance(tap.RealtimeTestCase):
    """The events of OpenAI's Realtime API over WebRTC, in the order that its clients rely on."""
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--offers-per-minute", "1000", "--token", TOKEN, "--origin", PAGE)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0, cls.server.log

    def comes(self, events: list[dict], *kinds: str) -> None:
        """These, in this order, and nothing else but more deltas, and sound that begins or ends."""
        once = [e["type"] for e in events if not e["type"].startswith("output_audio_buffer.")]
        once = [kind for i, kind in enumerate(once) if not kind.endswith(".delta") or kind not in once[:i]]
        self.assertEqual(once, list(kinds))

    def test_every_event(self):
        async def call():
            client = Library(self.server.url)
            await client.call()
            self.assertEqual([e["type"] for e in client.events], ["session.created"])
            self.assertTrue(client.location.split("/")[-1])
            await self.settings(client)
            await self.refusals(client)
            await self.a_spoken_question(client)
            await self.push_to_talk(client)
            await self.a_typed_question(client)
            await self.an_interruption(client)
            self.assertEqual(await client.hang_up(), 200)
            return client
        client = run(call())
        self.assertEqual(len({e["event_id"] for e in client.events}), len(client.events))
        self.assertEqual({e["type"] for e in client.events}, {
            "session.created", "session.updated", "error", "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed", "input_audio_buffer.cleared", "conversation.item.added", "conversation.item.done",
            "conversation.item.retrieved", "conversation.item.deleted", "conversation.item.truncated", "rate_limits.updated",
            "response.created", "response.done", "response.output_item.added", "response.output_item.done",
            "response.content_part.added", "response.content_part.done", "response.output_audio_transcript.delta",
            "response.output_audio_transcript.done", "response.output_audio.done", "output_audio_buffer.started",
            "output_audio_buffer.stopped", "output_audio_buffer.cleared"})

    async def settings(self, client: Library) -> None:
        session = (await client.answers({"type": "session.update", "session": LIBRARY_SESSION}, "session.updated"))["session"]
        self.assertEqual(session["instructions"], "Answer in a word.")
        self.assertEqual(session["audio"]["input"]["turn_detection"]["type"], "server_vad")
        await client.answers({"type": "session.update", "session": {"type": "realtime", "tracing": "auto"}}, "session.updated")
        self.assertEqual(client.of("error"), [])

    async def refusals(self, client: Library) -> None:
        begin = len(client.events)
        for i, (event, code) in enumerate(REFUSED):
            error = (await client.answers({**event, "event_id": f"mine_{i}"}, "error"))["error"]
            self.assertEqual((error["code"], error["event_id"], error["type"]), (code, f"mine_{i}", "invalid_request_error"), event)
        self.assertEqual({e["type"] for e in client.events[begin:]}, {"error"})  # nothing else came of them

    async def a_typed_question(self, client: Library) -> None:
        begin = len(client.events)
        written = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Never mind."}]}
        item = (await client.answers({"type": "conversation.item.create", "item": written}, "conversation.item.done"))["item"]
        self.assertEqual((item["role"], item["content"]), ("user", [{"type": "input_text", "text": "Never mind."}]))
        await client.answers({"type": "conversation.item.delete", "item_id": item["id"]}, "conversation.item.deleted")
        self.comes(client.events[begin:], "conversation.item.added", "conversation.item.done", "conversation.item.deleted")
        begin = len(client.events)
        client.type_text("What is the capital of Norway?")
        stopped = len(client.of("output_audio_buffer.stopped"))
        done = await client.answers({"type": "response.create", "response": {"metadata": {"topic": "towns"}}}, "response.done")
        await client.event("output_audio_buffer.stopped", stopped + 1)
        self.comes(client.events[begin:], "conversation.item.added", "conversation.item.done", *BEGUN, *SAID, *OVER)
        self.assertEqual((done["response"]["status"], done["response"]["metadata"]), ("completed", {"topic": "towns"}))
        self.assertEqual(client.transcripts()[-1], OSLO)

    async def a_spoken_question(self, client: Library) -> None:
        begin = len(client.events)
        await client.answers({"type": "input_audio_buffer.clear"}, "input_audio_buffer.cleared")
        self.assertEqual(await client.ask(SAMPLES / "q01_cap.wav"), OSLO)
        self.comes(client.events[begin:], "input_audio_buffer.cleared", "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped",
                   "input_audio_buffer.committed", "conversation.item.added", "conversation.item.done", *BEGUN, *SAID, *OVER)
        answer = client.of("response.done")[-1]["response"]["output"][0]
        truncate = {"type": "conversation.item.truncate", "item_id": answer["id"], "content_index": 0, "audio_end_ms": 10}
        self.assertEqual((await client.answers(truncate, "conversation.item.truncated"))["item_id"], answer["id"])
        error = await client.answers({**truncate, "audio_end_ms": 600000}, "error")
        self.assertEqual((error["error"]["code"], error["error"]["param"]), ("invalid_value", "audio_end_ms"))

    async def an_interruption(self, client: Library) -> None:
        """As a client's interrupt() does it; then it asks what is left of the answer."""
        begin, truncated = len(client.events), len(client.of("conversation.item.truncated"))
        started = len(client.of("output_audio_buffer.started"))
        client.type_text("What is the capital of Norway?")
        client.send({"type": "response.create"})
        await client.event("output_audio_buffer.started", started + 1)
        client.send({"type": "response.cancel"})
        client.send({"type": "output_audio_buffer.clear"})
        item = (await client.event("conversation.item.truncated", truncated + 1))["item_id"]
        answer = (await client.answers({"type": "conversation.item.retrieve", "item_id": item}, "conversation.item.retrieved"))["item"]
        self.assertTrue(OSLO.startswith(answer["content"][0]["transcript"].strip()), answer)
        kinds = [e["type"] for e in client.events[begin:]]
        self.assertLess(kinds.index("response.done"), kinds.index("output_audio_buffer.cleared"))
        self.assertLess(kinds.index("output_audio_buffer.cleared"), kinds.index("conversation.item.truncated"))
        self.assertNotIn("output_audio_buffer.stopped", kinds)

    async def push_to_talk(self, client: Library) -> None:
        session = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        await client.answers({"type": "session.update", "session": session}, "session.updated")
        begin = len(client.events)
        await client.answers({"type": "input_audio_buffer.clear"}, "input_audio_buffer.cleared")
        client.microphone.say(samples_of(SAMPLES / "q01_cap.wav"))
        await client.until(client.microphone.silent, "it is said")
        await client.answers({"type": "input_audio_buffer.commit"}, "input_audio_buffer.committed")
        self.assertEqual((await client.answers({"type": "input_audio_buffer.clear"}, "error"))["error"]["code"], "unsupported_mix")
        stopped = len(client.of("output_audio_buffer.stopped"))
        await client.answers({"type": "response.create"}, "response.done")
        await client.event("output_audio_buffer.stopped", stopped + 1)
        self.comes(client.events[begin:], "input_audio_buffer.cleared", "input_audio_buffer.committed", "conversation.item.added",
                   "conversation.item.done", "error", *BEGUN, *SAID, *OVER)
        self.assertEqual(client.transcripts()[-1], OSLO)

    def test_the_session_of_the_offer(self):
        """It holds from the start. What is wrong with it is told, and nothing of it is taken."""
        async def call(session: dict):
            client = Library(self.server.url, session)
            await client.call()
            await client.answers({"type": "input_audio_buffer.clear"}, "input_audio_buffer.cleared")
            await client.hang_up()
            return client.events
        session = {"type": "realtime", "model": "gpt-realtime", "instructions": "Sing.", "audio": {"output": {"voice": "default"}}}
        created, cleared = run(call(session))
        self.assertEqual((created["type"], created["session"]["instructions"]), ("session.created", "Sing."))
        session["audio"]["output"]["voice"] = "marin"
        created, error, cleared = run(call(session))
        self.assertNotEqual(created["session"]["instructions"], "Sing.")
        self.assertEqual((error["error"]["code"], error["error"]["param"]), ("invalid_value", "session.audio.output.voice"))


if __name__ == "__main__":
    tap.main()
