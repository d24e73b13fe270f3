"""The page of minicpmo-call-server in Chromium. Environment: as running_server.py says, and MINICPMO_PYTHON for the recogniser."""
import difflib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest
import wave

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import tap  # noqa: E402
from browser import Browser, microphone_file  # noqa: E402
from room import Room  # noqa: E402
from running_server import SOURCE, Server, wait_for  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

SAMPLES = SOURCE / "tools/tiny/samples"
REPLIES = {r["file"]: r["expected_reply"] for r in json.loads((SAMPLES / "list.json").read_text())}
CAPITAL, COUNT, LIGHT_BULB = "q01_cap.wav", "q05_count.wav", "q02_gk.wav"
QUESTION = "which city is the capital of Norway"
# The microphone does not wait for a slow machine: with longer pauses if the first did not suffice.
PACES = (1, 2, 4)


def words(text: str) -> list[str]:
    return re.sub("[^a-z ]", " ", text.lower()).split()


def heard(sound: bytes, spans: list[tuple[float, float]], folder: pathlib.Path) -> list[list[str]]:
    """The recogniser's words in parts (seconds) of a recording (16 kHz S16)."""
    names = []
    for i, (begin, end) in enumerate(spans):
        names.append(str(folder / f"part{i}.wav"))
        with wave.open(names[-1], "wb") as out:
            out.setparams((1, 2, 16000, 0, "NONE", ""))
            out.writeframes(sound[2 * int(16000 * max(0, begin)):2 * int(16000 * end)])
    run = subprocess.run([os.environ.get("MINICPMO_PYTHON", "python3"), str(SOURCE / "tests/call-server/hear.py"), *names],
                         capture_output=True, text=True, check=True)
    return [line.split() for line in run.stdout.splitlines()]


def screenshot(browser: Browser, name: str):
    if folder := os.environ.get("MINICPMO_REPORT"):
        browser.screenshot(pathlib.Path(folder) / f"call-page-{name}.png")


