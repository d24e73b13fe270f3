"""Chromium on the page of modal/serve.py, behind an imitation of Modal's HTTP: calls over WebRTC, and over a WebSocket.

Environment: as tests/call-server/browser_test.py. Runs with the Python of Debian's python3-selenium.
"""
import os
import pathlib
import subprocess
import sys
import unittest
import urllib.request

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "support"), str(TESTS / "call-server")]
import tap  # noqa: E402
from browser import Browser  # noqa: E402
from browser_test import SpokenCall, WithoutMicrophone  # noqa: E402

TOKEN = "0123456789abcdef" * 2
PYTHON = os.environ.get("MINICPMO_PYTHON", "python3")


class Service:
    """front.py and, behind it, serve.py."""

    def __init__(self, transport: str):
        self.process = subprocess.Popen(
            [PYTHON, str(TESTS / "modal/front.py"), PYTHON, str(TESTS.parent / "modal/serve.py")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=dict(
                os.environ, MINICPMO_CALL_SERVER=f"{os.environ['CALL_SERVER']} --device cpu --late-pause 0", MINICPMO_CALL_TOKEN=TOKEN, PORT="0",
                MINICPMO_TRANSPORT=transport, OMP_NUM_THREADS="1", G_MESSAGES_DEBUG=""))
        self.url = self.process.stdout.readline().strip()

    def calls(self) -> int:
        asked = urllib.request.Request(self.url + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(asked, timeout=60) as reply:
            lines = reply.read().decode().splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.split(" ")[0].split("{")[0] == "minicpmo_calls"))

    def stop(self) -> int:
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(60)


class Through:
    """Mixed into the tests of the call server's page: the same calls, through HTTP that passes nothing else on."""
    transport = ""

    def server(self, *_):
        service = Service(self.transport)
        self.addCleanup(lambda: self.assertEqual(service.stop(), 0))
        return service

    def begin(self, browser: Browser):
        browser.element("token").send_keys(TOKEN)
        browser.call()
        self.assertEqual(browser.js("return callState.transport"), self.transport)


class OverWebRtc(Through, SpokenCall):
    transport = "webrtc"
    test_the_echo_of_an_answer_is_no_barge_in_but_a_question_is = None
    test_push_to_talk_with_the_space_key = None  # it is the page's, and tested there


class OverWebSocket(Through, SpokenCall):
    transport = "websocket"
    test_the_echo_of_an_answer_is_no_barge_in_but_a_question_is = None


class OverWebSocketTyped(Through, WithoutMicrophone):
    transport = "websocket"
    test_voice_and_system_prompt = test_refused = None


# Imported, and run where they are from.
del SpokenCall, WithoutMicrophone

if __name__ == "__main__":
    tap.main()
