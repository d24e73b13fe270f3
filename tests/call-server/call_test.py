"""Calls of minicpmo-call-server by aiortc, a WebRTC implementation of its own. Environment: see running_server.py."""
import asyncio
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import numpy  # noqa: E402
import tap  # noqa: E402
from aiortc_client import Client, samples_of  # noqa: E402
from running_server import SOURCE, Server, wait_for  # noqa: E402

SAMPLES = SOURCE / "tools/tiny/samples"
OSLO = "The capital of Norway is Oslo."


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


if __name__ == "__main__":
    tap.main()