class Page(tap.RealtimeTestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def server(self, *arguments: str) -> Server:
        return self.enterContext(Server("--offers-per-minute", "1000", *arguments))

    def begin(self, browser: Browser):
        browser.call()

    def browser(self, server: Server, *flags: str, hears: pathlib.Path | None = None) -> Browser:
        return self.enterContext(Browser(server.url, *flags, hears=hears))


class SpokenCall(Page):
    def test_three_turns_with_a_barge_in(self):
        server = self.server()
        for pace in PACES:
            call = self.hold_call(server, pace)
            if call["in_time"] and call["concealed"] < 0.01:
                break
            print(f"# pace {pace}: {call['states']}, concealed {call['concealed']}")
        self.assertLess(call["concealed"], 0.01)
        self.assertTrue(call["in_time"], call["states"])
        self.check_captions(call["captions"])
        self.check_sound(call)
        self.assertEqual(call["complaints"], [])
        self.assertEqual(call["asked"], {"echoCancellation": True, "noiseSuppression": True, "autoGainControl": True})
        wait_for(lambda: server.calls() == 0, "the call is over on the server")

    def hold_call(self, server: Server, pace: float) -> dict:
        # The last question is spoken into the answer to the one before, which takes 6.8 s.
        microphone = microphone_file(self.folder / "call.wav", 3.5 * pace, SAMPLES / CAPITAL, 6.0 * pace, SAMPLES / COUNT,
                                     3.0 + pace / 2, SAMPLES / LIGHT_BULB)
        with Browser(server.url, hears=microphone) as browser:
            self.begin(browser)
            browser.record()
            try:
                wait_for(lambda: len(browser.answers()) == 3 and browser.state() == "speaking", "the third answer",
                         60 + 20 * pace)
                browser.wait_state("listening")
            except AssertionError as late:
                print(f"# {late}: {browser.captions()}")
            time.sleep(0.5)  # what the recorder has not seen yet
            screenshot(browser, "call")
            stats, captions = browser.stats(), browser.captions()
            recording, asked = browser.recording(), browser.js("return asked.audio")
            browser.element("call").click()
            self.assertEqual(browser.state(), "ended")
            complaints = browser.complaints()
        names = [s for _, s in recording["states"]]
        return dict(recording, captions=captions, asked=asked, complaints=complaints, stats=stats,
                    concealed=stats["concealedSamples"] / stats["totalSamplesReceived"],
                    in_time=names == ["listening", "hearing", "thinking", "speaking", "listening", "hearing", "thinking",
                                      "speaking", "hearing", "thinking", "speaking", "listening"])

    def check_captions(self, captions: list[dict]):
        self.assertEqual([c["who"] for c in captions], ["user", "model"] * 3)
        for caption, (least, most) in zip(captions[::2], ((1.5, 3), (2.5, 4.5), (1.5, 3.5))):
            seconds = float(re.fullmatch(r"spoke ([\d.]+) s", caption["text"])[1])
            self.assertTrue(least < seconds < most, caption)
        first, second, third = captions[1::2]
        self.assertEqual((first["text"], first["interrupted"]), (REPLIES[CAPITAL], False))
        self.assertEqual((third["text"], third["interrupted"]), (REPLIES[LIGHT_BULB], False))
        self.assertTrue(second["interrupted"], second)
        self.assertEqual(f"{second['text']} {second['unheard']}".strip(), REPLIES[COUNT])
        self.assertGreaterEqual(len(words(second["text"])), 1)
        self.assertGreaterEqual(len(words(second["unheard"])), 1)
        for caption in (first, second, third):
            self.assertGreater(caption["latency"]["sound"], 0)
        print("# words, sound after ms: " + ", ".join(
            f"{c['latency']['words']:.0f} {c['latency']['sound']:.0f}" for c in (first, second, third)))

    def check_sound(self, call: dict):
        times = [t for t, _ in call["states"]]
        spans = [(times[3], times[4]), (times[7], times[8]), (times[10], times[11])]
        for begin, end in spans:
            self.assertGreater(max(level for t, level in call["levels"] if begin < t < end), 0.1)
        # From the interruption to the next answer there is silence, after what was on its way.
        silence = [level for t, level in call["levels"] if times[8] + 0.5 < t < times[10]]
        self.assertGreater(len(silence), 3)
        self.assertLess(max(silence), 0.01)
        texts = [REPLIES[CAPITAL], REPLIES[LIGHT_BULB]]
        whole = [spans[0], spans[2]]
        for text, said in zip(texts, heard(call["sound"], [(b - 0.2, e + 0.4) for b, e in whole], self.folder)):
            print(f"# heard: {' '.join(said)}")
            self.assertGreaterEqual(difflib.SequenceMatcher(None, said, words(text)).ratio(), 0.5, said)
        print(f"# concealed {call['concealed']:.4%} of {call['stats']['totalSamplesReceived']} samples")

    # On some machines its canceller lets so much of the first answer through that the answer interrupts itself.
    @unittest.skipUnless(os.environ.get("MINICPMO_CALLS") == "full", "depends on Chromium's echo canceller; MINICPMO_CALLS=full runs it")
    def test_the_echo_of_an_answer_is_no_barge_in_but_a_question_is(self):
        with Room() as room, Browser(self.server().url, room=room) as browser:
            browser.call()
            browser.record()
            browser.wait_state("listening")
            time.sleep(1)  # of silence, as before most questions
            room.say(SAMPLES / CAPITAL)
            browser.wait_state("speaking")
            browser.wait_state("listening")
            room.say(SAMPLES / COUNT)
            browser.wait_state("speaking")
            time.sleep(3)  # of 6.8 s
            room.say(SAMPLES / LIGHT_BULB)
            wait_for(lambda: len(browser.answers()) == 3, "the third answer")
            browser.wait_state("listening")
            recording, captions = browser.recording(), browser.captions()
        self.assertEqual([s for _, s in recording["states"]],
                         ["listening", *["hearing", "thinking", "speaking", "listening"], *["hearing", "thinking", "speaking"],
                          *["hearing", "thinking", "speaking", "listening"]])
        self.check_captions(captions)

    def test_push_to_talk_with_the_space_key(self):
        server = self.server()
        for pace in PACES:
            if answers := self.push_to_talk(server, 4.0 * pace):
                break
        self.assertEqual(answers, [REPLIES[CAPITAL]])

    def push_to_talk(self, server: Server, silence: float) -> list[str]:
        """The answers; none if the key was pressed too late."""
        microphone = microphone_file(self.folder / "talk.wav", silence, SAMPLES / CAPITAL)
        with Browser(server.url, hears=microphone) as browser:
            browser.driver.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
            browser.element("push-to-talk").send_keys(Keys.SPACE)
            if browser.element("token").is_displayed():
                self.begin(browser)
            else:
                browser.element("call").send_keys(Keys.ENTER)
            browser.wait_state("listening")
            browser.element("captions").click()
            wait_for(lambda: browser.seconds() > silence - 0.7, "the question is near")
            ActionChains(browser.driver).key_down(Keys.SPACE).perform()
            if browser.seconds() > silence:
                return []
            self.assertEqual(browser.state(), "hearing")
            wait_for(lambda: browser.seconds() > silence + 3.3, "the question is over")  # it takes 2.3 s
            self.assertEqual(browser.answers(), [])
            ActionChains(browser.driver).key_up(Keys.SPACE).perform()
            browser.wait_state("speaking")
            browser.wait_state("listening")
            screenshot(browser, "push-to-talk")
            captions = browser.captions()
            self.assertEqual([c["who"] for c in captions], ["user", "model"])
            self.assertEqual(browser.notice(), "")
            return browser.answers()


class WithoutMicrophone(Page):
    def type_and_hear(self, browser: Browser):
        self.begin(browser)
        browser.say(QUESTION)
        loudest = 0.0

        def answered():
            nonlocal loudest
            loudest = max(loudest, browser.js("return callState.levels().output"))
            return loudest > 0.1 and browser.state() == "listening"
        wait_for(answered, "a spoken answer")
        self.assertEqual([(c["who"], c["text"]) for c in browser.captions()],
                         [("user", QUESTION), ("model", REPLIES[CAPITAL])])

    def test_voice_and_system_prompt(self):
        server = self.server("--voice", f"alto={SAMPLES / CAPITAL}", "--system-prompt", "Be kind.")
        browser = self.browser(server, "--deny-permission-prompts")
        browser.driver.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
        wait_for(lambda: len(browser.element("voice").find_elements(By.TAG_NAME, "option")) == 2, "the voices")
        browser.call()
        wait_for(lambda: browser.js("return callState.session"), "the server's settings")
        self.assertEqual(self.settings(browser), ("default", "Be kind."))
        browser.element("call").click()
        browser.element("voice").send_keys("alto")
        browser.element("instructions").send_keys("Be brief.")
        self.type_and_hear(browser)
        self.assertEqual(self.settings(browser), ("alto", "Be brief."))

    @staticmethod
    def settings(browser: Browser) -> tuple[str, str]:
        session = browser.js("return callState.session")
        return session["audio"]["output"]["voice"], session["instructions"]

    def test_refused(self):
        browser = self.browser(self.server(), "--deny-permission-prompts", "--use-fake-device-for-media-stream")
        self.type_and_hear(browser)
        self.assertRegex(browser.notice(), "microphone was refused.*Allow it.*type below")
        screenshot(browser, "refused")

    def test_none(self):
        browser = self.browser(self.server(), "--use-fake-ui-for-media-stream")
        self.type_and_hear(browser)
        self.assertRegex(browser.notice(), "No microphone was found.*type below")


NO_UDP = "--webrtc-ip-handling-policy=disable_non_proxied_udp"
# What a firewall does to what is neither HTTP nor a WebSocket: nothing that the server offers leads to it.
NO_CANDIDATES = """
const taken = RTCPeerConnection.prototype.setRemoteDescription;
RTCPeerConnection.prototype.setRemoteDescription = function ({type, sdp}) {
  return taken.call(this, {type, sdp: sdp.replace(/^a=candidate:.*\\r\\n/gm, "")});
};
"""


class Fallback(WithoutMicrophone):
    """Where WebRTC does not connect the call goes over a WebSocket."""
    test_voice_and_system_prompt = test_refused = test_none = None

    def test_http_alone_passes(self):
        server = self.server("--max-calls", "1")
        browser = self.browser(server, "--deny-permission-prompts", NO_UDP)
        browser.before_each_page(NO_CANDIDATES)
        browser.open(server.url)
        self.type_and_hear(browser)
        self.assertEqual(browser.js("return callState.transport"), "websocket")
        self.assertEqual(browser.complaints(), [])
        browser.element("call").click()
        wait_for(lambda: server.calls() == 0, "the call is over on the server")

    def test_no_udp(self):
        """WebRTC goes over TCP, to one of the server's own candidates."""
        server = self.server()
        browser = self.browser(server, "--deny-permission-prompts", NO_UDP)
        self.type_and_hear(browser)
        self.assertEqual(browser.js("return callState.transport"), "webrtc")

    def test_trouble(self):
        server = self.server("--max-calls", "1", "--transport", "websocket", "--token", "right")
        browser = self.browser(server, "--deny-permission-prompts")
        wait_for(lambda: browser.element("token").is_displayed(), "the field for the token")
        browser.element("call").click()
        browser.wait_state("error")
        self.assertRegex(browser.notice(), "token is missing or wrong")
        browser.element("token").send_keys("right")
        browser.call()
        first = browser.driver.current_window_handle
        browser.driver.switch_to.new_window("tab")
        browser.open(server.url)
        browser.element("token").send_keys("right")
        browser.element("call").click()
        browser.wait_state("error")
        self.assertRegex(browser.notice(), r"no more calls at the moment. Call again in \d+ seconds")
        browser.driver.switch_to.window(first)
        server.stop()
        browser.wait_state("ended")
        self.assertRegex(browser.notice(), "server ended the call")
        browser.element("call").click()
        browser.wait_state("error")
        self.assertRegex(browser.notice(), "server cannot be reached")
        self.assertEqual(browser.complaints(), [])


class Traced(Page):
    def test_where_the_time_went(self):
        server = self.enterContext(Server(GST_TRACERS="minicpmoturns"))
        browser = self.browser(server, "--deny-permission-prompts")
        browser.call()
        browser.say(QUESTION)
        trace = wait_for(lambda: (browser.captions()[-1:] or [{}])[0].get("trace"), "the trace of the turn")
        self.assertAlmostEqual(sum(p["ms"] for p in trace["parts"]), trace["total_ms"], delta=1)
        self.assertLess({"prefill", "decode", "speech", "vocoder"}, {p["part"] for p in trace["parts"]})
        told = browser.driver.find_element(By.CSS_SELECTOR, ".traced")
        self.assertRegex(told.text, r"on the server \d+ ms: .*decode \d+.*speech \d+")
        screenshot(browser, "traced")
        self.assertEqual(browser.complaints(), [])


class Trouble(Page):
    def test_token(self):
        browser = self.browser(self.server("--token", "right"), "--deny-permission-prompts")
        wait_for(lambda: browser.element("token").is_displayed(), "the field for the token")
        for wrong in ("", "wrong"):
            browser.element("token").clear()
            browser.element("token").send_keys(wrong)
            browser.element("call").click()
            browser.wait_state("error")
            self.assertRegex(browser.notice(), "token is missing or wrong")
            self.assertEqual(browser.js("return document.activeElement.id"), "token")
        browser.element("token").clear()
        browser.element("token").send_keys("right")
        browser.call()
        browser.driver.refresh()
        wait_for(lambda: browser.element("token").get_attribute("value") == "right", "the token is remembered")
        self.assertEqual(browser.js("return localStorage.length"), 0)

    def test_full_and_gone(self):
        server = self.server("--max-calls", "1")
        browser = self.browser(server, "--deny-permission-prompts")
        first = browser.driver.current_window_handle
        browser.call()
        browser.driver.switch_to.new_window("tab")
        browser.open(server.url)
        browser.element("call").click()
        browser.wait_state("error")
        self.assertRegex(browser.notice(), r"no more calls at the moment. Call again in \d+ seconds")
        # Closing the other page makes room.
        second = browser.driver.current_window_handle
        browser.driver.switch_to.window(first)
        browser.driver.close()
        browser.driver.switch_to.window(second)
        wait_for(lambda: server.calls() == 0, "the closed page's call is over")
        browser.call()
        server.stop()
        browser.wait_state("ended", "error")
        wait_for(lambda: re.search("server ended the call|connection was lost", browser.notice()), "the page says so")
        self.assertEqual(browser.element("call").text, "Call again")
        browser.element("call").click()
        browser.wait_state("error")
        self.assertRegex(browser.notice(), "server cannot be reached")
        self.assertEqual(browser.complaints(), [])


if __name__ == "__main__":
    tap.main()
