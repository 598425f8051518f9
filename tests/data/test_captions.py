import json

import pytest

from videomar_jax.checks import UserError
from videomar_jax.data.captions import read_captions


@pytest.fixture
def folder(tmp_path):
    """Two clips by name only: captions never open them."""
    (tmp_path / "sub").mkdir()
    clips = [tmp_path / "a.mp4", tmp_path / "sub" / "b.webm"]
    for clip in clips:
        clip.write_bytes(b"x")
    return tmp_path, clips


def test_a_clip_without_a_caption_gets_an_empty_one(folder):
    path, clips = folder
    assert read_captions(path, clips, None) == dict.fromkeys(clips, "")


def test_text_files_beside_the_clips(folder):
    path, (a, b) = folder
    b.with_suffix(".txt").write_text("ein großer Hund läuft\n", encoding="utf-8")
    assert read_captions(path, [a, b], None) == {a: "", b: "ein großer Hund läuft"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("explicit", [False, True])
def test_a_table_comes_before_text_files_and_need_not_be_complete(
    folder, tmp_path_factory, kind, explicit
):
    path, (a, b) = folder
    a.with_suffix(".txt").write_text("from the text file")
    b.with_suffix(".txt").write_text("not this")
    table = (
        tmp_path_factory.mktemp("elsewhere") / f"mine.{kind}"
        if explicit
        else path / f"captions.{kind}"
    )
    if kind == "csv":
        table.write_text(
            '\ufefflength,file,caption\n3,sub/b.webm,"left, then right"\n', encoding="utf-8"
        )
    else:
        table.write_text(
            "\n" + json.dumps({"file": "sub/b.webm", "caption": "left, then right", "n": 1}) + "\n"
        )
    captions = read_captions(path, [a, b], table if explicit else None)
    assert captions == {a: "from the text file", b: "left, then right"}


@pytest.mark.parametrize(
    "name, text, line, complaint",
    [
        ("captions.csv", "file,caption\na.mp4,x\nc.mp4,y\n", 3, "'c.mp4' does not exist"),
        ("captions.jsonl", '{"file": "c.mp4", "caption": "y"}\n', 1, "'c.mp4' does not exist"),
        ("captions.csv", "file,caption\nnotes.md,x\n", 2, "not a video"),
        ("captions.csv", "file,caption\na.mp4,x\na.mp4,y\n", 3, "named twice"),
        ("captions.csv", "name,caption\na.mp4,x\n", 1, '"file"'),
        ("captions.csv", "", 1, '"caption" and "file"'),
        ("captions.csv", "file,caption\na.mp4\n", 2, "both text"),
        ("captions.jsonl", '{"file": "a.mp4", "caption": 3}\n', 1, "both text"),
        ("captions.jsonl", '{"file": "a.mp4", "caption": "x"}\n{"file": \n', 2, "not JSON"),
        ("captions.jsonl", '["a.mp4", "x"]\n', 1, "object"),
        ("captions.csv", "a.mp4,x\n", 1, "must name the columns, .* is 'a.mp4,x'"),
        ("captions.csv", "file;caption\na.mp4;x\n", 1, "not by semicolons"),
        ("captions.csv", "file\tcaption\na.mp4\tx\n", 1, "not by tabs"),
        ("captions.csv", "file,caption,caption\na.mp4,x,y\n", 1, "twice"),
        ("captions.csv", "file,caption\na.mp4,x\0y\n", 2, "NUL"),
        ("captions.csv", "file,caption\na.mp4,x\na.mp4,x\n", 3, "named twice"),
        ("captions.csv", "file,caption\na.mp4\tx\n", 2, "both text"),
        ("captions.jsonl", '{"file": "a.mp4", "caption": "x\\u0000"}\n', 1, "no text"),
        ("captions.jsonl", '{"file": "a.mp4", "caption": "\\ud800"}\n', 1, "no text"),
        ("captions.jsonl", '{"file": "a.mp4", "caption": "' + "x" * 100_001 + '"}', 1, "more than"),
    ],
)
def test_a_wrong_row_is_named_with_its_file_and_line(folder, name, text, line, complaint):
    path, clips = folder
    (path / "notes.md").write_text("no video")
    (path / name).write_text(text)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"{name}, line {line}: .*{complaint}"
    ):
        read_captions(path, clips, None)


