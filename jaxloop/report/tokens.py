"""Which characters of a completion each of its tokens stands for, if one can tell.

The records hold ids, log-probabilities and text. With the tokenizer (`decode`) the text
is cut into pieces; without it, only where each token is one character.
"""

import string
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from jaxloop.records import Rollout

Decode = Callable[[Sequence[int]], str]

# (index / 12)^2 nats: fine where tokens are likely, up to 51 nats in one character.
LEVELS = string.digits + string.ascii_letters + "!#$%()*+,-./:;=?@[]^_{|}~"
_LEVELS_A_ROOT_NAT = 12


def encode_logps(logps: Sequence[float]) -> str:
    """One character a token: the root of the nats, in twelfths (see `LEVELS`)."""
    last = len(LEVELS) - 1
    roots = (max(-logp, 0.0) ** 0.5 for logp in logps)
    return "".join(LEVELS[min(round(_LEVELS_A_ROOT_NAT * r), last)] for r in roots)


def piece_lengths(rollout: Rollout, decode: Decode | None) -> list[int] | None:
    """Characters of `rollout.text` for each token (0 for the end of sequence), or None
    where that cannot be told. An empty list says that each token is one character."""
    ids, text = rollout.token_ids, rollout.text
    if decode is not None:
        alone = [decode((token,)) for token in ids]
        if "".join(alone) == text:
            lengths = [len(piece) for piece in alone]
        else:
            lengths = _in_context(ids, decode)
            if sum(lengths) != len(text):
                return None
    elif 0 <= len(ids) - len(text) <= 1:
        return []
    else:
        return None
    body = lengths[:-1] if lengths and lengths[-1] == 0 else lengths
    return [] if all(length == 1 for length in body) else lengths


def _in_context(ids: Sequence[int], decode: Decode) -> list[int]:
    """Where one character is several tokens the last of them gets it; where a token's
    text depends on its neighbours, it is decoded behind the one before it."""
    lengths, start, read = [], 0, 0
    for end in range(1, len(ids) + 1):
        whole = decode(ids[start:end])
        if whole.endswith("\ufffd") and end < len(ids):
            lengths.append(0)
            continue
        lengths.append(len(whole) - len(decode(ids[start:read])))
        start, read = read, end
    return lengths


def find_decoder(out: Path, decode: Decode | None) -> Decode | None:
    """`decode`, or that of OUT/model/tokenizer if there is one, memoised."""
    path = out / "model" / "tokenizer" / "tokenizer.json"
    plain = decode
    if plain is None and path.exists():
        from tokenizers import Tokenizer

        plain = Tokenizer.from_file(str(path)).decode
    if plain is None:
        return None
    known: Decode = plain
    return lru_cache(maxsize=1 << 16)(lambda ids: known(list(ids)))
