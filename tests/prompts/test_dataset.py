import json
from dataclasses import replace

import pytest

from jaxloop.prompts.dataset import JsonlData, check_vocabulary
from jaxloop.prompts.jsonl import DataError
from jaxloop.records import Prompt

USER = {"role": "user", "content": "hello"}
END = {"role": "assistant", "content": "the end"}
QUESTIONS = [{"question": f"{i}+1?", "answer": str(i + 1), "n": i} for i in range(4)]
GSM = JsonlData(prompt_field="question", completion_field="answer")


def test_prompts_keep_their_columns_and_their_line(write_jsonl, bpe):
    data = replace(GSM, train=write_jsonl(QUESTIONS))
    first = data.load(bpe).train[0]
    assert first == Prompt(
        "train:1", "0+1?", bpe.encode_prompt("0+1?"), {"answer": "1", "n": 0}
    )


def test_templates_make_prompts_and_completions(write_jsonl, bpe):
    path = write_jsonl(QUESTIONS)
    data = JsonlData(
        train=path,
        demonstrations="train",
        template="Question: {question}\nAnswer:",
        completion_template=" {answer}",
    )
    dataset = data.load(bpe)
    assert dataset.train[0].text == "Question: 0+1?\nAnswer:"
    assert dataset.train[0].columns["answer"] == "1"
    made = dataset.demonstrations[0]
    border = len(dataset.train[0].token_ids)
    assert made.token_ids[:border] == dataset.train[0].token_ids
    assert made.token_ids[border:] == (*bpe.encode(" 1"), bpe.eos_ids[0])
    assert made.mask == (0,) * border + (1,) * (len(made.mask) - border)


def test_an_answer_may_be_called_else_and_names_of_arguments_are_kept_free(
    write_jsonl, bpe
):
    rows = [{"prompt": "a", "completion": "b", "target": "c"}]
    data = JsonlData(train=write_jsonl(rows), answer_field="target")
    # Scorers get `prompt` and `completion` already.
    assert data.load(bpe).train[0].columns == {"target": "c", "answer": "c"}


def test_conversations_use_the_chat_template(write_jsonl, bpe):
    rows = [{"prompt": [USER]}]
    prompt = JsonlData(train=write_jsonl(rows), system="be kind").load(bpe).train[0]
    messages = ({"role": "system", "content": "be kind"}, USER)
    assert prompt.messages == messages
    assert prompt.token_ids == bpe.chat_ids(messages, add_generation_prompt=True)
    assert bpe.encode(prompt.text) == prompt.token_ids


def test_chat_true_makes_a_text_the_users_message(write_jsonl, bpe):
    rows = [{"prompt": "hello", "completion": "the end"}]
    path = write_jsonl(rows)
    as_text = JsonlData(train=path, demonstrations=path, chat=True).load(bpe)
    rows = [{"prompt": [USER], "completion": [END]}]
    path = write_jsonl(rows, "chat.jsonl")
    as_messages = JsonlData(train=path, demonstrations=path).load(bpe)
    assert as_text.train[0].token_ids == as_messages.train[0].token_ids
    assert as_text.demonstrations == as_messages.demonstrations


def test_chat_false_takes_one_message_plain_and_refuses_more(write_jsonl, bpe):
    data = JsonlData(train=write_jsonl([{"prompt": [USER]}]), chat=False)
    assert data.load(bpe).train[0].text == "hello"
    talk = write_jsonl([{"prompt": [USER, END, USER]}])
    with pytest.raises(DataError, match="not for us to guess"):
        replace(data, train=talk).load(bpe)
    with pytest.raises(DataError, match=r"data\.chat=true makes it"):
        replace(data, system="be kind").load(bpe)


def test_a_missing_template_stops_with_both_ways_out(write_jsonl, plain):
    data = JsonlData(train=write_jsonl([{"prompt": [USER]}]))
    with pytest.raises(DataError, match=r"tokenizer\.chat_template.*data\.chat=false"):
        data.load(plain)


def test_rows_can_hand_arguments_to_the_template(write_jsonl, bpe):
    tokenizer = replace(bpe, chat_template="{{ mood }} {{ tools[0].name }}")
    rows = [
        {
            "prompt": [USER],
            "tools": [{"name": "hammer"}],
            "chat_template_kwargs": {"mood": "glad"},
        }
    ]
    data = JsonlData(train=write_jsonl(rows))
    assert data.load(tokenizer).train[0].text == "glad hammer"


