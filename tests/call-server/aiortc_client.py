"""A caller of minicpmo-call-server made of aiortc: says WAV files, hears what comes back, reads the events.

Everything runs in one event loop; a Client lives in it.
"""
import asyncio
import fractions
import json
import time
import urllib.request
import wave

import av
import numpy
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

RATE = 48000
BLOCK = RATE // 50


def samples_of(path) -> numpy.ndarray:
    """Mono, int16, at 48 kHz, from a WAV file of 16 kHz."""
    with wave.open(str(path)) as file:
        assert file.getframerate() == 16000 and file.getnchannels() == 1 and file.getsampwidth() == 2
        pcm = numpy.frombuffer(file.readframes(file.getnframes()), numpy.int16).astype(numpy.float64)
    at = numpy.arange(len(pcm) * 3) / 3
    return numpy.interp(at, numpy.arange(len(pcm)), pcm).astype(numpy.int16)


class Microphone(MediaStreamTrack):
    """Silence, and what it is given to say, at the pace of speech."""
    kind = "audio"

    def __init__(self):
        super().__init__()
        self.waiting = numpy.zeros(0, numpy.int16)
        self.position = 0
        self.start = None

    def say(self, samples: numpy.ndarray) -> None:
        self.waiting = numpy.concatenate([self.waiting, samples])

    def silent(self) -> bool:
        return len(self.waiting) == 0

    async def recv(self):
        if self.readyState != "live":
            raise MediaStreamError
        now = time.monotonic()
        if self.start is None:
            self.start = now
        due = self.start + self.position / RATE
        if due > now:
            await asyncio.sleep(due - now)
        block, self.waiting = self.waiting[:BLOCK], self.waiting[BLOCK:]
        block = numpy.pad(block, (0, BLOCK - len(block)))
        frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self.position, fractions.Fraction(1, RATE)
        self.position += BLOCK
        return frame


class Client:
    def __init__(self, url: str, path: str = "/whip", channel: bool = True, **headers: str):
        self.url, self.path, self.headers = url, path, headers
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.microphone = Microphone()
        self.connection.addTrack(self.microphone)
        self.events: list[dict] = []
        self.heard: list[numpy.ndarray] = []  # int16 at 48 kHz
        self.location = ""
        self.channel = self.connection.createDataChannel("oai-events") if channel else None
        if self.channel:
            self.channel.on("message", lambda text: self.events.append(json.loads(text)))
        self.connection.on("track", self._track)

    def _track(self, track):
        async def listen():
            try:
                while True:
                    pcm = (await track.recv()).to_ndarray().reshape(-1)
                    self.heard.append(pcm[::2])  # aiortc decodes to two equal channels
            except MediaStreamError:
                pass
        self._listener = asyncio.ensure_future(listen())

    async def offer(self) -> str:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    def post(self, sdp: str, body: bytes | None = None, kind: str = "application/sdp"):
        """status, headers, body. With `body`, that is sent instead of the offer."""
        request = urllib.request.Request(self.url + self.path, body or sdp.encode(), {"Content-Type": kind, **self.headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, dict(reply.headers), reply.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, dict(e.headers), e.read().decode()

    async def call(self) -> None:
        sdp = await self.offer()
        status, headers, answer = await asyncio.to_thread(self.post, sdp)
        assert status == 201, (status, answer)
        self.location = headers["Location"]
        await self.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await self.until(lambda: self.connection.connectionState == "connected", "connected")
        if self.channel:
            await self.event("session.created")

    async def until(self, condition, what: str, limit: float = 60):
        end = time.monotonic() + limit
        while not (value := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {limit} s: {what}; events: {[e['type'] for e in self.events]}")
            await asyncio.sleep(0.02)
        return value

    def of(self, kind: str) -> list[dict]:
        return [e for e in self.events if e["type"] == kind]

    async def event(self, kind: str, count: int = 1) -> dict:
        """The count-th event of the kind."""
        return (await self.until(lambda: self.of(kind)[count - 1:count], f"{kind} number {count}"))[0]

    def send(self, event: dict) -> None:
        self.channel.send(json.dumps(event))

    async def ask(self, wav) -> str:
        """The words of the answer to a question, once its sound is over."""
        done, stopped = len(self.of("response.done")), len(self.of("output_audio_buffer.stopped"))
        self.microphone.say(samples_of(wav))
        await self.event("response.done", done + 1)
        await self.event("output_audio_buffer.stopped", stopped + 1)
        return self.transcripts()[-1]

    def transcripts(self) -> list[str]:
        return [e["transcript"].strip() for e in self.of("response.output_audio_transcript.done")]

    def sound(self) -> numpy.ndarray:
        return numpy.concatenate(self.heard) if self.heard else numpy.zeros(0, numpy.int16)

    async def hang_up(self) -> int:
        request = urllib.request.Request(self.url + self.location, method="DELETE", headers=self.headers)
        status = await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=60).status)
        await self.close()
        return status

    async def close(self) -> None:
        await self.connection.close()
