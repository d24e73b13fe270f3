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
OPUS_RECEIVER = ("udpsrc port={port} caps=\"application/x-rtp,media=audio,encoding-name=OPUS,clock-rate=48000,payload=96\" "
                 "! rtpjitterbuffer latency=60 do-lost=true ! rtpopusdepay ! opusdec plc=true")


def said(*names: str) -> list[str]:
    return [str(SAMPLES / n) for n in names]


class Call(tap.RealtimeTestCase):
    def check_words(self, conversation, *names: str):
        self.assertEqual(conversation.texts(), [REPLIES[n] for n in names], conversation.output)

    def check_answer(self, turn: dict):
        self.assertTrue(turn["answered"], turn)
        self.assertEqual(turn["cut_in"], 0, turn)
        self.assertGreater(turn["first_packet_ms"], 0)
        print(f"# {os.path.basename(turn['file'])}: first packet after {turn['first_packet_ms']:.0f} ms, "
              f"{turn['seconds']:.2f} s, longest gap between packets {turn['longest_packet_gap_ms']:.0f} ms")
        self.assertEqual(turn["gaps"], [], turn)

    def check_stream(self, report: dict):
        stream = report["stream"]
        self.assertEqual((stream["lost"], stream["late"], stream["duplicates"], stream["sources"]), (0, 0, 0, 1), stream)
        # The encoder's first packet is shorter by what the encoder needs to get going.
        self.assertLessEqual(stream["timestamp_jumps"], 1, stream)
        self.assertLess(abs(stream["drift_ms"]), 20, stream)
        print(f"# stream: {stream}")


class Opus(Call):
    def test_three_turns_with_an_interruption(self):
        report = self.hold_call()
        second = report["turns"][1]
        old = second["interrupted"]["old_sound_ms"]
        print(f"# the old answer went on for {old:.0f} ms after the first voice")
        self.assertGreater(second["interrupted"]["after_ms"], 500)
        self.assertGreater(old, 0)
        # All of it would have been 2.04 s.
        self.assertLess(second["seconds"] + old / 1000, 1.6)

    def hold_call(self) -> dict:
        conversation, arguments = opus()
        with conversation, tempfile.TemporaryDirectory() as folder:
            wav = pathlib.Path(folder) / "call.wav"
            report, problems, status = call(*arguments, "--interrupt-after", "-,600,-", "--record", wav,
                                            *said(CAPITAL, LIGHT_BULB, SPELL))
            self.assertEqual((status, problems), (0, ""), conversation.output)
            self.check_words(conversation, CAPITAL, LIGHT_BULB, SPELL)
            for turn in report["turns"]:
                self.check_answer(turn)
            self.check_stream(report)
            first, _, third = report["turns"]
            self.assertAlmostEqual(first["seconds"], 2.0, delta=0.3)
            self.assertAlmostEqual(third["seconds"], 1.68, delta=0.3)
            self.check_sound(wav, {CAPITAL: first, SPELL: third})
        return report

    def check_sound(self, wav: pathlib.Path, turns: dict[str, dict]):
        from recogniser import Recogniser, edits, words
        from scipy.io import wavfile
        recogniser, (rate, samples) = Recogniser(), wavfile.read(wav)
        for name, turn in turns.items():
            part = slice(int((turn["answer"]["from"] - 0.2) * rate), int((turn["answer"]["to"] + 0.2) * rate))
            heard, right = recogniser.hear(samples[part], rate), words(REPLIES[name])
            print(f"# heard: {' '.join(heard)}")
            self.assertLessEqual(edits(heard, right), len(right) / 2, heard)


class Others(Call):
    def converse(self, script: str, before: list[str], arguments: list[str], names: list[str], **environment: str) -> dict:
        here, there = free_ports(2)
        environment = {k: v.format(port=here, peer=there) for k, v in environment.items()}
        ports = [] if environment else [str(here), "127.0.0.1", str(there)]
        with Conversation(script, *before, *ports, listen=here, **environment) as conversation:
            report, problems, status = call("--to", f"127.0.0.1:{here}", "--listen", there, *arguments, *said(*names))
            self.assertEqual((status, problems), (0, ""), conversation.output)
            self.check_words(conversation, *names)
        for turn in report["turns"]:
            self.check_answer(turn)
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
