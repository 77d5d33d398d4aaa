import sys

import numpy as np
import pytest

from jaxloop.prompts.dataset import JsonlData
from jaxloop.prompts.jsonl import DataError
from jaxloop.prompts.tfds import parse_address, read_tfds

ROWS = 5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The data_dir of a tiny dataset "sums", made here."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "question": tfds.features.Text(),
            "answer": tfds.features.Text(),
            "number": np.int32,
            "raw": tfds.features.Tensor(shape=(), dtype=np.bytes_),
            "messages": tfds.features.Sequence(
                {"role": tfds.features.Text(), "content": tfds.features.Text()}
            ),
        }
    )

    class Sums(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(ROWS):
                yield (
                    i,
                    {
                        "question": f"é {i}+1?",
                        "answer": str(i + 1),
                        "number": i,
                        "raw": b"\xff" if i == 0 else b"x",
                        "messages": [
                            {"role": "user", "content": f"{i}?"},
                            {"role": "assistant", "content": "yes"},
                        ],
                    },
                )

    tfds.disable_progress_bar()
    directory = tmp_path_factory.mktemp("tfds")
    Sums(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


def test_rows_are_plain_and_tensorflow_stays_out(prepared):
    source = f"tfds:sums:1.0.0?split=train&data_dir={prepared}"
    items = list(read_tfds(source))
    bad = [item for item in items if isinstance(item, DataError)]
    rows = sorted(
        (item.values for item in items if not isinstance(item, DataError)),
        key=lambda values: values["number"],
    )
    assert len(bad) == 1
    assert "the field 'raw' is not UTF-8 at its byte 0" in str(bad[0])
    assert [row["answer"] for row in rows] == ["2", "3", "4", "5"]
    assert rows[0]["question"] == "é 1+1?"
    assert type(rows[0]["number"]) is int
    assert "tensorflow" not in sys.modules


def test_slices_of_splits_and_prompts_from_them(prepared, bpe):
    source = f"tfds:sums?split=train[:40%]&data_dir={prepared}"
    assert len(list(read_tfds(source))) == 2
    source = f"tfds:sums?split=train&data_dir={prepared}"
    data = JsonlData(
        train=source,
        prompt_field="question",
        demonstrations=source,
        completion_field="absent",
        on_bad_row="skip",
        max_bad_fraction=0.2,
    )
    dataset = data.load(bpe)
    assert len(dataset.train) == len(dataset.demonstrations) == ROWS - 1
    assert dataset.train[0].columns["answer"].isdigit()
    assert "left out 1 of 5 rows" in dataset.notes[0]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sums?split=tset&data_dir={}", r"no split 'tset'; there are \['train'\]"),
        ("sums:2.0.0?split=train&data_dir={}", "no such dataset or version"),
        ("absent?split=train&data_dir={}", "no such dataset or version"),
    ],
)
def test_what_is_not_there_is_named(prepared, query, expected):
    with pytest.raises(DataError, match=expected):
        list(read_tfds("tfds:" + query.format(prepared)))


def test_addresses():
    address = parse_address("tfds:c4/en:3.1.0?split=train+test&data_dir=/d")
    assert (address.name, address.split, address.data_dir) == (
        "c4/en:3.1.0",
        "train+test",
        "/d",
    )
    for wrong in ("tfds:c4", "tfds:?split=train", "tfds:c4?split=train&shuffle=1"):
        with pytest.raises(ValueError, match=r"write tfds:NAME"):
            parse_address(wrong)
