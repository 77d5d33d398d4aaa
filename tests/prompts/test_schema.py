from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.prompts import schema
from jaxloop.prompts.jsonl import DataError, Row, read_jsonl
from jaxloop.prompts.schema import Fields

USER = {"role": "user", "content": "Hi?"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}


def row(**values) -> Row:
    return Row("f.jsonl:7", 7, values)


STANDARD = {
    "language modeling": {"text": "a b"},
    "prompt-only": {"prompt": "a"},
    "prompt-completion": {"prompt": "a", "completion": "b"},
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "unpaired preference": {"prompt": "a", "completion": "b", "label": False},
    "stepwise supervision": {
        "prompt": "a",
        "completions": ["b", "c"],
        "labels": [True, False],
    },
}
CONVERSATIONAL = {
    "language modeling": {"messages": [USER, YES]},
    "prompt-only": {"prompt": [USER]},
    "prompt-completion": {"prompt": [USER], "completion": [YES]},
    "preference": {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    "unpaired preference": {"prompt": [USER], "completion": [YES], "label": True},
}
IMPLICIT = {"chosen": [USER, YES], "rejected": [USER, NO]}


@pytest.mark.parametrize("rows", [STANDARD, CONVERSATIONAL], ids=["text", "chat"])
def test_each_type_is_recognised_and_read(rows):
    for kind, values in rows.items():
        made = row(**values, extra=1)
        assert schema.row_type(made, Fields()) == kind
        parsed = schema.parse_row(made, Fields())
        if kind == "prompt-only":
            assert parsed == as_content(values["prompt"])
            continue
        for name in set(values) - {"labels", "completions", "messages"}:
            assert getattr(parsed, name) == as_content(values[name])


def as_content(value):
    return tuple(value) if isinstance(value, list) else value


def test_fields_may_be_called_anything():
    fields = Fields(prompt="question", completion="answer")
    made = row(question="1+1?", answer="2")
    assert schema.row_type(made, fields) == "prompt-completion"
    assert schema.parse_completion(made, fields) == schema.CompletionRow("1+1?", "2")
    with pytest.raises(DataError, match=r"data\.prompt_field=question"):
        schema.row_type(made, Fields())


def test_an_implicit_prompt_is_the_common_messages():
    parsed = schema.parse_preference(row(**IMPLICIT), Fields())
    assert parsed == schema.PreferenceRow((USER,), (YES,), (NO,))
    alike = schema.parse_preference(
        row(chosen=[USER, YES], rejected=[USER, YES]), Fields()
    )
    assert alike == schema.PreferenceRow((USER,), (YES,), (YES,))


def test_an_implicit_prompt_of_texts_leaves_the_space_behind():
    parsed = schema.parse_preference(
        row(chosen="The sky is blue.", rejected="The sky is green.", margin=2), Fields()
    )
    assert parsed == schema.PreferenceRow("The sky is", " blue.", " green.", 2.0)
    with pytest.raises(DataError, match=r"f\.jsonl:7: chosen and rejected begin diff"):
        schema.parse_preference(row(chosen="a", rejected="b"), Fields())


@given(
    st.text(min_size=1),
    st.text(min_size=1),
    st.text(min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_splitting_a_prompt_loses_nothing(prompt, a, b):
    try:
        common, chosen, rejected = schema.split_prompt(prompt + a, prompt + b)
    except ValueError:
        assert prompt.startswith(" ")  # all that is common goes to the completions
        return
    assert (common + chosen, common + rejected) == (prompt + a, prompt + b)
    assert common


def test_transcripts_are_cut_at_the_last_common_turn():
    head = "\n\nHuman: Hi?\n\nAssistant:"
    parsed = schema.parse_preference(
        row(chosen=head + " I do.", rejected=head + " I do not."), Fields()
    )
    assert parsed == schema.PreferenceRow(head, " I do.", " I do not.")
    more = head + " Yes.\n\nHuman: Why?\n\nAssistant: So."
    parsed = schema.parse_preference(row(chosen=more, rejected=head + " X"), Fields())
    assert parsed.prompt == head
    assert schema.has_more_turns(parsed.prompt, parsed.chosen)
    assert not schema.has_more_turns(parsed.prompt, parsed.rejected)


def test_hh_rlhf_has_a_prompt_in_1996_of_2000_rows(data_file):
    rows, _ = read_jsonl(data_file("hh_rlhf/harmless_base_test.jsonl"))
    found: Counter = Counter()
    for item in rows:
        chosen, rejected = item.values["chosen"], item.values["rejected"]
        heads = {text.rpartition("\n\nAssistant:")[0] for text in (chosen, rejected)}
        found["same head"] += len(heads) == 1
        try:
            parsed = schema.parse_preference(item, Fields())
        except DataError:
            found["empty"] += chosen.endswith(": ") or rejected.endswith(": ")
            continue
        assert parsed.prompt.endswith("\n\nAssistant:")
        assert (parsed.prompt + parsed.chosen) == chosen
        assert (parsed.prompt + parsed.rejected) == rejected
        found["read"] += 1
        found["one turn"] += not any(
            schema.has_more_turns(parsed.prompt, completion)
            for completion in (parsed.chosen, parsed.rejected)
        )
    assert found == {"same head": 1996, "empty": 4, "read": 1996, "one turn": 1992}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": None}, "'prompt' is null"),
        ({"prompt": "  "}, "'prompt' is empty"),
        ({"prompt": 3}, "'prompt' must be a string or a list of messages, it is int 3"),
        ({"prompt": []}, "the conversation in 'prompt' is empty"),
        ({"prompt": ["x"]}, "message 0 of 'prompt' must be an object"),
        ({"prompt": [{"content": "x"}]}, "needs a `role`; it has .'content'."),
        ({"prompt": [{"role": "user"}]}, "needs a `content`"),
        ({"prompt": [USER, YES]}, "ends with the assistant"),
        ({"prompt": {"a": 1}}, "an object with the keys .'a'."),
    ],
)
def test_prompts_that_cannot_be_used_say_where_and_why(values, expected):
    with pytest.raises(DataError, match=rf"f\.jsonl:7: .*{expected}"):
        schema.parse_prompt(row(**values), Fields())


def test_completions_follow_the_format_of_the_prompt():
    mixed = row(prompt=[USER], completion="Yes.")
    assert schema.parse_completion(mixed, Fields()).completion == (YES,)
    with pytest.raises(DataError, match="is a conversation but the prompt is a string"):
        schema.parse_completion(row(prompt="a", completion=[YES]), Fields())
    with pytest.raises(DataError, match="'completion' is empty"):
        schema.parse_completion(row(prompt="a", completion=""), Fields())
    with pytest.raises(DataError, match="both be lists"):
        schema.parse_preference(row(chosen="a", rejected=[USER, NO]), Fields())


def test_labels_are_checked():
    with pytest.raises(DataError, match="'label' must be true or false, it is int 1"):
        schema.parse_unpaired(row(prompt="a", completion="b", label=1), Fields())
    with pytest.raises(DataError, match="2 completions but 1 labels"):
        schema.parse_steps(
            row(prompt="a", completions=["b", "c"], labels=[True]), Fields()
        )
    with pytest.raises(DataError, match="item 1 of 'labels' must be true or false"):
        schema.parse_steps(
            row(prompt="a", completions=["b", "c"], labels=[True, "no"]), Fields()
        )


def test_the_form_in_which_tfds_gives_messages_is_read():
    given = {"role": ["user", "assistant"], "content": ["Hi?", "Yes."]}
    assert schema.parse_text(row(messages=given), Fields()).text == (USER, YES)
