"""As much of Hugging Face's HTTP interface as a download needs, on 127.0.0.1, with the faults that a test asks for."""
import hashlib
import http.server
import json
import threading
import urllib.parse


class FakeHub:
    """Serves `files` of `repository` at `commits[0]`; large ones are redirected to the server `elsewhere`, if there is one.
    Faults, by file name: `cut` sends half of the body and hangs up, once; `cut_and_refuse` then answers 403; `swapped` bodies
    are sent instead of the listed ones."""

    def __init__(self, repository: str, commits: list[str], files: dict[str, bytes], host: str = "127.0.0.1") -> None:
        self.repository, self.commits, self.files = repository, commits, files
        self.cut: set[str] = set()
        self.cut_and_refuse: set[str] = set()
        self.swapped: dict[str, bytes] = {}
        self.token: str | None = None
        self.elsewhere: str | None = None
        self.tokens: list[str | None] = []
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def downloads(self, name: str) -> list[str | None]:
        """The Range headers of the requests for a file."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith("/" + name) and "/resolve/" in path]

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range")))
        self.tokens.append(request.headers.get("Authorization"))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send(request, 401, b'{"error": "Invalid credentials"}', {"X-Error-Message": "Invalid credentials"})
        if path == f"/api/models/{self.repository}/commits/main":
            commits = [dict(id=c, title="t", message="m", date="2025-01-01T00:00:00.000Z", authors=[]) for c in self.commits]
            return self.send(request, 200, json.dumps(commits).encode(), {})
        if path == f"/api/models/{self.repository}/revision/{self.commits[0]}":
            return self.send(request, 200, json.dumps(self.listing()).encode(), {})
        start = f"/{self.repository}/resolve/{self.commits[0]}/"
        if path.startswith(start) and path[len(start):] in self.files:
            return self.send_file(request, path[len(start):])
        self.send(request, 404, b'{"error": "Not found"}', {"X-Error-Code": "RevisionNotFound"})

    def listing(self) -> dict:
        siblings = []
        for name, body in self.files.items():
            entry = dict(rfilename=name, size=len(body), blobId=hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest())
            if name.endswith((".safetensors", ".pt")):
                entry["lfs"] = dict(sha256=hashlib.sha256(body).hexdigest(), size=len(body), pointerSize=130)
            siblings.append(entry)
        return dict(id=self.repository, modelId=self.repository, sha=self.commits[0], siblings=siblings, private=False,
                    tags=[], downloads=0, likes=0)

    def send_file(self, request: http.server.BaseHTTPRequestHandler, name: str) -> None:
        body = self.swapped.get(name, self.files[name])
        headers = {"ETag": f'"{hashlib.sha256(self.files[name]).hexdigest()}"', "X-Repo-Commit": self.commits[0],
                   "Accept-Ranges": "bytes"}
        if self.elsewhere and name.endswith((".safetensors", ".pt")):
            return self.send(request, 302, b"", {"Location": self.elsewhere + request.path})
        if request.command == "HEAD":
            return self.send(request, 200, body, headers)
        if name in self.cut_and_refuse and name not in self.cut:
            return self.send(request, 403, b'{"error": "Forbidden"}', {})
        status, first = 200, 0
        if wanted := request.headers.get("Range"):
            status, first = 206, int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        if name in self.cut:
            self.cut.remove(name)
            self.send(request, status, body[first:], headers, stop=len(body) // 2)
            request.close_connection = True
            request.connection.close()
            return
        self.send(request, status, body[first:], headers)

    def send(self, request: http.server.BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str],
             stop: int | None = None) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body[:stop])
            request.wfile.flush()
