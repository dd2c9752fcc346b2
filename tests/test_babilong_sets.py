"""The published BABILong sets: every layout of a hub snapshot, one row at a time, errors that name file and row."""

import json
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm_experiments_tools.data.babilong_sets import LENGTHS, OfficialSet
from lm_experiments_tools.errors import UserError

ROWS = [
    {
        "input": f'Call me "Ishmael" \\ {{row {i}}}.\nMary moved to the garden. Größe 漢字',
        "question": "Where is Mary? ",
        "target": "garden",
    }
    for i in range(5)
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")


LAYOUTS = {
    "RMT-team/babilong": ["data/qa1/0k.json"],
    "RMT-team/babilong-1k-samples": ["0k/qa1-00000-of-00001.parquet"],
    "the same in parts": ["0k/qa1-00000-of-00002.parquet", "0k/qa1-00001-of-00002.parquet"],
    "converted by the hub": ["0k/qa1/0000.parquet"],
    "converted by the hub, earlier": ["qa1/0k/0000.parquet"],
    "JSON without data": ["qa1/0k.json"],
    "JSON lines": ["data/qa1/0k.jsonl"],
    "JSON lines by length": ["0k/qa1.jsonl"],
    "one Parquet file": ["0k/qa1.parquet"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_rows_in_order_as_often_as_asked(tmp_path, layout):
    files = LAYOUTS[layout]
    for number, name in enumerate(files):
        write(tmp_path / name, ROWS[number::2] if len(files) == 2 else ROWS)
    write(tmp_path / files[0].replace("qa1", "qa10"), ROWS[:1])
    rows = OfficialSet(tmp_path, "0k", "qa1")
    assert len(rows) == 5
    assert list(rows) == list(rows) == (ROWS[::2] + ROWS[1::2] if len(files) == 2 else ROWS)


def test_a_full_task_name_and_a_path_as_text_will_do(tmp_path):
    write(tmp_path / "data/qa6/10M.json", ROWS)
    assert list(OfficialSet(str(tmp_path), "10M", "qa6_yes-no-questions")) == ROWS


def test_quotes_braces_and_backslashes_in_a_text_end_no_row(tmp_path):
    texts = ['"', "\\", '\\"', '\\\\"', '"\\', "}", "{", '"}, {"', "\\}", "", "],[", "\n\u2028\x00"]
    rows = [ROWS[0] | {"input": text, "target": other} for text in texts for other in texts]
    for name in ("data/qa1/0k.json", "data/qa1/1k.jsonl"):
        write(tmp_path / name, rows)
    for length in ("0k", "1k"):
        assert list(OfficialSet(tmp_path, length, "qa1")) == rows


def test_other_columns_are_left_out(tmp_path):
    for name in ("data/qa1/0k.json", "0k/qa2.parquet"):
        write(tmp_path / name, [row | {"index": 1, "more": {"a": "}"}} for row in ROWS])
    assert list(OfficialSet(tmp_path, "0k", "qa1")) == list(OfficialSet(tmp_path, "0k", "qa2")) == ROWS


@pytest.mark.parametrize("name", ["data/qa1/10M.json", "data/qa1/10M.jsonl", "10M/qa1-00000-of-00001.parquet"])
def test_memory_is_that_of_one_row_or_row_group(tmp_path, name):
    size = 2_000_000
    write(tmp_path / name, [ROWS[0] | {"input": chr(65 + i) * size} for i in range(16)])
    pool = pa.default_memory_pool()
    tracemalloc.start()
    start = pool.bytes_allocated()
    most = 0
    for row in OfficialSet(tmp_path, "10M", "qa1"):
        assert len(row["input"]) == size
        most = max(most, pool.bytes_allocated() - start)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4.5 * size  # a row and the next, as bytes and as text; all rows: 16 * size
    assert most < 6 * size  # Parquet: two rows a group, as page, dictionary and values


def test_rows_of_the_hub_are_asked_for_by_length_and_task(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = OfficialSet("RMT-team/babilong", "128k", "qa3")
    assert asked == [(("RMT-team/babilong", "128k"), {"split": "qa3"})]
    assert len(rows) == 5 and list(rows) == ROWS


def test_what_the_hub_does_not_have_is_one_line(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ValueError("BuilderConfig '1M' not found. Available: ['0k', '128k']\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as error:
        OfficialSet("RMT-team/babilong-1k-samples", "1M", "qa1")
    assert str(error.value) == (
        "RMT-team/babilong-1k-samples, length 1M, task qa1: cannot be loaded "
        "(BuilderConfig '1M' not found. Available: ['0k', '128k'])"
    )


def test_an_unknown_length_or_task_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="no length '3k'; the lengths are 0k, 1k, 2k, .*, 1M, 10M"):
        OfficialSet(tmp_path, "3k", "qa1")
    with pytest.raises(UserError, match="'qa21'.*qa1_single.*qa20_agents"):
        OfficialSet(tmp_path, "0k", "qa21")
    assert len(LENGTHS) == len(set(LENGTHS)) == 13


def test_a_missing_set_names_those_that_are_there(tmp_path):
    for name in ("data/qa1/0k.json", "data/qa2/0k.json", "4k/qa1-00000-of-00001.parquet"):
        write(tmp_path / name, ROWS)
    with pytest.raises(UserError, match=r"no length 8k, task qa1 in .*; found 0k: qa1, qa2; 4k: qa1$"):
        OfficialSet(tmp_path, "8k", "qa1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no length 8k, task qa1 in .*empty; found none"):
        OfficialSet(tmp_path / "empty", "8k", "qa1")


@pytest.mark.parametrize("name", ["../absent", "/absent/folder", "~/absent-folder", "a/b/c", "absent"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match=f"{name.lstrip('~')}: no such folder, and not the name of a dataset"):
        OfficialSet(name, "0k", "qa1")


def test_a_missing_part_is_noticed(tmp_path):
    write(tmp_path / "0k/qa1-00001-of-00003.parquet", ROWS)
    with pytest.raises(UserError, match="0k/qa1-00001-of-00003.parquet: 1 of 3 parts of the set"):
        OfficialSet(tmp_path, "0k", "qa1")


@pytest.mark.parametrize("name", ["data/qa1/0k.json", "data/qa1/0k.jsonl", "0k/qa1.parquet"])
def test_a_missing_column_names_the_columns_found(tmp_path, name):
    write(tmp_path / name, [{"input": "x", "question": "y", "answer": "z"}])
    with pytest.raises(
        UserError, match=f"{name}(, row 1)?: no column 'target'; its columns are input, question, answer"
    ):
        OfficialSet(tmp_path, "0k", "qa1")


ROW = json.dumps(ROWS[0])
MALFORMED = {
    "cut in a row": (f"[{ROW}, {ROW[:30]}", "row 2: the file ends inside the row"),
    "cut behind a backslash": (ROW[: ROW.index("\\") + 1], "row 1: the file ends inside the row"),
    "cut after a row": (
        f"[{ROW}",
        "row 2: expected a row in braces or the end of the array, found the end of the file",
    ),
    "not JSON": (f"[{ROW}, {{'input': 1}}]", "row 2: Expecting property name"),
    "row that is a list": (f"[{ROW}, [1]]", r"row 2: expected a row in braces or the end of the array, found '\['"),
    "lines, one no row": (f"{ROW}\nversion\n", "row 2: expected a row in braces or the end of the file, found 'v'"),
    "not text": (json.dumps([ROWS[0], ROWS[0] | {"target": 3}]), "row 2: target is int, not text"),
    "columns of lists": ('{"input": ["a"], "question": ["b"], "target": ["c"]}', "row 1: input is list, not text"),
    "not UTF-8": (f"{ROW}\n".encode() + b'{"input": "\xff"}', "row 2: 'utf-8' codec can't decode"),
    "no row": ("[]", "no row in the file"),
    "empty": ("", "no row in the file"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_named_with_its_row(tmp_path, case):
    content, message = MALFORMED[case]
    path = tmp_path / "data/qa1/0k.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"0k.json(, |: ){message}") as error:
        list(OfficialSet(tmp_path, "0k", "qa1"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "text", "pages"])
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    path = tmp_path / "0k/qa1.parquet"
    write(path, [row | {"input": row["input"] * 200} for row in ROWS])
    content = path.read_bytes()
    if damage == "pages":
        path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    else:
        path.write_bytes(content[:100] if damage == "cut" else b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="qa1.parquet: cut or damaged") as error:
        list(OfficialSet(tmp_path, "0k", "qa1"))
    assert "\n" not in str(error.value)


def test_the_length_of_a_long_file_is_known_without_its_rows(tmp_path, monkeypatch):
    write(tmp_path / "data/qa1/0k.json", ROWS)
    rows = OfficialSet(tmp_path, "0k", "qa1")
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("parsed"))
    assert len(rows) == 5
