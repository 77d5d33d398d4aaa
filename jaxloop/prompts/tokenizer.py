"""Text to token ids and back: one wrapper around a Hugging Face fast tokenizer.

Only data is read (`tokenizer.json` and the small JSON and Jinja files beside it), never
code. Masks come from lengths, so the padding token may be an end-of-sequence token.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_GENERATION = ("generation_config.json", "config.json")
_GENERATION_MARK = r"\{%-?\s*generation\s*-?%\}"
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_NO_TEMPLATE = (
    "the tokenizer has no chat template: name one with --tokenizer.chat_template "
    "(Jinja text, or a file of it), or use the raw-prompt mode, data.chat=false, with "
    "prompts that are plain strings"
)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A fast tokenizer with its special tokens made explicit.

    `eos_ids` are all tokens that end a completion, the one to write first; `bos_ids`
    is what the tokenizer itself puts before plain text (may be empty); `size` is the
    largest token id plus one; `fingerprint` is a hash of vocabulary and special tokens.
    `files` holds the files that it was loaded from, so that an export is exact.
    """

    hf: "PreTrainedTokenizerFast"
    eos_ids: tuple[int, ...]
    bos_ids: tuple[int, ...]
    pad_id: int
    size: int
    fingerprint: str
    chat_template: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of `text`, nothing added. A character that the vocabulary cannot
        write is a ValueError."""
        try:
            encoding = self.hf.backend_tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the Rust library raises bare `Exception`
            raise ValueError(
                f"the vocabulary cannot write {text[:80]!r} ({error})"
            ) from error
        return tuple(encoding.ids)

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """The tokens of a plain-text prompt: `bos_ids` in front, never twice."""
        ids = self.encode(text)
        if ids[: len(self.bos_ids)] == self.bos_ids:
            return ids
        return self.bos_ids + ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens."""
        return self.hf.backend_tokenizer.decode(list(ids), skip_special_tokens=True)

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Any] | None = None,
        **template_kwargs: Any,
    ) -> str:
        """What the chat template (sandboxed Jinja) writes for `messages`."""
        return self._apply(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            **template_kwargs,
        )

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Any] | None = None,
        **template_kwargs: Any,
    ) -> tuple[int, ...]:
        """The tokens of a conversation. Only the template writes special tokens, so a
        template with its own BOS does not end up with two."""
        text = self.chat_text(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            **template_kwargs,
        )
        return self.encode(text)

    @property
    def marks_generation(self) -> bool:
        """Whether the chat template marks what the assistant wrote."""
        return re.search(_GENERATION_MARK, self.chat_template or "") is not None

    def chat_mask(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        **template_kwargs: Any,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(token ids, mask that is 1 on what the assistant wrote), by the template's
        own `{% generation %}` marks. ValueError where it has none."""
        if not self.marks_generation:
            raise ValueError("the chat template has no {% generation %} marks")
        out = self._apply(
            messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tools=tools,
            **template_kwargs,
        )
        return tuple(out["input_ids"]), tuple(out["assistant_masks"])

    def _apply(self, messages, **kwargs) -> Any:
        if self.chat_template is None:
            raise ValueError(_NO_TEMPLATE)
        from jinja2 import TemplateError

        plain = [dict(message) for message in messages]
        try:
            return self.hf.apply_chat_template(
                plain, chat_template=self.chat_template, **kwargs
            )
        except (TemplateError, TypeError) as error:
            roles = [message.get("role") for message in plain]
            raise ValueError(
                f"the chat template refuses a conversation with the roles {roles}: "
                f"{error}"
            ) from error

    def save(self, directory: str | Path) -> None:
        """Write a directory that `transformers.AutoTokenizer` loads with the same ids:
        the files it came from, byte for byte, or newly made ones."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        own = ""
        if self.files:
            own = _own_template(_config(self.files, directory), self.files)
        else:
            self.hf.save_pretrained(directory)
            _name_portable_class(directory / "tokenizer_config.json")
        for name, content in self.files.items():
            (directory / name).write_bytes(content)
        if self.chat_template is not None and self.chat_template != own:
            path = directory / "chat_template.jinja"
            path.write_text(self.chat_template, encoding="utf-8", newline="")


def load_tokenizer(
    path: str | Path, *, chat_template: str = "", revision: str | None = None
) -> Tokenizer:
    """The tokenizer of a Hugging Face directory or hub id.

    `chat_template` (Jinja text, or the path of a file of it) replaces the directory's
    own; `revision` pins a commit of a hub id. End-of-sequence ids are the union of the
    tokenizer's and those of `generation_config.json`. ValueError, naming the fix, where
    there is no `tokenizer.json` or no end-of-sequence token.
    """
    directory = _directory(str(path), revision)
    files = _read_files(directory, FILES)
    config = _config(files, directory)
    hf = _build(directory, config)
    eos_ids = _eos_ids(hf, directory)
    source = chat_template or _own_template(config, files)
    return _wrap(hf, eos_ids, chat_template=_template_text(source), files=files)


def character_tokenizer(alphabet: str, *, chat_template: str = "") -> Tokenizer:
    """A tokenizer with a token for each character of `alphabet` (in its order, from id
    2), `<pad>` = 0 and `<eos>` = 1. Other characters cannot be encoded: ValueError."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    if not alphabet or len(set(alphabet)) != len(alphabet):
        raise ValueError(
            f"an alphabet needs characters, each of them once: {alphabet!r}"
        )
    vocabulary = {"<pad>": 0, "<eos>": 1}
    vocabulary |= {character: 2 + i for i, character in enumerate(alphabet)}
    backend = Backend(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    hf = _transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    return _wrap(hf, (1,), chat_template=_template_text(chat_template), files={})


def _wrap(hf, eos_ids, *, chat_template, files) -> Tokenizer:
    backend = hf.backend_tokenizer
    # Either may be stored in tokenizer.json, and would cut or lengthen silently.
    backend.no_truncation()
    backend.no_padding()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    bos_ids = _prefix(backend)
    pad_id = eos_ids[0] if hf.pad_token_id is None else hf.pad_token_id
    specials = {"eos": eos_ids, "bos": bos_ids, "pad": pad_id}
    content = json.dumps([sorted(vocabulary.items()), specials])
    return Tokenizer(
        hf=hf,
        eos_ids=eos_ids,
        bos_ids=bos_ids,
        pad_id=pad_id,
        size=max(vocabulary.values()) + 1,
        fingerprint=hashlib.sha256(content.encode()).hexdigest()[:16],
        chat_template=chat_template,
        files=files,
    )


def _transformers():
    """transformers, without its notice that PyTorch is absent: we mean it to be."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        import transformers
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return transformers


def _directory(path: str, revision: str | None) -> Path:
    if Path(path).is_dir():
        return Path(path)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ValueError(f"tokenizer: there is no directory {path!r}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [*FILES, *_GENERATION]
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"tokenizer: {path!r} is neither a directory here nor a hub id that can be "
            f"fetched now ({type(error).__name__}); give the path of a directory"
        ) from error


def _read_files(directory: Path, names) -> dict[str, bytes]:
    paths = {name: directory / name for name in names}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}


