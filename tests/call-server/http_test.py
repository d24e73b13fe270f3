"""What minicpmo-call-server refuses, and how it ends. Offers come from tests/call-server/offers. Environment: see running_server.py."""
import concurrent.futures
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
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


def with_candidates(lines: list[str]) -> str:
    """The offer with these instead of its own."""
    return without(offer(), "a=candidate").replace("a=sendrecv\n", "".join(f"a=candidate:{x}\n" for x in lines) + "a=sendrecv\n", 1)


def without(sdp: str, start: str) -> str:
    return "".join(line for line in sdp.splitlines(keepends=True) if not line.startswith(start))


class OneServer(unittest.TestCase):
    """For all cases of a class; each leaves it without calls."""
    connect_timeout = 60  # calls that are meant to last do, on a loaded machine, too

    @classmethod
    def setUpClass(cls):
        cls.server = Server("--offers-per-minute", "100000", "--max-calls", "2", "--connect-timeout", str(cls.connect_timeout))
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

    def call(self, sdp: str | None = None) -> str:
        """The place of a new one."""
        status, headers, body = self.server.request("POST", "/whip", sdp or offer(), **SDP)
        self.assertEqual(status, 201, body)
        return headers["Location"]

    def ends(self, place: str):
        self.assertEqual(self.server.request("DELETE", place)[0], 200)


class Signalling(OneServer):
    connect_timeout = 3

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

    def test_a_page_elsewhere_that_may_call(self):
        """What browsers ask before OpenAI's library may call; its headers are more than a page's own."""
        asks = {"Origin": "https://page.example", "Access_Control_Request_Method": "POST",
                "Access_Control_Request_Headers": "authorization,content-type,x-openai-agents-sdk"}
        with Server("--token", "secret-of-16-chars", "--origin", "https://page.example") as server:
            status, headers, _ = server.request("OPTIONS", "/v1/realtime/calls", **asks)
            self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (204, "https://page.example"))
            # "*" does not stand for Authorization, and is not known to every browser.
            self.assertEqual(headers["Access-Control-Allow-Headers"].split(", "), ["Authorization", "Content-Type", "*"])
            self.assertIn("POST", headers["Access-Control-Allow-Methods"].split(", "))
            status, headers, _ = server.request("POST", "/v1/realtime/calls?model=gpt-realtime", offer(), Origin="https://page.example",
                                                Authorization="Bearer secret-of-16-chars", X_OpenAI_Agents_SDK="0.1", **SDP)
            self.assertEqual(status, 201)
            self.assertIn("Location", headers["Access-Control-Expose-Headers"])

    def test_an_answer_that_is_never_used(self):
        before = self.server.metric("minicpmo_calls_total", 'end="unconnected"')
        self.call()
        wait_for(lambda: self.server.calls() == 0, "it expired")
        self.assertEqual(self.server.metric("minicpmo_calls_total", 'end="unconnected"'), before + 1)


