"""Prompt files in every form that users have, brought into one."""

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from store import InputError, PromptSet


def test_dates_and_nan_become_what_json_knows(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["a", "b"],
            "when": [datetime.date(2024, 1, 1), None],
            "at": pa.array([datetime.datetime(2024, 1, 1, 12)] * 2),
            "score": [float("nan"), 1.5],
            "kind": pa.array(["x", "y"]).dictionary_encode(),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    prompts = PromptSet.read(tmp_path / "a.parquet")
    assert prompts.table.column("when").to_pylist() == ["2024-01-01", None]
    assert prompts.table.column("score").to_pylist() == [None, 1.5]
    assert len(prompts.digest) == 64
    pyarrow.parquet.write_table(table.append_column("raw", pa.array([b"1", b"2"])), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="'raw'"):
        PromptSet.read(tmp_path / "b.parquet")


def test_rows_may_lack_columns_that_others_have() -> None:
    prompts = PromptSet.from_rows([{"text": "a"}, {"text": "b", "label": 1}])
    assert prompts.table.column("label").to_pylist() == [None, 1]
    assert prompts.prompt_ids == ["0", "1"]


def test_messages_spans_and_mapping(tmp_path: Path) -> None:
    rows = [
        {
            "chat": [{"role": "user", "content": "hi"}],
            "spans": [{"start": 0, "end": 2}],
            "truth": True,
            "city": 7,
        }
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    prompts = PromptSet.read(tmp_path / "a.json", messages="chat", label="truth", group="city")
    assert prompts.table.column("group").to_pylist() == ["7"]
    assert prompts.labels("label").tolist() == [True]
    assert prompts.labels("truth").tolist() == [True]
    assert prompts.table.column("spans").to_pylist() == [[{"message": 0, "start": 0, "end": 2}]]


def test_the_digest_is_blind_to_format_and_sees_every_value(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "group": str(n)} for n in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert PromptSet.read(tmp_path / "a.jsonl").digest == PromptSet.read(tmp_path / "a.json").digest
    rows[3]["group"] = "other"
    assert PromptSet.from_rows(rows).digest != PromptSet.read(tmp_path / "a.json").digest


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": ""}], "is empty"),
        ([{"text": "a", "unit": 1}], "rename it"),
        ([{"words": "a"}], "'words'"),
        ([{"messages": [{"role": "wizard", "content": "a"}]}], "wizard"),
        ([{"messages": [{"content": "a"}]}], "messages"),
        ([{"prompt_id": "", "text": "a"}], "empty prompt_id"),
        ([{"text": "abc", "spans": [[0, 2]]}], "row 0 .* has a span that is no"),
        (
            [{"text": "abc", "spans": [{"start": 0, "end": 1}]}, {"text": "abc", "spans": [{"start": 0.5, "end": 2}]}],
            "row 1 .* has a span that is no .* of whole numbers",
        ),
        ([{"text": "abc", "spans": [{"start": 0, "end": 10**30}]}], "row 0 .* in column 'spans'"),
        ([{"text": "abc", "spans": [{"start": 0}]}], "row 0 .* has a span that is no"),
        ([{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}], "row 0 .* join their texts"),
        (
            [
                {"messages": [{"role": "user", "content": "a"}]},
                {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
            ],
            "row 1 .* content of a message is one string",
        ),
        (
            [
                {"messages": [{"role": "user", "content": "a"}]},
                {"messages": [{"role": "tool", "content": "3", "name": "f"}]},
            ],
            "row 1 .* 'name', which the model would not",
        ),
        (
            [{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]}],
            "row 0 .* 'tool_calls', which the model would not",
        ),
    ],
)
def test_what_is_no_prompt_is_named(rows: list[dict[str, object]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        PromptSet.from_rows(rows)


def test_words_of_a_csv_are_kept_to_the_letter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt_id,words,group,label\n01,007,1,0\n1,true,2,1\n")
    prompts = PromptSet.read(tmp_path / "a.csv", text="words")
    assert prompts.prompt_ids == ["01", "1"]
    assert prompts.table.column("text").to_pylist() == ["007", "true"]
    assert prompts.labels("label").tolist() == [0, 1]
    (tmp_path / "latin.csv").write_bytes(b"text,label\ncaf\xe9,1\nb,0\n")
    with pytest.raises(InputError, match=r"latin\.csv"):
        PromptSet.read(tmp_path / "latin.csv")
    (tmp_path / "twice.csv").write_text("text,text\na,b\n")
    with pytest.raises(InputError, match="stands twice"):
        PromptSet.read(tmp_path / "twice.csv")
    (tmp_path / "half.jsonl").write_text('{"text": "fine"}\n{"text": "bad \\ud800"}\n')
    with pytest.raises(InputError, match="row 1"):
        PromptSet.read(tmp_path / "half.jsonl")


def test_text_or_messages_not_both(tmp_path: Path) -> None:
    row = {"text": "a", "messages": [{"role": "user", "content": "b"}]}
    with pytest.raises(InputError, match="both text and messages"):
        PromptSet.from_rows([row])
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert "messages" not in PromptSet.read(tmp_path / "a.jsonl", text="text").table.column_names


def test_keys_of_messages_that_hold_nothing_are_as_if_they_were_not_there() -> None:
    plain = PromptSet.from_rows([{"messages": [{"role": "user", "content": "a"}]}])
    empty = PromptSet.from_rows([{"messages": [{"role": "user", "content": "a", "name": None, "tool_calls": []}]}])
    assert empty.digest == plain.digest
    # As it was when other keys were left out without a word.
    assert plain.digest == "ea8aa41567ae37f01c5c06af2f108eb3706a3c5418e3722e23d1a6621edab1ac"


def test_whole_numbers_of_any_size_and_form_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "abc", "label": 123456789012345678901234567890, "spans": [{"start": 0.0, "end": 2}]}'
    )
    prompts = PromptSet.read(tmp_path / "a.jsonl")
    assert prompts.table.column("label").to_pylist() == ["123456789012345678901234567890"]
    assert prompts.table.column("spans").to_pylist() == [[{"message": 0, "start": 0, "end": 2}]]
