"""Chromium on the page of minicpmo-call-server, with a microphone that hears a WAV file or a room, or with none.

Runs with the Python of Debian's packages chromium-driver and python3-selenium.
"""
import base64
import os
import pathlib
import subprocess
import wave

from room import Room
from running_server import LIMIT, wait_for
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=900,1000",
         "--autoplay-policy=no-user-gesture-required", "--disable-features=WebRtcHideLocalIpsWithMdns",
         # Timers and sound go on in a window that another one covers.
         "--disable-background-timer-throttling", "--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding"]
# The fake microphone does not hear the loudspeaker. Chromium's echo canceller takes a while to find that out, and until then
# keeps back what is said into an answer: only a room has an echo to cancel.
MICROPHONE = """
const ask = MediaDevices.prototype.getUserMedia;
MediaDevices.prototype.getUserMedia = function (constraints) {
  window.asked = constraints;
  const {echoCancellation} = constraints.audio;
  const stream = ask.call(this, {audio: {...constraints.audio, echoCancellation: echoCancellation && IN_ROOM}});
  stream.then(() => { window.heardSince = performance.now(); }, () => {});
  return stream;
};
"""
RECORD = """
const recorder = new MediaRecorder(callState.remote), parts = [], states = [], levels = [];
const began = performance.now(), now = () => (performance.now() - began) / 1000;
recorder.ondataavailable = ({data}) => parts.push(data);
recorder.start(500);
states.push([0, callState.state]);
new MutationObserver(() => states.push([now(), callState.state]))
  .observe(document.getElementById("state"), {attributes: true, attributeFilter: ["data-state"]});
setInterval(() => callState.remote && levels.push([now(), callState.levels().output]), 50);
window.recording = {recorder, parts, states, levels};
"""
RECORDING = """
const done = arguments[0], {recorder, parts, states, levels} = recording;
recorder.onstop = async () => {
  const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(await new Blob(parts).arrayBuffer());
  const samples = Int16Array.from(sound.getChannelData(0), (x) => 32767 * Math.max(-1, Math.min(1, x)));
  const reader = new FileReader();
  reader.onload = () => done({states, levels, sound: reader.result.split(",")[1]});
  reader.readAsDataURL(new Blob([samples]));
};
recorder.stop();
"""


def microphone_file(path: pathlib.Path, *parts: float | pathlib.Path) -> pathlib.Path:
    """A WAV file as Chromium's fake microphone wants it, of silences (seconds) and files at 16 kHz."""
    joined = path.with_suffix(".16k.wav")
    with wave.open(str(joined), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        for part in parts:
            if isinstance(part, pathlib.Path):
                with wave.open(str(part)) as said:
                    out.writeframes(said.readframes(said.getnframes()))
            else:
                out.writeframes(bytes(2 * int(16000 * part)))
    subprocess.run(["gst-launch-1.0", "-q", "filesrc", f"location={joined}", "!", "wavparse", "!", "audioresample", "!",
                    "audio/x-raw,rate=48000", "!", "wavenc", "!", "filesink", f"location={path}"], check=True)
    return path


class Browser:
    def __init__(self, url: str, *flags: str, hears: pathlib.Path | None = None, room: Room | None = None):
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        if hears:
            flags += ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
                      f"--use-file-for-fake-audio-capture={hears}%noloop")
        if room:
            flags += ("--use-fake-ui-for-media-stream",)
        for flag in (*FLAGS, *flags):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = Service("/usr/bin/chromedriver", env=dict(os.environ, **room.environment) if room else None)
        self.driver = webdriver.Chrome(service=service, options=options)
        self.driver.set_script_timeout(LIMIT)
        self.before_each_page(MICROPHONE.replace("IN_ROOM", str(room is not None).lower()))
        self.open(url)

    def before_each_page(self, script: str):
        """Runs it before the scripts of each page that is opened from now on."""
        self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})

    def open(self, url: str):
        self.driver.get(url)
        wait_for(lambda: self.js("return document.readyState") == "complete", "the page")

    def js(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def element(self, name: str):
        return self.driver.find_element(By.ID, name)

    def state(self) -> str:
        return self.js("return callState.state")

    def captions(self) -> list[dict]:
        return self.js("return callState.captions")

    def answers(self) -> list[str]:
        return [c["text"] for c in self.captions() if c["who"] == "model"]

    def notice(self) -> str:
        return self.element("notice").text

    def wait_state(self, *states: str, limit: float = LIMIT):
        wait_for(lambda: self.state() in states, f"state {' or '.join(states)}", limit)

    def call(self):
        """Presses the button, and waits until there is a call."""
        self.element("call").click()
        wait_for(lambda: self.state() != "connecting", "the call is answered")
        assert self.state() not in ("error", "ended"), self.notice()

    def seconds(self) -> float:
        """Of the microphone's file that have been heard."""
        return self.js("return (performance.now() - heardSince) / 1000")

    def say(self, text: str):
        self.element("text").send_keys(text + "\n")

    def stats(self) -> dict:
        return self.driver.execute_async_script("callState.stats().then(arguments[0])")

    def record(self):
        wait_for(lambda: self.js("return callState.remote !== null"), "the server's sound")
        self.js(RECORD)

    def recording(self) -> dict:
        """states and levels, each with its time; sound: 16 kHz S16. Times are of the recording."""
        result = self.driver.execute_async_script(RECORDING)
        return {**result, "sound": base64.b64decode(result["sound"])}

    def complaints(self) -> list[str]:
        """Of the console: errors of scripts, and what the content security policy refused."""
        return [line["message"] for line in self.driver.get_log("browser")
                if line["level"] == "SEVERE" and line["source"] != "network"]

    def screenshot(self, path: pathlib.Path):
        self.driver.save_screenshot(str(path))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()
