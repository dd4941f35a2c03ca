"""Pictures from http and https addresses."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

import multibox
from multibox.errors import ImageError, one_line
from multibox.pictures.read import read_picture

__all__ = ["read_url"]

URL_TIMEOUT_S = 30.0
"""How long a server may stay silent, and a quarter of how long a whole download may take."""
URL_MAX_BYTES = 256 << 20


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https and nothing else, so that a redirect cannot lead to file: or ftp: addresses."""
    opener = urllib.request.OpenerDirector()
    handlers = (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    )
    for handler in handlers:
        opener.add_handler(handler())
    return opener


def _request(url: str, shown: str) -> urllib.request.Request:
    """The address with spaces and letters beyond ASCII encoded, as browsers do."""
    try:
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.username is not None or re.search(r"[\x00-\x1f]", url):
            raise ValueError("it needs a host, and no user name, password or control character")
        port = "" if parts.port is None else f":{parts.port}"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname.encode("idna").decode()
        path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
        query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        plain = urllib.parse.urlunsplit((parts.scheme, host + port, path or "/", query, ""))
    except ValueError as error:
        raise ImageError(shown, f"is not a usable address ({one_line(error)})", "correct it") from error
    agent = f"multibox/{multibox.__version__}"
    return urllib.request.Request(plain, headers={"User-Agent": agent, "Accept": "image/*,*/*;q=0.5"})


def read_url(url: str, shown: str, max_pixels: int | None) -> NDArray[np.uint8]:
    request = _request(url, shown)
    try:
        with _opener().open(request, timeout=URL_TIMEOUT_S) as response:
            kind = str(response.headers.get_content_type())
            data = _download(response.read1, shown, int(response.headers.get("Content-Length") or 0))
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"the server answered {error.code} {one_line(error.reason)}".rstrip()
        raise ImageError(shown, reason, "check the address, or open it in a browser") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        _refuse_connection(shown, error)
    try:
        return read_picture(data, name=shown, max_pixels=max_pixels)
    except ImageError as error:
        if kind.startswith("image/"):
            raise
        raise ImageError(shown, f"{error.reason}; the server calls it {one_line(kind)}", error.remedy) from error


def _download(read1: Callable[[int], bytes], shown: str, promised: int) -> bytes:
    """The whole answer; a server that sends too much, too slowly or less than promised is refused."""
    chunks: list[bytes] = []
    deadline, length = time.monotonic() + 4 * URL_TIMEOUT_S, 0
    while length <= URL_MAX_BYTES and promised <= URL_MAX_BYTES:
        chunk = read1(1 << 18)
        if not chunk:
            if length < promised:
                reason = f"the connection ended after {length:,} of {promised:,} bytes"
                raise ImageError(shown, reason, "try again")
            return b"".join(chunks)
        chunks.append(chunk)
        length += len(chunk)
        if time.monotonic() > deadline:
            raise TimeoutError
    raise ImageError(shown, f"is longer than {URL_MAX_BYTES:,} bytes", "download it and give the file")


def _refuse_connection(shown: str, error: Exception) -> NoReturn:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        raise ImageError(shown, "the server does not answer in time", "try again later") from error
    reason = one_line(getattr(cause, "strerror", None) or cause or type(error).__name__)
    raise ImageError(shown, f"cannot be downloaded ({reason})", "check the address and the network") from error
