"""What stands before a container on Modal, imitated: starts the server with the first request, passes HTTP and WebSockets on and
nothing else, refuses what is too much, and stops the server when nobody has asked for a while.

As a program it runs the command that it is given, prints its address, and ends with its standard input."""
import asyncio
import os
import subprocess
import sys
import threading
import time

import aiohttp
from aiohttp import web

# Of one connection, not of the request.
HOP = {"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade"}


class Front:
    def __init__(self, command: list[str], environment: dict[str, str], max_concurrency: int = 100, scaledown_window: float = 3600):
        self.command, self.environment = command, environment
        self.max_concurrency, self.scaledown_window = max_concurrency, scaledown_window
        self.process: subprocess.Popen | None = None
        self.starts, self.statuses = 0, []
        self.in_flight, self.last, self.server_url = 0, 0.0, ""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result(30)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    async def _listen(self) -> str:
        self.starting = asyncio.Lock()
        self.session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.watcher = asyncio.ensure_future(self._scale_down())
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    async def _close(self):
        self.watcher.cancel()
        await self._stop()
        await self.session.close()
        await self.runner.cleanup()

    async def _server(self) -> str:
        async with self.starting:
            if self.process is None or self.process.poll() is not None:
                self.process = subprocess.Popen(self.command, env=self.environment, stdout=subprocess.PIPE, text=True)
                line = await asyncio.to_thread(self.process.stdout.readline)
                if not line.startswith("listening on "):
                    raise web.HTTPBadGateway(text="the server did not start")
                self.server_url = line.split()[-1].rstrip("/")
                self.starts += 1
            return self.server_url

    async def _stop(self):
        if self.process is not None:
            self.process.terminate()
            self.statuses.append(await asyncio.to_thread(self.process.wait))
            self.process.stdout.close()
            self.process = None

    async def _scale_down(self):
        while True:
            await asyncio.sleep(0.1)
            async with self.starting:
                if self.process is not None and not self.in_flight and time.monotonic() > self.last + self.scaledown_window:
                    await self._stop()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.in_flight >= self.max_concurrency:
            return web.Response(status=429)
        self.in_flight += 1
        try:
            url = await self._server() + request.path_qs
            headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._socket(request, url, headers)
            async with self.session.request(request.method, url, headers=headers, data=await request.read(),
                                            allow_redirects=False) as reply:
                kept = [(k, v) for k, v in reply.headers.items() if k.lower() not in HOP]
                return web.Response(status=reply.status, headers=kept, body=await reply.read())
        finally:
            self.in_flight -= 1
            self.last = time.monotonic()

    async def _socket(self, request: web.Request, url: str, headers: dict[str, str]) -> web.StreamResponse:
        offered = [p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if p.strip()]
        headers = {k: v for k, v in headers.items() if not k.lower().startswith("sec-websocket-")}
        try:
            inner = await self.session.ws_connect(url, headers=headers, protocols=offered, max_msg_size=0, autoping=False)
        except aiohttp.WSServerHandshakeError as e:
            return web.Response(status=e.status, headers={k: v for k, v in e.headers.items() if k.lower() not in HOP})
        outer = web.WebSocketResponse(protocols=[inner.protocol] if inner.protocol else [], max_msg_size=0, autoping=False)
        await outer.prepare(request)

        async def pass_on(source, target):
            async for message in source:
                if message.type == aiohttp.WSMsgType.TEXT:
                    await target.send_str(message.data)
                elif message.type == aiohttp.WSMsgType.BINARY:
                    await target.send_bytes(message.data)
                elif message.type == aiohttp.WSMsgType.PING:
                    await target.ping(message.data)
                elif message.type == aiohttp.WSMsgType.PONG:
                    await target.pong(message.data)
            await target.close(code=source.close_code or 1001)
        await asyncio.gather(pass_on(inner, outer), pass_on(outer, inner), return_exceptions=True)
        return outer


if __name__ == "__main__":
    with Front(sys.argv[1:], dict(os.environ)) as front:
        print(front.url, flush=True)
        sys.stdin.read()
    sys.exit(any(front.statuses))
