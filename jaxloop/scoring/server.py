"""One chat completion of a server: sent, sent again where that may help, and read."""

import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass

from jaxloop.config.secrets import REDACTED, redact
from jaxloop.records import Stop

MOST_BYTES = 16 * 2**20  # of an answer
SHOWN = 200  # characters of a strange answer that a message quotes
LONGEST_PAUSE = 60.0  # seconds
BUSY = (408, 409, 425, 429)  # these and 5xx may be better the next time
HOPELESS = (401, 403, 404, 405)  # the same for every request


class Failed(Exception):
    """No answer to a request. `hopeless`: nor will there be to any other."""

    def __init__(self, what: str, *, hopeless: bool = False):
        super().__init__(what)
        self.hopeless = hopeless


class Refused(Failed):
    """The server does not want this request, which says nothing of others."""


class _Again(Exception):
    """Failed in a way that may pass; `pause`: what the server asks for, in seconds."""

    def __init__(self, what: str, pause: float = 0.0):
        super().__init__(what)
        self.pause = pause


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to a host that nobody named."""

    def redirect_request(self, *_):
        return None


@dataclass(frozen=True)
class Server:
    """An OpenAI-style API; the fields are those of `Endpoint`."""

    url: str
    key_variable: str
    timeout: float
    attempts: int
    pause: float

    def reach(self) -> None:
        """Failed where the key is missing or wrong, or nobody answers at all."""
        try:
            self._send("models")
        except _Again as error:
            raise Failed(f"{error}; is the server up?", hopeless=True) from None
        except Failed as error:
            if error.hopeless and "404" not in str(error):  # some list no models
                raise

    def complete(self, body: bytes, stopped: threading.Event) -> tuple[str, Stop]:
        """(text, how it ended) of a chat completion. Between attempts it waits longer
        each time, and not as long as its neighbours; until `stopped`."""
        pause = self.pause
        for attempt in range(1, self.attempts + 1):
            try:
                return _read(self._send("chat/completions", body))
            except _Again as error:
                wait = max(pause * random.uniform(0.5, 1.5), error.pause)
                last = attempt == self.attempts
                if last or stopped.wait(min(wait, LONGEST_PAUSE)):
                    raise Failed(f"{error}, {attempt} times") from None
                pause *= 2
        raise AssertionError("at least one attempt")

    def _send(self, path: str, body: bytes | None = None) -> str:
        """The text of the reply, without the key should it be in there."""
        key = self._key()
        headers = {"Content-Type": "application/json", "User-Agent": "jaxloop"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.url.rstrip('/')}/{path}"
        request = urllib.request.Request(url, body, headers)
        try:
            with urllib.request.build_opener(_NoRedirects).open(
                request, timeout=self.timeout
            ) as reply:
                return _without(key, reply.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                told = _excerpt(_without(key, error.read(MOST_BYTES)))
            raise self._failure(error, f"{error.code} {error.reason}{told}") from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise _Again(f"no answer ({why})") from None

    def _failure(self, error: urllib.error.HTTPError, what: str) -> Exception:
        if error.code in BUSY or error.code >= 500:
            asked = str(error.headers.get("Retry-After", ""))
            return _Again(what, float(asked) if asked.isdecimal() else 0.0)
        if error.code in (401, 403):
            name = self.key_variable
            what += f"; the key is in ${name}" if name else "; key_variable is empty"
        if error.code in HOPELESS or 300 <= error.code < 400:
            return Failed(what, hopeless=True)
        return Refused(what)

    def _key(self) -> str:
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key or not (key.isascii() and key.isprintable()):
            state = "holds characters that no key has" if key else "is not set"
            raise Failed(
                f"the environment variable {self.key_variable} {state}", hopeless=True
            )
        return key


def _without(key: str, content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    return text.replace(key, REDACTED) if key else text


def _excerpt(text: str) -> str:
    words = " ".join(redact("", text).split())
    return f": {words[:SHOWN]}" if words else ""


def _read(text: str) -> tuple[str, Stop]:
    try:
        choice = json.loads(text)["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise _Again(f"the answer is no chat completion{_excerpt(text)}") from None
    if not isinstance(content, str | None):
        raise _Again(f"the answer has no text{_excerpt(text)}")
    ended = choice.get("finish_reason") != "length"
    return content or "", "eos" if ended else "length"
