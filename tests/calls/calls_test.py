"""Each conversation of pipelines/ over loopback, with the synthetic caller: words, sound, RTP, interruptions.

Environment: SOURCE, CALLER, as conversation.py says. Needs numpy, scipy and pocketsphinx.
"""
import json
import os
import pathlib
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ["SOURCE"])
sys.path[:0] = [str(SOURCE / p) for p in ("tests/support", "tools/tiny/evaluate", "tools/tiny/training")]
import tap  # noqa: E402
from conversation import Conversation, call, free_ports, opus  # noqa: E402

SAMPLES = SOURCE / "tools/tiny/samples"
REPLIES = {r["file"]: r["expected_reply"] for r in json.loads((SAMPLES / "list.json").read_text())}
CAPITAL, LIGHT_BULB, SPELL = "q01_cap.wav", "q02_gk.wav", "q04_spell.wav"
# A machine that holds this program up for longer than this holds the pipeline up, too: no gap is the pipeline's fault then.
LATE_MS = 100
OPUS_RECEIVER = ("udpsrc port={port} caps=\"application/x-rtp,media=audio,encoding-name=OPUS,clock-rate=48000,payload=96\" "
                 "! rtpjitterbuffer latency=60 do-lost=true ! rtpopusdepay ! opusdec plc=true")


def said(*names: str) -> list[str]:
    return [str(SAMPLES / n) for n in names]


class Call(unittest.TestCase):
    def check_words(self, conversation, *names: str):
        self.assertEqual(conversation.texts(), [REPLIES[n] for n in names], conversation.output)

    def check_answer(self, report: dict, turn: dict):
        self.assertTrue(turn["answered"], turn)
        self.assertEqual(turn["cut_in"], 0, turn)
        self.assertGreater(turn["first_packet_ms"], 0)
        if report["sent"]["latest_ms"] < LATE_MS:
            self.assertEqual(turn["gaps"], [], report["sent"])
        print(f"# {os.path.basename(turn['file'])}: first packet after {turn['first_packet_ms']:.0f} ms, "
              f"{turn['seconds']:.2f} s, longest gap between packets {turn['longest_packet_gap_ms']:.0f} ms")

    def check_stream(self, report: dict):
        stream = report["stream"]
        self.assertEqual((stream["lost"], stream["late"], stream["duplicates"], stream["sources"]), (0, 0, 0, 1), stream)
        # The encoder's first packet is shorter by what the encoder needs to get going.
        self.assertLessEqual(stream["timestamp_jumps"], 1, stream)
        self.assertLess(abs(stream["drift_ms"]), 20, stream)
        print(f"# stream: {stream}")

    def hear(self, wav: pathlib.Path, turn: dict) -> list[str]:
        from recogniser import Recogniser
        from scipy.io import wavfile
        rate, samples = wavfile.read(wav)
        part = slice(int((turn["answer"]["from"] - 0.2) * rate), int((turn["answer"]["to"] + 0.2) * rate))
        return Recogniser().hear(samples[part], rate)


class Opus(Call):
    def test_three_turns_with_an_interruption(self):
        conversation, arguments = opus()
        with conversation, tempfile.TemporaryDirectory() as folder:
            wav = pathlib.Path(folder) / "call.wav"
            report, problems, status = call(*arguments, "--interrupt-after", "-,600,-", "--record", wav,
                                            *said(CAPITAL, LIGHT_BULB, SPELL))
            self.assertEqual((status, problems), (0, ""), conversation.output)
            self.check_words(conversation, CAPITAL, LIGHT_BULB, SPELL)
            first, second, third = report["turns"]
            for turn in report["turns"]:
                self.check_answer(report, turn)
            self.check_stream(report)
            self.assertAlmostEqual(first["seconds"], 2.0, delta=0.1)
            self.assertAlmostEqual(third["seconds"], 1.68, delta=0.3)
            from recogniser import edits, words
            for turn, name in ((first, CAPITAL), (third, SPELL)):
                heard, right = self.hear(wav, turn), words(REPLIES[name])
                print(f"# heard: {' '.join(heard)}")
                self.assertLessEqual(edits(heard, right), len(right) / 2, heard)
        old = second["interrupted"]["old_sound_ms"]
        print(f"# the old answer went on for {old:.0f} ms after the first voice")
        self.assertGreater(second["interrupted"]["after_ms"], 500)
        self.assertGreater(old, 0)
        # All of it would have been 2.04 s: more than a second less.
        self.assertLess(second["seconds"] + old / 1000, 1.6 if report["sent"]["latest_ms"] < LATE_MS else 2)


class Others(Call):
    def converse(self, script: str, before: list[str], arguments: list[str], names: list[str], **environment: str):
        here, there = free_ports(2)
        environment = {k: v.format(port=here, peer=there) for k, v in environment.items()}
        ports = [] if environment else [str(here), "127.0.0.1", str(there)]
        with Conversation(script, *before, *ports, listen=here, **environment) as conversation:
            report, problems, status = call("--to", f"127.0.0.1:{here}", "--listen", there, *arguments, *said(*names))
            self.assertEqual((status, problems), (0, ""), conversation.output)
            self.check_words(conversation, *names)
        for turn in report["turns"]:
            self.check_answer(report, turn)
        self.check_stream(report)
        return report

    def test_pcmu(self):
        report = self.converse("call-rtp-pcmu", [], ["--pcmu"], [CAPITAL, LIGHT_BULB])
        self.assertAlmostEqual(report["turns"][0]["seconds"], 2.0, delta=0.1)

    def test_srtp(self):
        key = os.urandom(30).hex()
        self.converse("call-srtp", [key], ["--srtp-key", key], [CAPITAL])

    def test_srtp_does_not_hear_a_caller_with_another_key(self):
        here, there = free_ports(2)
        # The caller hears nothing of what it cannot decrypt, and is not heard.
        with Conversation("call-srtp", os.urandom(30).hex(), str(here), "127.0.0.1", str(there), listen=here) as conversation:
            report, problems, status = call("--to", f"127.0.0.1:{here}", "--listen", there, "--srtp-key",
                                            os.urandom(30).hex(), *said(CAPITAL), timeout=4)
            self.assertEqual(status, 1)
            self.assertIn("no answer", problems)
            self.assertEqual(conversation.texts(), [])
            self.assertFalse(report["turns"][0]["answered"])
            self.assertTrue(conversation.alive(), conversation.output)

    def test_talk(self):
        # RTP in place of the microphone and the loudspeaker.
        self.converse("talk", [], [], [CAPITAL, LIGHT_BULB], MICROPHONE=OPUS_RECEIVER,
                      SPEAKER="opusenc ! rtpopuspay ! udpsink async=false host=127.0.0.1 port={peer}")


if __name__ == "__main__":
    tap.main()
