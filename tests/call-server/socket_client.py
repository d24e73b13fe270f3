"""A caller of minicpmo-call-server over a WebSocket, as clients of OpenAI's Realtime API are. Everything runs in one event loop."""
import asyncio
import base64
import json
import time
import wave

import aiohttp
import numpy

RATE = 24000
BLOCK = RATE // 50
PATH = "/v1/realtime"


def samples_of(path) -> numpy.ndarray:
    """Mono, int16, at 24 kHz, from a WAV file of 16 kHz."""
    with wave.open(str(path)) as file:
        assert file.getframerate() == 16000 and file.getnchannels() == 1 and file.getsampwidth() == 2
        pcm = numpy.frombuffer(file.readframes(file.getnframes()), numpy.int16).astype(numpy.float64)
    at = numpy.arange(len(pcm) * 3 // 2) / 1.5
    return numpy.interp(at, numpy.arange(len(pcm)), pcm).astype(numpy.int16)


class Client:
    """Use with `async with`. Its microphone, once open, sends silence and what it is given to say, at the pace of speech."""

    def __init__(self, url: str, *protocols: str, path: str = PATH, microphone: bool = True, **headers: str):
        self.url, self.protocols = url + path, protocols
        self.headers = {k.replace("_", "-"): v for k, v in headers.items()}
        self.with_microphone = microphone
        self.events: list[dict] = []
        self.times: list[float] = []
        self.waiting = numpy.zeros(0, numpy.int16)
        self.muted = False

    async def __aenter__(self):
        self.session = aiohttp.ClientSession()
        try:
            self.socket = await self.session.ws_connect(self.url, protocols=self.protocols, headers=self.headers, max_msg_size=0)
        except aiohttp.WSServerHandshakeError:
            await self.session.close()
            raise
        self.tasks = [asyncio.ensure_future(self._listen())]
        await self.event("session.created")
        if self.with_microphone:
            self.tasks.append(asyncio.ensure_future(self._speak()))
        return self

    async def __aexit__(self, *_):
        for task in self.tasks[1:]:
            task.cancel()
        await self.socket.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.session.close()

    async def _listen(self):
        async for message in self.socket:
            assert message.type == aiohttp.WSMsgType.TEXT, message
            self.times.append(time.monotonic())
            self.events.append(json.loads(message.data))

    async def _speak(self):
        start, sent = time.monotonic(), 0
        while not self.socket.closed:
            due = start + sent / RATE
            if (now := time.monotonic()) < due:
                await asyncio.sleep(due - now)
            block, self.waiting = self.waiting[:BLOCK], self.waiting[BLOCK:]
            sent += BLOCK
            await self._send_block(block, due)

    async def _send_block(self, block: numpy.ndarray, due: float) -> None:
        if not self.muted or len(block):
            await self.append(numpy.pad(block, (0, BLOCK - len(block))))

    async def append(self, samples: numpy.ndarray) -> None:
        await self.send({"type": "input_audio_buffer.append", "audio": base64.b64encode(samples.tobytes()).decode()})

    async def send(self, event: dict) -> None:
        await self.socket.send_str(json.dumps(event))

    def say(self, samples: numpy.ndarray) -> None:
        self.waiting = numpy.concatenate([self.waiting, samples])

    async def until(self, condition, what: str, limit: float = 60):
        end = time.monotonic() + limit
        while not (value := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {limit} s: {what}; events: {self.kinds()}")
            await asyncio.sleep(0.02)
        return value

    def kinds(self) -> list[str]:
        return [e["type"] for e in self.events]

    def of(self, kind: str) -> list[dict]:
        return [e for e in self.events if e["type"] == kind]

    async def event(self, kind: str, count: int = 1) -> dict:
        """The count-th event of the kind."""
        return (await self.until(lambda: self.of(kind)[count - 1:count], f"{kind} number {count}"))[0]

    async def error(self, event: dict | str) -> tuple[str, str]:
        """Code and message of the error that this event is answered with."""
        before = len(self.of("error"))
        await (self.socket.send_str(event) if isinstance(event, str) else self.send(event))
        told = (await self.event("error", before + 1))["error"]
        return told["code"], told["message"]

    async def ask(self, wav) -> str:
        """The words of the answer to a question, once it is over."""
        done = len(self.of("response.done"))
        self.say(samples_of(wav))
        await self.event("response.done", done + 1)
        return self.transcripts()[-1]

    def transcripts(self) -> list[str]:
        return [e["transcript"].strip() for e in self.of("response.output_audio_transcript.done")]

    def sound(self, response: int = -1) -> numpy.ndarray:
        """Of one response, int16 at 24 kHz."""
        name = self.of("response.created")[response]["response"]["id"]
        parts = [e["delta"] for e in self.of("response.output_audio.delta") if e["response_id"] == name]
        return numpy.frombuffer(b"".join(base64.b64decode(p) for p in parts), numpy.int16)

    async def closed(self) -> tuple[int, str]:
        """Code and reason that the server closed with."""
        await self.until(lambda: self.tasks[0].done(), "the server closes")
        return self.socket.close_code
