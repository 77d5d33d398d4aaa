"""The host's side, without a model: counting, stop strings, reasons."""

import numpy as np
import pytest

from jaxloop.records import Prompt
from jaxloop.sampling.decode import Chunk
from jaxloop.sampling.harvest import Harvester, Table, Task
from tests.sampling.tiny import Letters

EOS, LONGEST, C = 1, 12, 4


class Bytes:
    """One byte a token: letters beyond ASCII take several tokens."""

    @staticmethod
    def decode(ids):
        return bytes(ids).decode("utf-8", errors="replace")


def harvest(text: str, stops=(), decode=None, eos_at=None, max_new_tokens=LONGEST):
    """Feeds `text` to one row, chunk by chunk, as the device would."""
    letters = Letters()
    ids = [letters.alphabet.index(c) for c in text] if decode is None else list(text)
    decode = letters.decode if decode is None else decode
    if eos_at is not None:
        ids[eos_at] = EOS
    prompts = [Prompt("a", "", (5,))]
    harvester = Harvester(decode, stops, max_new_tokens, prompts, version=3)
    table = Table.empty(rows=2, longest=LONGEST)
    table.seat(1, Task(prompt=0, index=4, prompt_key=9, length=1))
    for start in range(0, len(ids), C):
        part = ids[start : start + C]
        count = min(len(part), max_new_tokens - start)
        eos = EOS in part[:count]
        count = part.index(EOS) + 1 if eos else count
        token_CB = np.full((C, 2), 7, np.int32)
        token_CB[: len(part), 1] = part
        logp_CB = -token_CB.astype(np.float32)
        chunk = Chunk(
            token_CB, logp_CB, logp_CB / 2, np.array([0, count]), np.array([False, eos])
        )
        done = harvester.harvest(table, chunk)
        if done:
            assert not table.rows.live_B.any()
            ((task, rollout),) = done
            assert (task.index, rollout.index, rollout.version) == (4, 4, 3)
            assert len(rollout.token_ids) == len(rollout.logps)
            assert rollout.logps == tuple(-float(i) for i in rollout.token_ids)
            assert rollout.drawn_logps == tuple(-i / 2 for i in rollout.token_ids)
            assert rollout.token_ids == tuple(ids[: len(rollout.token_ids)])
            return rollout
    return None


def test_eos_is_in_the_ids_and_not_in_the_text():
    rollout = harvest("abcdefgh", eos_at=5)
    assert (rollout.text, rollout.stop, len(rollout.token_ids)) == ("abcde", "eos", 6)
    assert rollout.token_ids[-1] == EOS


def test_length():
    rollout = harvest("abcdefgh", max_new_tokens=6)
    assert (rollout.text, rollout.stop, len(rollout.token_ids)) == (
        "abcdef",
        "length",
        6,
    )


def test_an_unfinished_row_goes_on():
    assert harvest("abcdefgh") is None


@pytest.mark.parametrize("text", ["abcdefghijkl", "xxxabcd", "abcabcdabcd"])
@pytest.mark.parametrize("stop", ["cd", "d", "abcd"])
def test_what_follows_a_stop_string_is_cut(text, stop):
    """Within a chunk, across chunks, in the last token: the earliest one counts."""
    text = text.ljust(LONGEST, "z")
    rollout = harvest(text, stops=(stop, "never"))
    end = text.index(stop) + len(stop)
    assert (rollout.text, rollout.stop) == (text[:end], "stop")
    assert len(rollout.token_ids) == end


def test_the_first_of_several_stops_counts():
    assert harvest("abcdefgh", stops=("fg", "cde")).text == "abcde"


def test_a_stop_string_before_the_end_of_sequence_wins():
    rollout = harvest("abcdefgh", stops=("bc",), eos_at=3)
    assert (rollout.text, rollout.stop) == ("abc", "stop")


def test_no_stop_string_in_what_comes_after_the_end_of_sequence():
    rollout = harvest("abcdefgh", stops=("fg",), eos_at=2)
    assert (rollout.text, rollout.stop) == ("ab", "eos")


def test_a_stop_string_inside_a_token_cuts_its_text_not_the_token():
    words = ["ab", "c\n\nd", "ef", "gh"]
    rollout = harvest(
        [0, 1, 2, 3],
        stops=("\n",),
        decode=lambda ids: "".join(words[i] for i in ids),
    )
    # Token 1 is this test's EOS id; so it ends there, but the stop string came first.
    assert (rollout.text, rollout.stop) == ("abc\n", "stop")
    assert rollout.token_ids == (0, 1)


def test_a_stop_of_several_bytes_across_chunks():
    text = "zzé→z".encode()
    rollout = harvest(text, stops=("é→",), decode=Bytes.decode)
    assert rollout.text == "zzé→"
    assert bytes(rollout.token_ids) == "zzé→".encode()


def test_nan_is_an_error_that_names_the_prompt():
    prompts = [Prompt("the-one", "", (5,))]
    table = Table.empty(rows=1, longest=C)
    table.seat(0, Task(prompt=0, index=0, prompt_key=1, length=1))
    nan_CB = np.full((C, 1), np.nan, np.float32)
    zeros_CB = np.zeros((C, 1), np.int32)
    chunk = Chunk(zeros_CB, nan_CB, nan_CB, np.array([C]), np.array([False]))
    with pytest.raises(FloatingPointError, match="the-one"):
        Harvester(Letters().decode, (), C, prompts, 0).harvest(table, chunk)