def _json(content: bytes, path: Path) -> dict:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no JSON object: {error}") from error


def _config(files: Mapping[str, bytes], directory: Path) -> dict:
    """tokenizer_config.json over special_tokens_map.json; both are optional."""
    if "tokenizer.json" not in files:
        raise ValueError(
            f"{directory} has no tokenizer.json: only that form is read; write it with "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) in transformers"
        )
    config = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in files:
            config |= _json(files[name], directory / name)
    return config


def _build(directory: Path, config: Mapping[str, Any]):
    """The fast tokenizer, from tokenizer.json itself: no class that the directory names
    is looked up, so none of its code can run."""
    from tokenizers import AddedToken

    kwargs: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    for name in _NAMED:
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            kwargs[name] = token
    if isinstance(config.get("add_bos_token"), bool):
        kwargs["add_bos_token"] = config["add_bos_token"]
    added = config.get("added_tokens_decoder") or {}
    if added:
        kwargs["added_tokens_decoder"] = {
            int(i): AddedToken(
                **{k: v for k, v in token.items() if not k.startswith("_")}
            )
            for i, token in added.items()
        }
    path = directory / "tokenizer.json"
    try:
        fast = _transformers().PreTrainedTokenizerFast
        hf = fast(tokenizer_file=str(path), **kwargs)
    except Exception as error:  # the Rust library raises bare `Exception`
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error
    for i, token in added.items():
        if hf.convert_tokens_to_ids(token["content"]) != int(i):
            raise ValueError(
                f"{directory}: tokenizer_config.json says that {token['content']!r} is "
                f"token {i}; tokenizer.json disagrees"
            )
    return hf


def _eos_ids(hf, directory: Path) -> tuple[int, ...]:
    ids = [] if hf.eos_token_id is None else [hf.eos_token_id]
    for name, content in _read_files(directory, _GENERATION).items():
        if name == "config.json" and ids:
            continue  # often a default that its writer never looked at
        value = _json(content, directory / name).get("eos_token_id")
        if value is not None:
            ids += value if isinstance(value, list) else [value]
    ids = list(dict.fromkeys(ids))
    if not ids:
        raise ValueError(
            f"{directory}: no end-of-sequence token. Write `eos_token` in "
            "tokenizer_config.json, or `eos_token_id` in generation_config.json"
        )
    unknown = [i for i in ids if hf.convert_ids_to_tokens(i) is None]
    if unknown:
        raise ValueError(
            f"{directory}: end-of-sequence ids {unknown} are not in tokenizer.json"
        )
    return tuple(ids)


def _own_template(config: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8")
    template = config.get("chat_template") or ""
    if isinstance(template, list):  # several, by name
        template = {item["name"]: item["template"] for item in template}
        template = template.get("default", "")
    return template


def _template_text(source: str) -> str | None:
    if not source:
        return None
    if "{{" in source or "{%" in source:
        return source
    if not Path(source).is_file():
        raise ValueError(
            f"tokenizer.chat_template: {source!r} is neither Jinja text nor a file"
        )
    return Path(source).read_text(encoding="utf-8")


def _prefix(backend) -> tuple[int, ...]:
    """What the tokenizer puts before a text of its own accord."""
    if backend.num_special_tokens_to_add(False) == 0:
        return ()
    special = backend.get_added_tokens_decoder()
    ordinary = next(i for i in range(backend.get_vocab_size()) if i not in special)
    probe = backend.decode([ordinary])
    plain = backend.encode(probe, add_special_tokens=False).ids
    whole = backend.encode(probe, add_special_tokens=True).ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


def _name_portable_class(path: Path) -> None:
    """transformers 5 names its own class, which version 4 (and what is built on it)
    does not know; both know this name."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
