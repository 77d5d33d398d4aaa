"""A judge behind a server: chat completions in OpenAI's form, over HTTP.

One request a sample, a few at once. What came back is kept in a folder by the hash of
the request, so that a run that is stopped, or whose server went away, asks for nothing
twice. What does not come back is an empty text, which no parser reads: invalid and
counted, never a score.
"""

import hashlib
import json
import queue
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxloop.folders import write_json
from jaxloop.records import Prompt, Rollout, Stop
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.server import Failed, Refused, Server

SPECIAL = ("<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>")
"""Whole tokens of many tokenizers, in a server that does not say which one it has; the
guard knows chat marks such as <|im_start|> by their form."""
LOST_IN_ROW = 8  # requests, all attempts in vain, after which nobody goes on asking
LOOK_EVERY = 0.1  # seconds between two looks at the clock and at signals

Answer = tuple[str, Stop]


class EndpointError(ValueError):
    """The server cannot serve as a judge; the message says why and what to do."""


@dataclass(frozen=True)
class Endpoint:
    """Who judges, where that is a server: `Judge(by=Endpoint(url, model))`."""

    url: str
    """Where the server's API begins: `http://localhost:8000/v1`."""
    model: str
    """What the server calls the model."""
    key_variable: str = ""
    """The environment variable with the API key (never the key itself), if any."""
    at_once: int = 16
    """Requests under way at a time."""
    timeout: float = 120.0
    """Seconds until a request counts as lost."""
    attempts: int = 5
    """How often a request is sent at most, when the server is busy or fails."""
    pause: float = 1.0
    """Seconds before the second attempt, about; doubled with each further one."""
    deadline: float = 3600.0
    """Seconds that a batch of requests may take altogether."""
    cache: str = ""
    """Folder of what came back, for several runs to share; empty is the run's own."""

    def __post_init__(self):
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"Endpoint: url={self.url!r} must begin with http:// or https://"
            )
        if "@" in parts.netloc:
            raise ValueError(
                "Endpoint: no user or password in the url; name the environment "
                "variable of the key in key_variable"
            )
        for name, least in (("at_once", 1), ("attempts", 1), ("pause", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"Endpoint: {name} must be at least {least}")
        if not (self.timeout > 0 and self.deadline > 0):
            raise ValueError("Endpoint: timeout and deadline must be above 0")

    def __str__(self) -> str:
        return self.model

    @property
    def server(self) -> Server:
        return Server(
            self.url, self.key_variable, self.timeout, self.attempts, self.pause
        )

    def check(self) -> None:
        """EndpointError where the key is not there, or nobody answers at the url."""
        try:
            self.server.reach()
        except Failed as error:
            raise EndpointError(f"judge endpoint {self.url}: {error}") from None

    def prompts(self, texts: Mapping[str, str]) -> list[Prompt]:
        """Requests; their tokens are the server's business."""
        return [Prompt(id, text, ()) for id, text in texts.items()]

    def write(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        kept: Path,
        on_progress: Callable[[int], None] = lambda done: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> list[tuple[Rollout, ...]]:
        """`sampling.n` answers to each prompt; empty ones where none came.

        `kept`: the folder of what came back, where `cache` names no other.
        `on_progress` is called often, with the number of answers so far, and may raise
        to stop. `say` gets a sentence on what did not come. EndpointError where the
        server cannot be used, answers nothing any more, or the deadline is missed; what
        came back before is kept.
        """
        folder = Path(self.cache) if self.cache else kept
        bodies = {
            (prompt.id, index): _body(self.model, prompt.text, sampling, index)
            for prompt in prompts
            for index in range(sampling.n)
        }
        names = {at: self._name(body) for at, body in bodies.items()}
        by_name = {names[at]: body for at, body in bodies.items()}
        found = {name: _read(folder, name) for name in by_name}
        waiting = {name: by_name[name] for name, told in found.items() if told is None}
        found |= self._fetch(waiting, folder, len(by_name), on_progress, say)

        def rollout(prompt: Prompt, index: int) -> Rollout:
            text, stop = found[names[prompt.id, index]] or ("", "length")
            return Rollout(prompt.id, index, (), text, (), (), stop)

        return [tuple(rollout(p, i) for i in range(sampling.n)) for p in prompts]

    def _name(self, body: bytes) -> str:
        return hashlib.sha256(self.url.encode() + b"\0" + body).hexdigest()

    def _fetch(
        self,
        waiting: Mapping[str, bytes],
        folder: Path,
        total: int,
        on_progress: Callable[[int], None],
        say: Callable[[str], None],
    ) -> dict[str, Answer | None]:
        """What comes back by name, None where nothing does."""
        ended = time.monotonic() + self.deadline
        found: dict[str, Answer | None] = {}
        in_row, lost = 0, ""
        with _Workers(self, waiting) as workers:
            while len(found) < len(waiting):
                on_progress(total - len(waiting) + len(found))
                if time.monotonic() > ended:
                    raise self._error(
                        f"only {len(found)} of {len(waiting)} requests were done in "
                        f"deadline={self.deadline:g} s"
                    )
                told = workers.next()
                if told is None:
                    continue
                name, result = told
                if isinstance(result, tuple):
                    in_row, found[name] = 0, result
                    text, stop = result
                    write_json(_file(folder, name), {"text": text, "stop": stop})
                    continue
                if not isinstance(result, Failed):
                    raise result
                if not isinstance(result, Refused):
                    in_row += 1
                found[name], lost = None, str(result)
                if result.hopeless or in_row >= LOST_IN_ROW:
                    raise self._error(lost)
        none = [name for name, told in found.items() if told is None]
        if none and len(none) == total:
            raise self._error(lost)
        if none:
            say(
                f"judge endpoint {self.url}: {len(none)} of {total} requests got no "
                f"answer and count as invalid judgements; the last: {lost}"
            )
        return found

    def _error(self, what: str) -> EndpointError:
        return EndpointError(
            f"judge endpoint {self.url} (model {self.model}): {what}. What came back "
            "is kept: the same command goes on from there"
        )


class _Workers:
    """Threads that send requests. They are daemons: a request that hangs holds nobody
    up once the batch is given up."""

    def __init__(self, endpoint: Endpoint, waiting: Mapping[str, bytes]):
        self._server = endpoint.server
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        self._stopped = threading.Event()
        for item in waiting.items():
            self._waiting.put(item)
        self._count = min(endpoint.at_once, len(waiting))

    def __enter__(self) -> "_Workers":
        for _ in range(self._count):
            threading.Thread(target=self._work, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._stopped.set()

    def next(self) -> tuple[str, Answer | Exception] | None:
        """What came back next, if anything did in a moment."""
        try:
            return self._results.get(timeout=LOOK_EVERY)
        except queue.Empty:
            return None

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                name, body = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._results.put((name, self._server.complete(body, self._stopped)))
            except Exception as error:  # the caller's thread raises what is a fault
                self._results.put((name, error))


def _body(model: str, text: str, sampling: Sampling, index: int) -> bytes:
    """The request for sample `index`, whose seed that is; settings that OpenAI's API
    does not have are in it only where they do something."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": index,
    }
    more = {"top_k": sampling.top_k, "min_p": sampling.min_p, "stop": sampling.stop}
    body |= {name: value for name, value in more.items() if value}
    return json.dumps(body, sort_keys=True).encode()


def _file(folder: Path, name: str) -> Path:
    path = folder / name[:2] / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _read(folder: Path, name: str) -> Answer | None:
    """What came back earlier; None where nothing did, or the file is damaged."""
    try:
        told = json.loads(_file(folder, name).read_text(encoding="utf-8"))
        return str(told["text"]), "eos" if told["stop"] == "eos" else "length"
    except (OSError, ValueError, KeyError, TypeError):
        return None
