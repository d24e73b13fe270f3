"""Calls of minicpmo-call-server by webrtcbin. Environment: see running_server.py, and WEBRTCBIN_CLIENT, the program."""
import difflib
import json
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import numpy  # noqa: E402
import tap  # noqa: E402
from running_server import SOURCE, Server, wait_for  # noqa: E402
from webrtcbin_client import RATE, Client  # noqa: E402

sys.path.insert(0, str(SOURCE / "tools/tiny/evaluate"))
from recogniser import Recogniser, words  # noqa: E402

SAMPLES = SOURCE / "tools/tiny/samples"
REPLIES = {r["file"]: r["expected_reply"] for r in json.loads((SAMPLES / "list.json").read_text())}
CAPITAL, COUNT, LIGHT_BULB = "q01_cap.wav", "q05_count.wav", "q02_gk.wav"


class Webrtcbin(tap.RealtimeTestCase):
    def test_three_turns_with_a_barge_in(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        server = self.enterContext(Server("--max-calls", "1"))
        client = self.enterContext(Client(server.url, folder / "sound.raw"))
        client.event("session.created")
        client.say(SAMPLES / CAPITAL)
        client.event("output_audio_buffer.stopped")
        client.say(SAMPLES / COUNT)
        client.event("output_audio_buffer.started", 2)
        client.say(SAMPLES / LIGHT_BULB)
        client.event("output_audio_buffer.cleared")
        client.event("output_audio_buffer.stopped", 2)
        time.sleep(0.5)  # of sound that is under way
        self.assertEqual(client.hang_up(), 200)
        wait_for(lambda: server.calls() == 0, "the call is over")
        self.check_events(client)
        self.check_sound(client)

    def test_the_caller_is_the_dtls_client(self):
        """aiortc cannot be one: webrtcbin has an RSA key, and none of its ciphers is for that."""
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        server = self.enterContext(Server())
        client = self.enterContext(Client(server.url, folder / "sound.raw", "a=setup:active"))
        client.event("session.created")
        self.assertEqual(client.hang_up(), 200)
        other = "a=setup:active\r\na=fingerprint:sha-512 " + ":".join(["AB"] * 64)
        client = self.enterContext(Client(server.url, folder / "other.raw", other))
        wait_for(lambda: any("a=fingerprint" in line for line in server.log), "the call is refused")
        self.assertEqual(client.told, [])
        self.assertEqual((folder / "other.raw").read_bytes(), b"")

    def check_events(self, client: Client):
        self.assertEqual(client.of("error"), [])
        self.assertEqual([e["response"]["status"] for e in client.of("response.done")], ["completed", "cancelled", "completed"])
        captions = [e["transcript"].strip() for e in client.of("response.output_audio_transcript.done")]
        self.assertEqual((captions[0], captions[-1]), (REPLIES[CAPITAL], REPLIES[LIGHT_BULB]))
        self.assertTrue(REPLIES[COUNT].startswith(captions[1]), captions)
        for kind in ("input_audio_buffer.speech_started", "input_audio_buffer.committed", "response.created"):
            self.assertEqual(len(client.of(kind)), 3, kind)

    def check_sound(self, client: Client):
        started = [e["at"] for e in client.of("output_audio_buffer.started")]
        first, third = client.of("output_audio_buffer.stopped")
        cleared = client.of("output_audio_buffer.cleared")[0]["at"]
        recogniser = Recogniser()
        for begin, end, question in ((started[0], first["at"], CAPITAL), (started[2], third["at"], LIGHT_BULB)):
            heard = recogniser.hear(client.sound(begin - 0.2, end + 0.4), RATE)
            print(f"# heard: {' '.join(heard)}")
            self.assertGreaterEqual(difflib.SequenceMatcher(None, heard, words(REPLIES[question])).ratio(), 0.5, heard)
        interrupted = numpy.abs(client.sound(started[1], cleared).astype(int))
        self.assertGreater(interrupted.max(), 3000)
        # After what was on its way there is silence until the next answer.
        silence = numpy.abs(client.sound(cleared + 0.5, started[2] - 0.1).astype(int))
        self.assertGreater(len(silence), RATE // 2)
        self.assertLess(silence.max(), 300)


if __name__ == "__main__":
    tap.main()