def test_texts_and_messages_are_demonstrations_too(write_jsonl, bpe):
    path = write_jsonl([{"text": "hello"}, {"messages": [USER, END]}])
    text, talk = JsonlData(demonstrations=path).load(bpe).demonstrations
    assert set(text.mask) == {1}
    pairs = zip(talk.token_ids, talk.mask, strict=True)
    assert bpe.hf.decode([i for i, m in pairs if m]) == "the end<|im_end|>"


def test_a_demonstration_without_completion_names_the_nearest(write_jsonl, bpe):
    path = write_jsonl([{"prompt": "a", "completions": "b"}])
    with pytest.raises(DataError, match="no field 'completion'; the nearest is 'compl"):
        JsonlData(demonstrations=path).load(bpe)


def test_long_prompts_stop_are_filtered_or_cut(write_jsonl, bpe):
    rows = [{"prompt": "x" * n} for n in (3, 4, 30)]
    data = JsonlData(train=write_jsonl(rows), max_prompt_tokens=5)
    with pytest.raises(DataError, match="1 of 3 prompts are longer") as error:
        data.load(bpe)
    assert "max_prompt_tokens=5 (half have at most 5 tokens" in str(error.value)
    assert "the longest 31)" in str(error.value)
    filtered = replace(data, on_long="filter").load(bpe)
    assert [p.id for p in filtered.train] == ["train:1", "train:2"]
    assert "left out" in filtered.notes[0]
    cut = replace(data, on_long="truncate").load(bpe).train[2]
    assert cut.token_ids == (0, *bpe.encode("xxxx"))  # the prefix stays
    assert cut.text == "xxxx"
    with pytest.raises(DataError, match="filter leaves none"):
        replace(data, on_long="filter", max_prompt_tokens=2).load(bpe)


def test_pairs_are_tokenised_and_useless_ones_dropped(write_jsonl, bpe):
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c", "margin": 0.5}]
    rows += [{"prompt": "a", "chosen": " b", "rejected": " b"}]
    data = JsonlData(pairs=write_jsonl(rows), max_dropped_fraction=0.5)
    dataset = data.load(bpe)
    (pair,) = dataset.pairs
    assert pair.prompt.token_ids == bpe.encode_prompt("a")
    assert pair.chosen.token_ids == (*bpe.encode(" b"), bpe.eos_ids[0])
    assert pair.rejected.text == " c"
    assert (pair.chosen_score, pair.rejected_score) == (0.5, 0.0)
    assert dataset.notes[0].endswith("dropped 1 of 2 rows: chosen equal to rejected")
    with pytest.raises(DataError, match="1 of 2 pairs are no use"):
        replace(data, max_dropped_fraction=0.4).load(bpe)


def test_conversational_pairs_share_their_prompt(write_jsonl, bpe):
    no = {"role": "assistant", "content": "no more"}
    path = write_jsonl([{"chosen": [USER, END], "rejected": [USER, no]}])
    (pair,) = JsonlData(pairs=path).load(bpe).pairs
    assert pair.prompt.token_ids == bpe.chat_ids([USER], add_generation_prompt=True)
    assert bpe.hf.decode(pair.chosen.token_ids) == "the end<|im_end|>"
    assert (pair.rejected.text, pair.rejected.index) == ("no more", 1)


def test_examples_do_not_learn_what_tools_said(write_jsonl, bpe):
    tool = {"role": "tool", "content": "hello"}
    row = {"prompt": [USER], "rejected": [END], "label": True}
    row["chosen"] = row["completion"] = [END, tool, END]
    path = write_jsonl([row])
    dataset = JsonlData(pairs=path, labelled=path).load(bpe)
    ((start, end),) = dataset.pairs[0].chosen.masked
    told = bpe.hf.decode(dataset.pairs[0].chosen.token_ids[start:end])
    assert told == "\n<|im_start|>tool\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert dataset.pairs[0].rejected.masked == ()
    assert dataset.labelled[0].rollout.masked == ((start, end),)


@pytest.mark.parametrize("learned", ["train", "demonstrations"])
def test_what_is_tested_must_not_be_trained_on(write_jsonl, bpe, learned):
    test = write_jsonl(QUESTIONS[2:], "test.jsonl")
    data = replace(GSM, test=test, **{learned: write_jsonl(QUESTIONS[:3])})
    with pytest.raises(DataError, match="1 of 2 test prompts are also trained on"):
        data.load(bpe)
    notes = replace(data, allow_overlap=True).load(bpe).notes
    assert any("1 of 2 test prompts" in note for note in notes)


