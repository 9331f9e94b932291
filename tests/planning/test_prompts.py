"""Prompt files: each format, and one clear sentence for each kind of damage."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cotrunk.cli.inputs import prompts_of
from cotrunk.errors import CotrunkError
from cotrunk.planning.prompt_columns import parse_columns
from cotrunk.planning.prompt_row import PromptRow, check_ids
from cotrunk.planning.prompts import read_prompts

CAT_AND_DOG = ["a cat", "a dog, running"]


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a cat\n\n  a dog, running  \n"),
        ("no_suffix", "a cat\r\n\r\na dog, running"),
        ("old_mac.TXT", "a cat\r\ra dog, running\r"),
        ("bom.txt", b"\xef\xbb\xbfa cat\n \na dog, running\n"),
        ("p.csv", 'note,prompt\n1,a cat\n2,\n3,"a dog, running"\n'),
        ("bom.csv", b'\xef\xbb\xbfprompt,note\r\na cat,1\r\n"",2\r\n"a dog, running",3\r\n'),
        ("blank_line.csv", 'id,prompt\n1,a cat\n\n3,"a dog, running"\n'),
        ("p.tsv", "Prompt\tnote\na cat\t1\n \t2\na dog, running\t3\n"),
        ("p.jsonl", '"a cat"\n\n{"prompt": "a dog, running", "note": 2}\n'),
        ("p.json", '[{"prompt": "a cat"}, "", "a dog, running"]'),
    ],
)
def test_formats(write, name, content):
    found = read_prompts(write(name, content))
    assert (found.prompts, found.blank) == (CAT_AND_DOG, 1)


def test_quotes_in_a_tab_separated_table_are_text_unless_a_spreadsheet_wrote_them(write):
    plain = write("plain.tsv", 'prompt\tnote\n"STOP" on a sign\t1\na "red" cat\t2\n')
    assert list(read_prompts(plain).prompts) == ['"STOP" on a sign', 'a "red" cat']
    quoted = write("quoted.tsv", 'prompt\tnote\n"a cat\tand a dog"\t1\n"a ""red"" cat"\t2\n')
    assert list(read_prompts(quoted).prompts) == ["a cat\tand a dog", 'a "red" cat']
    with pytest.raises(CotrunkError, match=r"line 2: damaged table"):
        read_prompts(write("damaged.tsv", 'prompt\tnote\n"a cat\t1\t2\na dog\t3\n'))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"number": [1, 2, 3], "caption": ["a cat", " ", "a dog, running"]}), path)
    found = read_prompts(path, {"prompt": "caption"})
    assert (found.prompts, found.blank) == (CAT_AND_DOG, 1)
    with pytest.raises(CotrunkError, match=r"no column 'prompt'.*'number', 'caption'"):
        read_prompts(path)
    with pytest.raises(CotrunkError, match="row 1: the prompt is of type int"):
        read_prompts(path, {"prompt": "number"})
    path.write_bytes(b"not parquet")
    with pytest.raises(CotrunkError, match="not a readable parquet"):
        read_prompts(path)


def test_parquet_without_pyarrow(write, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(CotrunkError, match=r"cotrunk\[parquet\]"):
        read_prompts(write("p.parquet", b""))


def test_standard_input(monkeypatch):
    stdin = SimpleNamespace(buffer=io.BytesIO(b"a cat\na dog, running\n"))
    monkeypatch.setattr("sys.stdin", stdin)
    assert read_prompts(Path("-")).prompts == CAT_AND_DOG


def test_duplicates_stay(write):
    assert read_prompts(write("p.txt", "a\nb\na\n")).prompts == ["a", "b", "a"]


def test_only_line_ends_separate_prompts(write):
    prompts = ["a\x0bb", "c\u2028d\x85e"]
    assert read_prompts(write("p.txt", "\n".join(prompts))).prompts == prompts


def test_quoted_line_end_in_a_table(write):
    assert read_prompts(write("p.csv", 'prompt\n"two\nlines"\n')).prompts == ["two\nlines"]


def test_exact_column_wins_over_another_case(write):
    assert read_prompts(write("p.csv", "Prompt,prompt\nno,yes\n")).prompts == ["yes"]
    with pytest.raises(CotrunkError, match="no column"):
        read_prompts(write("q.csv", "Prompt,PROMPT\nno,no\n"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "holds no prompt"),
        ("p.txt", " \n\t\n", "holds no prompt"),
        ("p.csv", "prompt\n", "holds no prompt"),
        ("p.csv", "", "no header line"),
        ("p.csv", "id,prompt\n1,a cat\n2\n", "line 3: the row has 1 of 2 columns and lacks the prompt"),
        ("p.csv", 'prompt,id\na cat,1\n"unclosed,2\na dog,3\n', "line 3: damaged table .a quote is never closed."),
        ("p.csv", 'prompt\n"two\nlines"\n"a" cat\n', "line 4: damaged table"),
        ("p.json", "", "holds no prompt"),
        ("p.json", "[]", "holds no prompt"),
        ("p.json", '{"prompt": "a cat"}', "not a JSON list"),
        ("p.json", '["a cat",\n oops]', "line 2: invalid JSON"),
        ("p.json", '["a cat", 3]', "item 2: the prompt is of type int"),
        ("p.json", "[" * 200_000, "JSON"),
        ("p.jsonl", '"a cat"\n\n{"prompt": "a dog"\n', "line 3: invalid JSON"),
        ("p.jsonl", '"a cat"\n' + "9" * 5000 + "\n", "line 2: invalid JSON"),
        ("p.jsonl", '"a cat"\n{"prompt": null}\n', "line 2: the prompt is empty"),
        ("p.jsonl", '"a cat"\n{"text": "a dog"}\n', "line 2, has no column 'prompt'.*'text'"),
        ("p.jsonl", '"a cat"\n["a dog"]\n', "line 2: the prompt is of type list"),
        ("p.jsonl", '"a cat"\n"half \\ud83d"\n', "line 2: .*invalid surrogate"),
        ("p.csv", "id,text\n1,a cat\n", "no column 'prompt'.*'id', 'text'"),
        ("p.csv", 'prompt\n"' + "x" * 200_000 + '"\n', "damaged table"),
        ("p.txt", b"a cat\ncaf\xe9\n", "not UTF-8 .line 2"),
        ("p.txt", "a cat\n".encode("utf-16"), "UTF-16"),
        ("p.txt", b"\x89PNG\r\n\0\0", "binary"),
    ],
)
def test_bad_files(write, name, content, message):
    with pytest.raises(CotrunkError, match=message) as caught:
        read_prompts(write(name, content))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files_are_refused(tmp_path, write, monkeypatch):
    with pytest.raises(CotrunkError, match="no file"):
        read_prompts(tmp_path / "absent.txt")
    with pytest.raises(CotrunkError, match="is a folder"):
        read_prompts(tmp_path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = write("p.txt", "a cat")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CotrunkError, match=r"Permission denied.: check its permissions"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "prompt\na red cat, flat style\na blue dog\n", "line 2: .*more cells than the header .1.*comma"),
        ("p.csv", "id,prompt\n1,a cat\n2,a red cat, flat style\n", "line 3: .*more cells than the header .2"),
        ("p.csv", 'prompt\n"two\nlines"\na cat, flat\n', "line 4: .*in double quotes"),
        ("p.csv", "prompt,,\na red cat, flat style,\n", "line 2: .*more cells than the header .1"),  # unnamed columns
        ("p.tsv", "prompt\na cat\tflat style\n", "line 2: .*contain a tab in double quotes"),
        ("p.csv", "prompt,Prompt,prompt\na,b,c\n", "several columns 'prompt'"),
    ],
)
def test_a_row_with_more_cells_than_the_header_is_reported(write, name, content, message):
    with pytest.raises(CotrunkError, match=message):
        read_prompts(write(name, content))


@pytest.mark.parametrize(
    "content", ["prompt\na cat,,\n", "prompt,\na cat, \n", 'prompt,,\n"a cat",,,,\n', "id,prompt,\n7,a cat,\n\n,,,\n"]
)
def test_trailing_cells_that_are_empty_are_harmless(write, content):
    assert read_prompts(write("p.csv", content)).prompts == ["a cat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt\na cat\n", "looks like a table, its first line names 'prompt': rename it to .csv or .tsv"),
        ("id,Prompt,style\n1,a cat,flat\n", "looks like a table"),
        ("id\tprompt\n1\ta cat\n", "looks like a table"),
        ('"id";"prompt"\n1;a cat\n', "looks like a table"),
        ('{"prompt": "a cat"}\n', "looks like JSON lines: rename it to .jsonl"),
    ],
)
def test_tables_and_json_lines_under_a_text_suffix_are_reported(write, content, message):
    with pytest.raises(CotrunkError, match=message):
        read_prompts(write("p.txt", content))


@pytest.mark.parametrize("content", ["a cat, a prompt of a friend", "{a cat} in braces", '{"a cat"', "prompts\na cat"])
def test_text_that_only_resembles_a_table_is_text(write, content):
    assert read_prompts(write("p.txt", content)).prompts == content.split("\n")


def test_text_has_no_columns(write):
    with pytest.raises(CotrunkError, match=r"p\.txt is text, which has no column 'caption'"):
        read_prompts(write("p.txt", "a cat"), {"prompt": "caption"})


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "json", "parquet"])
def test_impossible_paths_are_refused_in_one_sentence(suffix):
    for name in ("x" * 5000, "x/" * 3000 + "x", "a\0b"):
        with pytest.raises(CotrunkError, match=r"cannot be read|no file"):
            read_prompts(Path(f"{name}.{suffix}"))


def test_a_parquet_file_with_invalid_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\1\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"aa\xed\xa0"))
    path = tmp_path / "p.parquet"
    parquet.write_table(pa.table({"prompt": broken, "b.c": ["x", "y"]}), path)
    with pytest.raises(CotrunkError, match=r"p\.parquet, row 2: a text is not UTF-8"):
        read_prompts(path)
    assert read_prompts(path, {"prompt": "b.c"}).prompts == ["x", "y"]
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    parquet.write_table(twice, path)
    with pytest.raises(CotrunkError, match="several columns 'prompt'"):
        read_prompts(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CotrunkError, match="not a readable parquet"):
        read_prompts(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices here")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/null"])
def test_devices_are_refused(device, tmp_path):
    for name in ("link", "link.csv", "link.parquet"):
        (tmp_path / name).symlink_to(device)
        with pytest.raises(CotrunkError, match=r"(it is|is a pipe or) a device"):
            read_prompts(tmp_path / name)


def test_endless_input_is_read_to_a_limit(monkeypatch, write):
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            return b"a cat\n" * (size // 6)

    monkeypatch.setattr("cotrunk.files.LIMIT", 2**22)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Endless()))
    with pytest.raises(CotrunkError, match=r"Standard input cannot be read \(it is longer than 4 MiB\)"):
        read_prompts(Path("-"))
    with pytest.raises(CotrunkError, match=r"p\.txt cannot be read \(it is longer than 4 MiB\)"):
        read_prompts(write("p.txt", b"a" * (2**22 + 1)))


def test_the_length_of_all_prompts_is_limited(monkeypatch, write):
    monkeypatch.setattr("cotrunk.planning.prompts.LIMIT", 10)
    assert len(read_prompts(write("p.csv", "prompt\n" + "a cat\n" * 2)).rows) == 2
    with pytest.raises(CotrunkError, match=r"p\.csv holds more than 10 characters of prompts: divide it"):
        read_prompts(write("p.csv", "prompt\n" + "a cat\n" * 3))


def test_a_pipe_is_read(tmp_path):
    import os
    import threading

    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("a cat\na dog, running\n"))
    writer.start()
    assert read_prompts(tmp_path / "pipe").prompts == CAT_AND_DOG
    writer.join()
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(CotrunkError, match="is a pipe or a device"):
        read_prompts(tmp_path / "pipe.parquet")


def test_closed_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(CotrunkError, match="Standard input is closed"):
        read_prompts(Path("-"))


def test_json_lines_round_trip(write):
    prompts = ["naïve café", "日本の庭", "emoji 🦊", 'quote " and , comma']
    content = "\n".join(json.dumps({"prompt": prompt}) for prompt in prompts)
    assert read_prompts(write("p.jsonl", content)).prompts == prompts


@pytest.mark.parametrize("prompt", ["a cat." + "x" * 300, "Кот. " + "и" * 137, "a\0cat.txt"])
def test_a_prompt_longer_than_any_file_name_is_a_prompt(prompt):
    """File names are limited in bytes, not in characters."""
    assert prompts_of([prompt], None, None) == [PromptRow(prompt)]


def test_a_file_given_as_a_prompt_is_reported(write):
    path = str(write("p.txt", "a cat"))
    with pytest.raises(CotrunkError, match=r"is a file: give its prompts with --prompts"):
        prompts_of(["a dog", path], None, None)


def test_importing_prompts_does_not_import_heavy_packages():
    import subprocess
    import sys

    heavy = "{'torch', 'diffusers', 'transformers', 'scipy', 'numpy'}"
    code = f"import sys, cotrunk.planning.prompts; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ROW = PromptRow(
    *("a cat", "grey", 7, "first", 2, 64, 32, 12, 4.5),
)
TABLE = "prompt,negative_prompt,seed,id,images,width,height,steps,guidance_scale\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", TABLE + "a cat,grey,7,first,2,64,32,12,4.5\na dog,,,second,,,,,\n"),
        ("p.tsv", (TABLE + "a cat,grey, 7 ,first,2.0,64,32,12,4.5\na dog,,,second\n").replace(",", "\t")),
        ("p.jsonl", json.dumps(ROW.to_json()) + '\n{"prompt": "a dog", "id": "second", "steps": null}\n'),
        ("p.json", json.dumps([ROW.to_json(), {"prompt": "a dog", "id": "second", "seed": ""}])),
    ],
)
def test_rows_hold_settings(write, name, content):
    found = read_prompts(write(name, content))
    assert found.rows == (ROW, PromptRow("a dog", id="second"))
    assert found.unused == ()
    assert len(found.places) == 2


def test_a_parquet_file_of_pandas_has_nan_and_floats(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    values = {"prompt": ["a cat", "a dog"], "steps": [12.0, float("nan")], "id": [1, 2], "style": ["flat", None]}
    parquet.write_table(pyarrow.table(values), tmp_path / "p.parquet")
    found = read_prompts(tmp_path / "p.parquet")
    assert found.rows == (PromptRow("a cat", steps=12, id="1"), PromptRow("a dog", id="2"))
    assert found.unused == ("style",)


def test_columns_with_other_names(write):
    path = write("p.csv", "Key,Text,prompt,style\nx,a cat,not this,flat\n")
    found = read_prompts(path, parse_columns("prompt=Text, id=Key"))
    assert found.rows == (PromptRow("a cat", id="x"),)
    assert found.unused == ("prompt", "style")
    found = read_prompts(write("p.jsonl", '{"Text": "a cat"}\n{"text": "a dog", "K": 2}\n'), {"prompt": "Text"})
    assert (found.prompts, found.unused) == (["a cat", "a dog"], ("K",))


@pytest.mark.parametrize(
    ("name", "content"), [("p.csv", "prompt,x\na cat,1\n"), ("p.jsonl", '{"prompt": "a cat", "x": 1}\n')]
)
def test_a_column_that_is_asked_for_must_exist(write, name, content):
    with pytest.raises(CotrunkError, match=rf"{name} has no column 'Steps': use one of its columns \(.*'x'"):
        read_prompts(write(name, content), {"steps": "Steps"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt", "write FIELD=COLUMN"),
        ("prompt=", "write FIELD=COLUMN"),
        ("", "write FIELD=COLUMN"),
        ("colour=Text", "unknown field 'colour': use prompt, negative_prompt, seed"),
        ("prompt=A,prompt=B", "names prompt twice"),
        ("prompt=A,id=A", "uses the column 'A' twice"),
    ],
)
def test_bad_lists_of_columns(text, message):
    with pytest.raises(CotrunkError, match=message):
        parse_columns(text)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("steps", "0", "steps 0 is out of range: use a whole number of 1 or more"),
        ("steps", "many", "steps 'many' is not a number"),
        ("steps", "2.5", "steps 2.5 is out of range"),
        ("width", "-64", "width -64 is out of range"),
        ("height", "0", "height 0 is out of range"),
        ("images", "0", "images 0 is out of range"),
        ("seed", "-1", "seed -1 is out of range"),
        ("seed", "9223372036854775808", "seed 9223372036854775808 is out of range"),
        ("guidance_scale", "-1", "guidance_scale -1 is out of range"),
        ("guidance_scale", "nan", "guidance_scale nan is out of range"),
        ("strength", "1.5", "strength 1.5 is out of range: use 0 or more, at most 1"),
        ("id", " ", "the id is empty"),
        ("id", "a/b", "id 'a/b' cannot name a file: leave out '/'"),
        ("id", "..", "id '..' cannot name a file"),
        ("id", "x" * 151, "use at most 150 bytes"),
        ("id", "FIRST", "id 'FIRST' is also that of p.csv, line 2 .as 'first', which names the same file"),
        ("id", "first", "id 'first' is also that of p.csv, line 2; change one of them"),
        ("image", "none.png", "there is no image 'none.png'; give a path relative to the prompt file"),
        ("mask_image", "none\0.png", "is binary"),
        ("control_image", "x" * 5000, "there is no control_image 'xxx"),
    ],
)
def test_bad_values_name_the_line(write, monkeypatch, tmp_path, column, value, message):
    monkeypatch.chdir(tmp_path)
    filler = {"id": "first"}.get(column, "")
    write("p.csv", f"prompt,{column}\na cat,{filler}\na dog,{value}\n")
    with pytest.raises(CotrunkError, match=message) as caught:
        read_prompts(Path("p.csv"))
    assert str(caught.value).startswith("p.csv" if "binary" in message else "p.csv, line 3: ")


def test_bad_values_of_json(write):
    for value, message in ((True, "steps True is out of range"), ([3], r"steps \[3\] is out of range")):
        with pytest.raises(CotrunkError, match=rf"line 1: {message}"):
            read_prompts(write("p.jsonl", json.dumps({"prompt": "a cat", "steps": value})))
    with pytest.raises(CotrunkError, match=r"line 1: id is of type bool"):
        read_prompts(write("p.jsonl", '{"prompt": "a cat", "id": true}'))
    with pytest.raises(CotrunkError, match=r"line 2: the row has no id, and .*line 1 has one"):
        read_prompts(write("p.jsonl", '{"prompt": "a cat", "id": 1}\n{"prompt": "a dog"}'))


def test_an_empty_prompt_among_other_values_is_refused(write):
    with pytest.raises(CotrunkError, match=r"line 3: the prompt is empty; give it some text"):
        read_prompts(write("p.csv", "prompt,seed\na cat,1\n ,2\n"))
    assert read_prompts(write("p.csv", "prompt,seed\na cat,1\n ,\n")).blank == 1


def test_paths_are_relative_to_the_prompt_file(write, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat.png").write_bytes(b"")
    (tmp_path / "lora").mkdir()
    row = read_prompts(write("p.csv", "prompt,image,lora\na cat,in/cat.png,lora\n")).rows[0]
    assert (row.image, row.lora) == (str(tmp_path / "in/cat.png"), str(tmp_path / "lora"))
    assert read_prompts(write("p.csv", "prompt,lora\na cat,owner/name\n")).rows[0].lora == "owner/name"


def test_comments_in_text(write):
    found = read_prompts(write("p.txt", "# subjects\na cat\n  # more\n\n\\# 1 fan\na # b\n"))
    assert found.prompts == ["a cat", "# 1 fan", "a # b"]
    assert (found.comments, found.blank) == (2, 1)
    assert found.places == ("line 2", "line 5", "line 6")
    assert read_prompts(write("p.csv", "prompt\n# 1 fan\n")).prompts == ["# 1 fan"]  # a table has none


def test_a_row_survives_json():
    for row in (ROW, PromptRow("a cat"), PromptRow("a cat", strength=0.5, lora="x", image="y")):
        assert PromptRow.from_json(json.loads(json.dumps(row.to_json()))) == row
    assert PromptRow("a cat").to_json() == "a cat"
    with pytest.raises(CotrunkError, match="unknown key 'colour'"):
        PromptRow.from_json({"prompt": "a cat", "colour": 3})


def test_ids_that_differ_only_in_their_unicode_form():
    rows = [("line 1", PromptRow("a", id="caf\u00e9")), ("line 2", PromptRow("b", id="cafe\u0301"))]
    with pytest.raises(CotrunkError, match="names the same file"):
        check_ids(rows)


def test_a_lora_with_a_weight_is_relative_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "style").mkdir()
    rows = "prompt,lora\na,style\nb,style:0.5\nc,owner/name:2\n"
    (tmp_path / "p.csv").write_text(rows, encoding="utf-8")
    style = tmp_path / "style"
    assert [row.lora for row in read_prompts(tmp_path / "p.csv").rows] == [str(style), f"{style}:0.5", "owner/name:2"]
    (tmp_path / "p.csv").write_text(rows.replace(":0.5", ":50"), encoding="utf-8")
    with pytest.raises(CotrunkError, match=r"p\.csv, line 3: The weight of the LoRA .*style, 50.0 is out of range"):
        read_prompts(tmp_path / "p.csv")