class Abuse(OneServer):
    def test_the_same_offer_twice_is_two_calls(self):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            at_once = list(pool.map(lambda _: self.call(), range(2)))
        self.assertNotEqual(*at_once)
        self.ends(at_once[0])
        self.assertEqual(self.server.calls(), 1)
        self.assertEqual(self.server.error("DELETE", at_once[0]), (404, "no_such_call"))
        after = self.call()
        self.assertNotIn(after, at_once)
        self.ends(at_once[1])
        self.ends(after)

    def test_candidates_and_ice_restarts_that_come_later(self):
        place = self.call()
        for body in ("a=mid:0\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n", "a=ice-ufrag:abcd\r\na=ice-pwd:" + "x" * 24):
            status, headers, reply = self.server.request("PATCH", place, body, Content_Type="application/trickle-ice-sdpfrag")
            self.assertEqual((status, headers["Allow"]), (405, "DELETE, OPTIONS"))
            self.assertIn("make a new call", json.loads(reply)["error"]["message"])
        self.assertEqual(self.server.error("POST", place, offer(), **SDP), (405, "method_not_allowed"))
        self.assertEqual(self.server.calls(), 1)  # it goes on
        self.ends(place)
        self.assertEqual(self.server.error("PATCH", place, "a=candidate:1")[0], 405)

    def test_candidates(self):
        for lines in (["1 1 udp 2113937151 6f1d3f5e-0c3a-4d9c-8d39-a5f1a5c5f4a1.local 51234 typ host"],
                      ["1 1 udp 2113937151 2001:db8::1 51234 typ host", "2 1 udp 2113937150 fe80::1%25lo 51234 typ host"],
                      ["1 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active", "2 1 tcp 1518280446 192.0.2.1 9 typ host tcptype passive",
                       "3 1 udp 2113937151 192.0.2.1 51234 typ host"],
                      ["", "x", "1 1 udp -1 999.999.999.999 99999999 typ none", "1 1 udp 1 192.0.2.1 9 typ host " + "x " * 1000, "%s%n"]):
            self.ends(self.call(with_candidates(lines)))
        self.refused(with_candidates([f"{i} 1 udp 1 192.0.2.1 9 typ host" for i in range(1000)]))

    def test_broken_http(self):
        """A whole reply of this status, or (None) a closed connection without any; never two."""
        host, kind, body = b"Host: localhost\r\n", b"Content-Type: application/sdp\r\n", offer().encode()
        get = b"GET /healthz HTTP/1.1\r\n" + host
        post = b"POST /whip HTTP/1.1\r\n" + host + kind
        length = b"Content-Length: %d\r\n" % len(body)
        form = b"--b\r\nContent-Disposition: form-data; name=sdp\r\n--b\r\n\r\n\r\n--b--\r\n"
        cases = {
            "two lengths": (400, post + length + b"Content-Length: 3\r\n\r\n" + body),
            "a list of lengths": (400, post + b"Content-Length: 3, 3\r\n\r\nv=0"),
            "a negative length": (None, post + b"Content-Length: -1\r\n\r\n" + body),
            "a length beyond 64 bits": (None, post + b"Content-Length: 99999999999999999999999\r\n\r\n" + body),
            "no length": (411, post + b"\r\n"),
            "a request behind a chunked one": (411, post + length + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get + b"\r\n"),
            "an encoding that there is not": (501, post + length + b"Transfer-Encoding: xchunked\r\n\r\n" + body),
            "a chunked body where none is read": (411, b"GET / HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            "a large body where none is read": (413, b"PUT / HTTP/1.1\r\n" + host + b"Content-Length: 200000\r\n\r\n" + b"a" * 200000),
            "two hosts": (400, b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n" + host + b"\r\n"),
            "no host": (400, b"GET /healthz HTTP/1.1\r\n\r\n"),
            "a header of 100 kB": (None, get + b"X: " + b"a" * 100000 + b"\r\n\r\n"),
            "many headers": (200, get + b"X: a\r\n" * 5000 + b"\r\n"),
            "too many headers": (None, get + b"X: a\r\n" * 100000 + b"\r\n"),
            "HTTP/1.0": (200, b"GET /healthz HTTP/1.0\r\n" + host + b"\r\n"),
            "HTTP/1.0 without a host": (403, b"GET /healthz HTTP/1.0\r\n\r\n"),
            "an expectation in HTTP/1.0": (417, b"POST /whip HTTP/1.0\r\n" + host + kind + b"Expect: 100-continue\r\n" + length + b"\r\n" + body),
            "an expectation that there is not": (417, post + b"Expect: 200-ok\r\n" + length + b"\r\n" + body),
            "HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            "three at once": (200, (get + b"\r\n") * 3),
            "NUL in the path": (400, b"GET /healthz\0 HTTP/1.1\r\n" + host + b"\r\n"),
            "NUL in the path, escaped": (400, b"GET /healthz%00 HTTP/1.1\r\n" + host + b"\r\n"),
            "NUL in a header": (400, b"GET /healthz HTTP/1.1\r\nHost: localhost\0.evil.example\r\n\r\n"),
            "an absolute target": (200, b"GET http://localhost/healthz HTTP/1.1\r\n" + host + b"\r\n"),
            "a proxy's request": (405, b"CONNECT localhost:80 HTTP/1.1\r\n" + host + b"\r\n"),
            "a form that ends in a part's head": (
                415, b"POST /v1/realtime/calls HTTP/1.1\r\n" + host + b"Content-Type: multipart/form-data; boundary=b\r\n"
                b"Content-Length: %d\r\n\r\n" % len(form) + form)}
        wrong = {}
        for name, (status, request) in cases.items():
            reply = self.server.raw(request)
            whole = len(re.findall(rb"(?m)^HTTP/1\.", reply)) == 1 and reply.split()[1] == str(status).encode()
            if not (whole if status else reply == b""):
                wrong[name] = reply
        self.assertEqual(wrong, {})
        self.assertEqual(self.server.calls(), 0)

    def test_bodies_that_nobody_wants_are_not_kept(self):
        place = urllib.parse.urlsplit(self.server.url)
        before = self.server.usage()[2]
        for head in (b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000000\r\n\r\n",
                     b"POST /whip HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 2000000000\r\n\r\n",
                     b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n77359400\r\n"):
            with socket.create_connection((place.hostname, place.port), 60) as s:
                s.sendall(head)
                for _ in range(100):
                    s.sendall(b"a" * 1_000_000)
                self.assertLess(self.server.usage()[2] - before, 50_000_000)

    def test_after_100_continue(self):
        """What is set before it is forgotten by libsoup: the connection would stay open."""
        body = offer().encode()
        reply = self.server.raw(b"POST /whip HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Type: application/sdp\r\n"
                                b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        first, last, _ = reply.split(b"\r\n\r\n", 2)
        self.assertTrue(first.startswith(b"HTTP/1.1 100 "), first)
        self.assertTrue(last.startswith(b"HTTP/1.1 201 "), last)
        for header in (b"Connection: close", b"Access-Control-Allow-Origin: http://localhost"):
            self.assertIn(header, last)
        self.ends(last.split(b"Location: ")[1].split()[0].decode())

    def test_what_browsers_ask_for_by_themselves(self):
        self.assertEqual(self.server.request("GET", "/favicon.ico")[0::2], (204, b""))
        status, headers, body = self.server.request("HEAD", "/")
        self.assertEqual((status, body), (200, b""))
        self.assertEqual(headers["Content-Length"], str(len(self.server.request("GET", "/")[2])))


class Others(unittest.TestCase):
    def test_token(self):
        with Server("--token", "secret-of-16-chars") as server:
            for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-of-16-chars"}, {"Authorization": "Bearer "}):
                self.assertEqual(server.error("POST", "/whip", offer(), **SDP, **wrong), (401, "invalid_token"))
            right = {"Authorization": "Bearer secret-of-16-chars"}
            status, headers, _ = server.request("POST", "/whip", offer(), **SDP, **right)
            self.assertEqual(status, 201)
            for wrong in ({}, {"Authorization": "Bearer secret-of-16-charS"}):
                self.assertEqual(server.error("DELETE", headers["Location"], **wrong)[0], 401)
            self.assertIn('minicpmo_calls 1\n', server.request("GET", "/metrics", **right)[2].decode())
            self.assertEqual(server.request("DELETE", headers["Location"], **right)[0], 200)
            # The token is of the server, not of a call: what is over stays over.
            self.assertEqual(server.error("DELETE", headers["Location"], **right), (404, "no_such_call"))
            self.assertEqual(server.request("GET", "/metrics")[0], 401)
            self.assertTrue(json.loads(server.request("GET", "/config.json")[2])["token_required"])
        lines = "\n".join(server.log)
        call = headers["Location"].removeprefix("/calls/")
        self.assertEqual(lines.count(call), 2, lines)
        self.assertRegex(lines, rf"call-begin id={call}\n")
        self.assertRegex(lines, rf"call-end id={call} reason=client seconds=\d+\.\d{{3}}\n")
        for secret in ("secret", "a=", "v=0", "candidate"):
            self.assertNotIn(secret, lines)

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

    def test_no_more_descriptors(self):
        """Whoever comes then waits until there are some."""
        with tempfile.TemporaryDirectory() as folder:
            few = pathlib.Path(folder, "few")
            few.write_text('#!/bin/sh\nulimit -n 40\nexec "$CALL_SERVER" "$@"\n')
            few.chmod(0o755)
            with Server(program=str(few)) as server:
                place = urllib.parse.urlsplit(server.url)
                idle = [socket.create_connection((place.hostname, place.port), 60) for _ in range(60)]
                wait_for(lambda: any("no connection can be accepted" in line for line in server.log), "it says so")
                for s in idle:
                    s.close()
                self.assertEqual(server.request("GET", "/healthz")[0], 200)
                self.assertLess(len([line for line in server.log if "can be accepted" in line]), 10)

    def test_more_slow_clients_than_connections(self):
        """512 may be open: whoever comes then is cut off at once, and the slow ones are after 20 s."""
        with Server() as server:
            place = urllib.parse.urlsplit(server.url)
            files = server.usage()[1]

            def come():
                s = socket.create_connection((place.hostname, place.port), 60)
                s.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
                return s

            def cut_off(s):
                try:
                    return s.recv(1000) == b""
                except ConnectionResetError:
                    return True
            slow, begin = [], time.monotonic()
            for _ in range(512):
                slow.append(come())
                while server.usage()[1] < files + len(slow) and time.monotonic() < begin + 15:  # few may wait to be accepted
                    time.sleep(0.001)
            late = [come() for _ in range(8)]
            self.assertTrue(all(map(cut_off, late)))
            wait_for(lambda: server.usage()[1] == files + len(slow), "only the slow ones are left")
            self.assertTrue(all(map(cut_off, slow)))
            self.assertEqual(server.request("GET", "/healthz")[0], 200)
            for s in slow + late:
                s.close()
            wait_for(lambda: server.usage()[1] <= files, "nothing is left of them")

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