def test_repeated_prompts_are_counted_and_kept_apart(write_jsonl, bpe):
    dataset = replace(GSM, train=write_jsonl(QUESTIONS[:2] * 2)).load(bpe)
    assert len({prompt.id for prompt in dataset.train}) == 4
    assert "2 of 4 prompts repeat an earlier one" in dataset.notes[0]


def test_bad_rows_are_counted_with_those_the_reader_finds(tmp_path, bpe):
    path = tmp_path / "rows.jsonl"
    rows = [json.dumps({"prompt": text}) for text in ("a", "", "b", "c")]
    path.write_text("\n".join([*rows, "{oops"]))
    data = JsonlData(train=str(path), on_bad_row="skip", max_bad_fraction=0.4)
    dataset = data.load(bpe)
    assert [prompt.id for prompt in dataset.train] == ["train:1", "train:3", "train:4"]
    assert "left out 2 of 5 rows as bad" in dataset.notes[0]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the field 'prompt' is empty"):
        replace(data, on_bad_row="error").load(bpe)


def test_contradictions_come_before_reading(bpe):
    with pytest.raises(ValueError, match="no source"):
        JsonlData().load(bpe)
    with pytest.raises(ValueError, match=r"there is no data\.train"):
        JsonlData(test="x", demonstrations="train").load(bpe)
    with pytest.raises(ValueError, match=r"data\.template"):
        JsonlData(train="x", template="{").load(bpe)


def test_a_vocabulary_larger_than_the_embedding_is_refused(bpe):
    check_vocabulary(bpe, bpe.size)
    check_vocabulary(bpe, bpe.size + 100)  # padding
    with pytest.raises(ValueError, match=rf"largest token id is {bpe.size - 1}, but"):
        check_vocabulary(bpe, bpe.size - 1)


def test_gsm8k(data_file, tmp_path, bpe):
    with data_file("gsm8k/train.jsonl").open("rb") as file:
        train = [next(file) for _ in range(300)]
    (tmp_path / "train.jsonl").write_bytes(b"".join(train))
    data = replace(
        GSM,
        train=str(tmp_path / "train.jsonl"),
        test=str(data_file("gsm8k/test.jsonl")),
        demonstrations="train",
        template="Question: {question}\nAnswer:",
        completion_template=" {answer}",
        max_prompt_tokens=2000,
    )
    dataset = data.load(bpe)
    assert (len(dataset.train), len(dataset.test)) == (300, 659)
    assert len(dataset.demonstrations) == 300
    for prompt, made in zip(dataset.train, dataset.demonstrations, strict=True):
        answer = prompt.columns["answer"]
        assert "####" in answer
        assert bpe.decode(made.token_ids) == f"{prompt.text} {answer}"


def test_nested_fields_of_real_files(data_file, bpe):
    seeds = JsonlData(
        demonstrations=str(data_file("self_instruct/seed_tasks.jsonl")),
        template="{instruction}\n{instances.0.input}",
        completion_field="instances.0.output",
    )
    assert len(seeds.load(bpe).demonstrations) == 175
    turns = JsonlData(
        test=str(data_file("mt_bench/question.jsonl")),
        prompt_field="turns.0",
        chat=True,
        max_prompt_tokens=4000,
    )
    prompts = turns.load(bpe).test
    assert len(prompts) == 80
    assert all(len(p.columns["turns"]) == 2 and p.messages for p in prompts)
    task = JsonlData(
        test=f"{data_file('bbh/boolean_expressions.json')}#examples",
        prompt_field="input",
        answer_field="target",
    )
    answers = [p.columns["answer"] for p in task.load(bpe).test]
    assert len(answers) == 250
    assert set(answers) == {"True", "False"}


def test_hh_rlhf_pairs(data_file, bpe):
    data = JsonlData(
        pairs=str(data_file("hh_rlhf/harmless_base_test.jsonl")),
        max_prompt_tokens=20_000,
        on_bad_row="skip",
        max_bad_fraction=0.01,
    )
    dataset = data.load(bpe)
    # Four rows have an empty completion, and four go on to another turn.
    assert len(dataset.pairs) == 1992
    assert "left out 4 of 2000 rows" in dataset.notes[0]
    assert "dropped 4 of 1996 rows: completions that hold" in dataset.notes[1]
