"""Prompt makers: what they ask, what they read, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest

from jaxloop.prompts.maker import Maker, Request, Screen, Tags, Written
from jaxloop.prompts.perturbed import Perturbed
from jaxloop.prompts.planned import INSTRUCTION, Planned
from jaxloop.prompts.self_instruct import SelfInstruct
from jaxloop.records import Prompt, Rollout, Stop
from jaxloop.sampling.settings import Sampling
from jaxloop.text import TextPool, rouge_l

SEEDS = [Prompt(f"train:{i}", f"Seed {i} with {{text}} & <b>", ()) for i in range(12)]
MAKERS = [
    SelfInstruct(count=3, batch=4),
    Planned(count=3, batch=4),
    Planned(count=3, batch=4, template=INSTRUCTION, parse=Tags()),
    Perturbed(count=3, batch=4),
]


def written(count: int) -> list[Written]:
    return [Written(f"w{i}", f"written {i}", {}, ()) for i in range(count)]


def rng(seed=0):
    return np.random.default_rng(seed)


def rollout(text: str, stop: Stop = "eos") -> Rollout:
    return Rollout("r", 0, (), text, (), (), stop)


def shown_texts(request: Request) -> list[str]:
    return [text for _, text in request.shown]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: type(maker).__name__)
def test_requests_depend_on_seeds_generator_and_words_alone(maker):
    one, again = (maker.requests(SEEDS, written(2), 1, rng()) for _ in range(2))
    assert one == again
    assert len(one) == len({request.id for request in one}) == 4
    other = replace(maker, template="Anew! " + maker.template)
    assert not {r.id for r in one} & {
        r.id for r in other.requests(SEEDS, written(2), 1, rng())
    }
    for request in one:
        assert len(request.shown) == maker.shots
        assert all(text in request.text for text in shown_texts(request))


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: type(maker).__name__)
def test_an_answer_in_the_form_asked_for_is_read(maker):
    request = maker.requests(SEEDS, [], 0, rng())[0]
    names = (maker.parse.prompt, *maker.parse.columns)
    for name in names:
        assert f"<{name}>" in request.text
        assert f"</{name}>" in request.text
    text = "My plan.\n" + "\n".join(f"<{name}> a {name} </{name}>" for name in names)
    found = maker.read(request, rollout(text))
    assert found.text == f"a {maker.parse.prompt}"
    for name in maker.parse.columns:
        assert found.columns[name] == f"a {name}"
    row = maker.row(found)
    assert row["prompt"] == found.text
    assert row["written_from"] == [id for id, _ in request.shown]
    assert maker.read(request, rollout("no tags")) == "unparsed"
    assert maker.read(request, rollout("<request>a", "length")) == "cut_off"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<a>x</a><b>y</b>", ("x", {"b": "y"})),
        ("plan <b>y\nz</b> then <a> x </a> end", ("x", {"b": "y\nz"})),
        ("<a>x</a>", None),
        ("<a>x</a><b> </b>", None),
        ("<a>x</a><b>y</b><a>z</a>", None),
        ("<a>x<a>z</a><b>y</b>", None),
        ("<a>x</a><b>y</b></b>", None),
        ("<a>x<b>y</b>", None),
        ("</a>x<a><b>y</b>", None),
    ],
)
def test_each_tag_stands_there_once(text, found):
    assert Tags("a", ("b",))(text) == found


def test_self_instruct_shows_its_own_once_it_has_some():
    maker = SelfInstruct(count=1000, batch=50)
    for count, own in ((0, 0), (1, 0), (2, 2), (30, 2)):
        made = {each.text for each in written(count)}
        for request in maker.requests(SEEDS, written(count), 0, rng()):
            texts = shown_texts(request)
            assert sum(text in made for text in texts) == own
            assert len(set(texts)) == 8
            assert "Request 9:" in request.text
    spots = {
        i
        for request in maker.requests(SEEDS, written(2), 0, rng())
        for i, (id, _) in enumerate(request.shown)
        if id.startswith("w")
    }
    assert len(spots) > 4  # not always the last ones


def test_a_maker_stops_when_it_has_enough_or_has_asked_enough():
    maker = Planned(count=3, batch=5, patience=4)
    sizes = [len(maker.requests(SEEDS, [], batch, rng())) for batch in range(4)]
    assert sizes == [5, 5, 2, 0]
    assert maker.requests(SEEDS, written(3), 0, rng()) == []


def test_perturbed_asks_of_each_seed_once():
    maker = Perturbed(count=100, batch=5)
    asked = [r for b in range(4) for r in maker.requests(SEEDS, [], b, rng(b))]
    assert [id for r in asked for id, _ in r.shown] == [seed.id for seed in SEEDS]
    found = maker.read(asked[0], rollout("<request>another</request>"))
    assert found.columns == {"original": SEEDS[0].text}
    pair = maker.pair(found, ("good", " near "))
    assert maker.row(pair) | {"id": 0} == {
        "prompt": SEEDS[0].text,
        "chosen": "good",
        "rejected": "near",
        "perturbed": "another",
        "id": 0,
        "written_by": "policy",
        "written_from": [SEEDS[0].id],
    }
    assert maker.pair(found, ("good", " ")) == "unanswered"
    assert maker.pair(found, ("same", "same ")) == "equal_answers"


def test_the_screen():
    screen = Screen(fewest_words=3, most_words=6, keywords=("image",), alike=0.7)
    earlier = TextPool(["Name three birds that cannot fly"])
    near, far = "name three birds that can fly", "name two cities without birds"
    assert rouge_l(near, "Name three birds that cannot fly") >= 0.7
    assert screen.problem("Hello, you!", earlier) == "too_short"
    assert screen.problem("one two three four five six seven", earlier) == "too_long"
    assert screen.problem("Describe this IMAGE now", earlier) == "keyword"
    assert screen.problem("Describe this imagery now", earlier) is None
    assert screen.problem(near, earlier) == "alike"
    assert screen.problem(far, earlier) is None
    assert replace(screen, alike=1.0).problem(near, earlier) is None
    with pytest.raises(ValueError, match="alike = 0"):
        Screen(alike=0)


def test_a_column_or_what_the_user_said_last_is_shown():
    user = ({"role": "system", "content": "s"}, {"role": "user", "content": " hi\n"})
    chat = Prompt("p", "<|im_start|>...", (), {"q": "what?"}, user)
    assert Maker().text_of(chat) == "hi"
    assert Maker(column="q").text_of(chat) == "what?"
    row = Maker(column="q").row(Written("w", "new?", {"answer": "5"}, (("p", "hi"),)))
    assert row["q"] == "new?"
    assert row["answer"] == "5"
    with pytest.raises(ValueError, match=r"row 'p' has no text in the field 'r'.*'q'"):
        Maker(column="r", shots=1).check([chat])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Maker(template="seeds"), r"plain field \{seeds\}, and may have"),
        (lambda: Maker(template="{seeds} {more}"), "it has .*more"),
        (lambda: Maker(template="{seeds!r}"), "plain field"),
        (lambda: Maker(template="{seeds} {"), "a brace is {{"),
        (lambda: Maker(example="{number}"), r"\{text\}"),
        (lambda: Maker(count=0), "count = 0"),
        (lambda: SelfInstruct(own_shots=8), "own_shots = 8"),
        (lambda: Perturbed(shots=2), "shots = 2"),
        (lambda: SelfInstruct().check(SEEDS[:7]), "shows 8 prompts .* the data has 7"),
    ],
)
def test_what_cannot_work_is_said_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_samples_of_a_request_are_records_of_their_own():
    maker = Planned(sampling=Sampling(n=2))
    request = maker.requests(SEEDS, [], 0, rng())[0]
    text = "<problem>p</problem><answer>a</answer>"
    ids = [maker.read(request, replace(rollout(text), index=i)).id for i in range(2)]
    assert len(set(ids)) == 2