def test_two_tables_a_missing_one_and_a_foreign_one_are_errors(folder):
    path, clips = folder
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        read_captions(path, clips, path / "none.csv")
    (path / "table.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"\.csv or \.jsonl"):
        read_captions(path, clips, path / "table.xlsx")
    for name in ("captions.csv", "captions.jsonl"):
        (path / name).write_text("")
    with pytest.raises(ValueError, match=r"both captions\.csv and captions\.jsonl"):
        read_captions(path, clips, None)


@pytest.mark.parametrize(
    "text",
    [
        'file,caption\na.mp4,"x\nsub/b.webm,y\n',
        'file,caption\na.mp4,"x\nsub/b.webm,"y"\n',
        'file,caption\na.mp4,"x\nsub/b.webm,y"\n',
        "file,caption\na.mp4,left, then right\n",
        'caption,file\n"x,a.mp4\ny",sub/b.webm\n',
        f"file,caption\na.mp4,{'x' * 140_000}\n",
        f"file,caption\na.mp4,{'x' * 120_000}\n",
    ],
)
def test_a_quote_without_its_pair_is_an_error(folder, text):
    path, clips = folder
    (path / "captions.csv").write_text(text)
    with pytest.raises(UserError, match=r"captions\.csv, .*line .*quote"):
        read_captions(path, clips, None)


@pytest.mark.parametrize("name", ["a.txt", "captions.csv", "captions.jsonl"])
def test_text_that_is_not_utf_8_is_named(folder, name):
    path, clips = folder
    (path / name).write_bytes(b"file,caption\nein gro\xdfer Hund\n".replace(b"file", b"\n\nfile"))
    if name != "a.txt":
        (path / name).write_bytes(b"\n\n\nein gro\xdfer Hund\n")
    if name == "captions.csv":
        (path / name).write_bytes(b"file,caption\n\n\na.mp4,ein gro\xdfer Hund\n")
    with pytest.raises(UserError, match=f"{name}, line 4: is not UTF-8"):
        read_captions(path, clips, None)


def test_most_clips_without_a_caption_are_said(folder, caplog):
    path, clips = folder
    clips = [*clips, path / "c.mp4"]
    (path / "captions.csv").write_text("file,caption\na.mp4,x\n")
    for _ in range(2):  # as for the two splits of a run
        read_captions(path, clips, None)
    assert caplog.text.count("2 of 3 clips have no caption, such as sub/b.webm, c.mp4,") == 1


def test_what_spreadsheets_and_other_systems_write_is_read(folder):
    """Line ends, empty lines and columns, capitals, spaces, and accents in another form."""
    path, (a, b) = folder
    accented = path / "caf\u00e9.mp4"
    accented.write_bytes(b"x")
    (path / "captions.csv").write_bytes(
        "\ufeffFile, Caption,\r\na.mp4,x,\r\n\r\n  \r\n,,\r\n./sub/b.webm,y,,\r\n".encode()
        + "cafe\u0301.mp4,z\r\n".encode()
    )
    captions = read_captions(path, [a, b, accented], None)
    assert captions == {a: "x", b: "y", accented: "z"}


def test_a_text_file_that_is_no_caption_is_named(folder):
    path, clips = folder
    (path / "a.txt").write_text("x" * 400_001)
    with pytest.raises(UserError, match=r"a\.txt: is too long for a caption"):
        read_captions(path, clips, None)
    (path / "a.txt").write_text("a cat", encoding="utf-16-le")
    with pytest.raises(UserError, match=r"a\.txt, line 1: holds NUL bytes"):
        read_captions(path, clips, None)
