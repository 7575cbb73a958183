"""One POST of JSON to an HTTP server, bounded in time and size.

Reply  what came: status, body, asked-for wait, where to a redirect leads
post   one request; redirects 307 and 308 within the host are followed
"""

from __future__ import annotations

import email.utils
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

MOST_BYTES = 8 * 2**20  # of an answer's body
WHOLE = 3  # silences that a whole answer may last
HOPS = 5  # redirects in a row
LOCAL = ("localhost", "127.0.0.1", "::1")


class Reply(NamedTuple):
    """What came of a request; status 0 and a reason where no whole answer did."""

    status: int
    text: str
    wait: float | None = None  # seconds that the server asks to wait
    to: str = ""  # address of a redirect that is not followed


def post(url: str, body: dict, secret: str, timeout: float) -> Reply:
    """Send `body` with the key `secret` ("" for none); `timeout` bounds a silence, WHOLE of them the answer.

    The key goes to the host of `url` alone, and never from https to http.
    """
    data, until = json.dumps(body).encode(), time.monotonic() + WHOLE * timeout
    for _ in range(HOPS):
        reply = _once(url, data, secret, timeout, until)
        if reply.status not in (307, 308) or not reply.to or not _same_host(url, reply.to):
            return reply
        url = reply.to
    return Reply(0, f"more than {HOPS} redirects in a row")


def _once(url: str, data: bytes, secret: str, timeout: float, until: float) -> Reply:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    if secret:
        request.add_unredirected_header("Authorization", f"Bearer {secret}")
    sockets: list = []
    # a proxy does not reach this machine's own servers
    proxy = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in LOCAL else []
    opener = urllib.request.build_opener(_Stay, _Http(sockets), _Https(sockets), *proxy)
    late = threading.Event()
    # a byte now and then keeps every timeout of a socket away, also while headers come
    alarm = threading.Timer(max(until - time.monotonic(), 0), _shut, (sockets, late))
    alarm.daemon = True
    alarm.start()
    try:
        try:
            with opener.open(request, timeout=timeout) as answer:
                return _whole(answer, answer.status, until)
        except urllib.error.HTTPError as error:
            with error:
                reply = _whole(error, error.code, until)
                to = error.headers.get("Location") if 300 <= error.code < 400 else ""
                return reply._replace(
                    wait=_wait(error.headers.get("Retry-After")), to=urljoin(url, to) if to else ""
                )
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if late.is_set() or isinstance(error, _TooLate):
            return Reply(0, f"no whole answer in {WHOLE * timeout:g} s")
        if isinstance(error, _TooLong):
            return Reply(0, f"an answer of more than {MOST_BYTES} bytes")
        if isinstance(reason, TimeoutError):
            return Reply(0, f"silent for {timeout:g} s")
        return Reply(0, f"no connection ({str(reason) or type(reason).__name__})")
    finally:
        alarm.cancel()


class _TooLate(OSError):
    pass


class _TooLong(OSError):
    pass


class _Stay(urllib.request.HTTPRedirectHandler):
    """urllib would repeat a redirected POST as a GET without its body."""

    def redirect_request(self, *given) -> None:
        return None


class _Http(urllib.request.HTTPHandler):
    def __init__(self, sockets: list) -> None:
        super().__init__()
        self.sockets = sockets

    def http_open(self, request):
        return self.do_open(_noted(http.client.HTTPConnection, self.sockets), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, sockets: list) -> None:
        super().__init__()
        self.sockets = sockets

    def https_open(self, request):
        return self.do_open(_noted(http.client.HTTPSConnection, self.sockets), request)


def _noted(kind: type[http.client.HTTPConnection], sockets: list) -> type[http.client.HTTPConnection]:
    """A connection that adds its socket to a list."""

    class Noted(kind):
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    return Noted


def _shut(sockets: list, late: threading.Event) -> None:
    late.set()
    for one in list(sockets):
        with suppress(OSError):
            one.shutdown(2)


def _whole(answer: http.client.HTTPResponse, status: int, until: float) -> Reply:
    parts, size = [], 0
    while part := answer.read1(2**16):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise _TooLong
        if time.monotonic() > until:
            raise _TooLate
    if time.monotonic() > until:  # the alarm ends a body as its server would
        raise _TooLate
    wanted = answer.headers.get("Content-Length", "")
    if wanted.isdigit() and size < int(wanted) and not answer.headers.get("Transfer-Encoding"):
        raise http.client.IncompleteRead(b"", int(wanted) - size)  # read1 ends there without a word
    return Reply(status, b"".join(parts).decode("utf-8", "replace"))


def _same_host(url: str, to: str) -> bool:
    """Whether a redirect stays on its host and port, or goes from http to https there."""
    try:
        before, after = urlsplit(url), urlsplit(to)
        ports = before.port, after.port
    except ValueError:
        return False
    if before.hostname != after.hostname or after.username or after.password:
        return False
    if (before.scheme, after.scheme) == ("http", "https"):
        return True
    return before.scheme == after.scheme and ports[0] == ports[1]


def _wait(header: str | None) -> float | None:
    """Seconds in a Retry-After header, which are a number or a date; None for anything else."""
    try:
        seconds = float(header) if header else None
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if seconds is None or seconds != seconds else max(seconds, 0.0)
