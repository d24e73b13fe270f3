"""What minicpmo-call-server refuses, and how it ends. Offers come from tests/call-server/offers. Environment: see running_server.py."""
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import unittest
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import tap  # noqa: E402
from running_server import SOURCE, Server, wait_for  # noqa: E402

OFFERS = SOURCE / "tests/call-server/offers"
SDP = {"Content_Type": "application/sdp"}


def offer() -> str:
    return (OFFERS / "chromium.sdp").read_text()


def without(sdp: str, start: str) -> str:
    return "".join(line for line in sdp.splitlines(keepends=True) if not line.startswith(start))


class Signalling(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--offers-per-minute", "100000", "--max-calls", "2", "--connect-timeout", "3")
        cls.server.url  # it listens

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0, cls.server.log

    def tearDown(self):
        wait_for(lambda: self.server.calls() == 0, "all calls are over")
        self.assertTrue(self.server.alive())

    def refused(self, sdp: str, path: str = "/whip") -> str:
        status, code = self.server.error("POST", path, sdp, **SDP)
        self.assertEqual((status, code), (400, "invalid_offer"))

    def test_an_answer(self):
        for path in ("/whip", "/v1/realtime/calls"):
            status, headers, body = self.server.request("POST", path, offer(), **SDP)
            self.assertEqual((status, headers["Content-Type"]), (201, "application/sdp"))
            answer = body.decode()
            for wanted in ("a=fingerprint:sha-256 ", "a=candidate:", "OPUS/48000/2", "a=sendrecv", "a=setup:active"):
                self.assertIn(wanted, answer)
            self.assertEqual(self.server.request("DELETE", headers["Location"])[0], 200)
            self.assertEqual(self.server.error("DELETE", headers["Location"]), (404, "no_such_call"))

    def test_form_with_a_session(self):
        border = "xyzzy"
        parts = {"sdp": offer(), "session": json.dumps({"type": "realtime", "instructions": "Be brief."})}
        body = "".join(f'--{border}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in parts.items())
        status, headers, _ = self.server.request("POST", "/v1/realtime/calls", body + f"--{border}--\r\n",
                                                 Content_Type=f"multipart/form-data; boundary={border}")
        self.assertEqual(status, 201)
        self.server.request("DELETE", headers["Location"])

    def test_no_sdp(self):
        for body in ("", "hello", "{}", "v=0\r\n", "\0" * 100, "v=0\r\n" * 1000):
            self.refused(body)

    def test_offers_that_cannot_be_answered(self):
        whole = offer()
        self.refused(whole.replace("m=audio", "m=video"))
        self.refused(whole.replace("opus/48000/2", "pcmu/8000"))
        self.refused(without(whole, "a=fingerprint"))
        self.refused(without(without(whole, "a=ice-pwd"), "a=ice-ufrag"))
        self.refused(whole.replace("a=sendrecv", "a=recvonly"))
        audio = whole.index("m=audio")
        rest = whole.find("m=application")
        self.assertGreater(rest, audio)
        self.refused(whole[:audio] + whole[rest:])  # a data channel only

    def test_wrong_type_or_method(self):
        self.assertEqual(self.server.error("POST", "/whip", offer(), Content_Type="text/plain")[0], 415)
        self.assertEqual(self.server.error("GET", "/whip")[0], 405)
        self.assertEqual(self.server.error("PATCH", "/calls/1", "a=candidate:1", Content_Type="application/trickle-ice-sdpfrag")[0], 405)
        self.assertEqual(self.server.error("PUT", "/")[0], 405)
        self.assertEqual(self.server.error("GET", "/../../etc/passwd")[0], 404)
        self.assertEqual(self.server.error("DELETE", "/calls/0")[0], 404)

    def test_a_body_too_large_is_not_read(self):
        self.assertEqual(self.server.error("POST", "/whip", "v=0\r\n" * 200000, **SDP), (413, "offer_too_large"))

    def test_a_body_of_unknown_length(self):
        place = urllib.parse.urlsplit(self.server.url)
        with socket.create_connection((place.hostname, place.port), 30) as s:
            s.sendall(b"POST /whip HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/sdp\r\nTransfer-Encoding: chunked\r\n\r\n"
                      b"3\r\nv=0\r\n0\r\n\r\n")
            self.assertEqual(s.makefile("rb").readline(), b"HTTP/1.1 411 Length Required\r\n")

    def test_full(self):
        taken = [self.server.request("POST", "/whip", offer(), **SDP) for _ in range(2)]
        self.assertEqual([t[0] for t in taken], [201, 201])
        status, headers, body = self.server.request("POST", "/whip", offer(), **SDP)
        self.assertEqual((status, json.loads(body)["error"]["code"]), (503, "server_full"))
        self.assertGreater(int(headers["Retry-After"]), 0)
        for t in taken:
            self.server.request("DELETE", t[1]["Location"])

    def test_half_open_offers_leave_nothing(self):
        def one():
            status, headers, _ = self.server.request("POST", "/whip", offer(), **SDP)
            self.assertEqual(status, 201)
            return headers["Location"]
        for _ in range(5):  # what is set up once
            self.server.request("DELETE", one())
        time.sleep(1)
        threads, files, _ = self.server.usage()
        for _ in range(20):
            self.server.request("DELETE", one())
        one()  # and one that nobody ends
        wait_for(lambda: self.server.calls() == 0, "it expired")
        wait_for(lambda: self.server.usage()[0] <= threads + 2 and self.server.usage()[1] <= files + 2,
                 f"{self.server.usage()} is {threads} threads and {files} files again")

    def test_the_page(self):
        status, headers, body = self.server.request("GET", "/")
        self.assertEqual((status, headers["Content-Type"]), (200, "text/html; charset=utf-8"))
        self.assertIn("default-src 'self'", headers["Content-Security-Policy"])
        self.assertIn(b"<title>", body)
        for path, kind in (("/page.js", "text/javascript"), ("/style.css", "text/css")):
            self.assertTrue(self.server.request("GET", path)[1]["Content-Type"].startswith(kind))
        self.assertEqual(json.loads(self.server.request("GET", "/config.json")[2])["token_required"], False)
        self.assertEqual(self.server.request("GET", "/healthz")[0], 200)

    def test_a_name_that_is_not_ours(self):
        """A page of evil.example, whose name is given the address 127.0.0.1 while it is open."""
        for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example"):
            self.assertEqual(self.server.error("POST", "/whip", offer(), Host=host, Origin="http://" + host, **SDP),
                             (403, "host_not_allowed"))

    def test_pages_elsewhere_may_not_call(self):
        self.assertEqual(self.server.error("POST", "/whip", offer(), Origin="https://evil.example", **SDP),
                         (403, "origin_not_allowed"))
        own = self.server.url
        status, headers, _ = self.server.request("POST", "/whip", offer(), Origin=own, **SDP)
        self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (201, own))
        self.server.request("DELETE", headers["Location"], Origin=own)
        self.assertNotIn("Access-Control-Allow-Origin", self.server.request("OPTIONS", "/whip", Origin="https://evil.example")[1])


class Others(unittest.TestCase):
    def test_token(self):
        with Server("--token", "secret-of-16-chars") as server:
            for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-of-16-chars"}, {"Authorization": "Bearer "}):
                self.assertEqual(server.error("POST", "/whip", offer(), **SDP, **wrong), (401, "invalid_token"))
            right = {"Authorization": "Bearer secret-of-16-chars"}
            status, headers, _ = server.request("POST", "/whip", offer(), **SDP, **right)
            self.assertEqual(status, 201)
            self.assertEqual(server.error("DELETE", headers["Location"])[0], 401)
            self.assertEqual(server.request("DELETE", headers["Location"], **right)[0], 200)
            self.assertEqual(server.request("GET", "/metrics")[0], 401)
            self.assertTrue(json.loads(server.request("GET", "/config.json")[2])["token_required"])
            self.assertNotIn("secret", "".join(server.log))

    def test_offers_per_minute(self):
        with Server("--offers-per-minute", "2") as server:
            statuses = [server.request("POST", "/whip", "v=0", **SDP)[0] for _ in range(3)]
            self.assertEqual(statuses, [400, 400, 429])
            self.assertGreater(int(server.request("POST", "/whip", "v=0", **SDP)[1]["Retry-After"]), 0)

    def test_slow_headers_are_cut_off(self):
        with Server() as server:
            place = urllib.parse.urlsplit(server.url)
            with socket.create_connection((place.hostname, place.port), 60) as s:
                s.sendall(b"POST /whip HTTP/1.1\r\nX: ")
                begin, ended = time.monotonic(), False
                s.settimeout(0.5)
                while not ended and time.monotonic() < begin + 50:
                    try:
                        s.sendall(b"a")
                        ended = s.recv(1000) == b""
                    except TimeoutError:
                        pass
                    except OSError:
                        ended = True
            self.assertTrue(ended)
            self.assertEqual(server.request("GET", "/healthz")[0], 200)

    def test_going_down_refuses_and_ends(self):
        server = Server("--drain-timeout", "5")
        server.url
        status, headers, _ = server.request("POST", "/whip", offer(), **SDP)
        self.assertEqual(status, 201)
        self.assertEqual(server.stop(), 0)

    def test_what_cannot_work_is_said_at_once(self):
        for arguments, words in ((["--model", "/nowhere"], "/nowhere"), (["--address", "0.0.0.0"], "--token"),
                                 (["--port", "99999"], "--port")):
            done = subprocess.run([os.environ["CALL_SERVER"], *arguments], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 1)
            self.assertIn(words, done.stderr)

    def test_the_port_is_taken(self):
        with Server() as server:
            port = str(urllib.parse.urlsplit(server.url).port)
            done = subprocess.run([os.environ["CALL_SERVER"], "--device", "cpu", "--port", port], capture_output=True, text=True,
                                  timeout=60)
            self.assertEqual(done.returncode, 1)
            self.assertIn(port, done.stderr)

    def test_help(self):
        done = subprocess.run([os.environ["CALL_SERVER"], "--help-all"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0)
        self.assertIn("--max-calls", done.stdout)


if __name__ == "__main__":
    tap.main()
