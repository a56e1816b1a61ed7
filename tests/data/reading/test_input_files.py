import json
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from deconattn.data.reading.input_files import counted_kinds, find_inputs, find_remote
from deconattn.errors import UserError
from tests.data.reading.mutations import encode


def write(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(path.name, texts))
    return path


def save_dataset(folder: Path, files: list[str]) -> list[Path]:
    """What `datasets.Dataset.save_to_disk` leaves, as far as it matters."""
    paths = [write(folder / name, [name]) for name in files]
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    (folder / "dataset_info.json").write_text("{}")
    return paths


def found(*given: object) -> list[Path]:
    return [Path(source.name) for source in find_inputs([str(name) for name in given])]


@pytest.mark.parametrize(
    ("name", "kind", "codec"),
    [
        ("a.txt", "text", None),
        ("a.TXT.GZ", "text", "gzip"),
        ("a.jsonl", "json", None),
        ("a.ndjson.zst", "json", "zstd"),
        ("a.jsonlines", "json", None),
        ("a.JsonLines.xz", "json", "xz"),
        ("a.txt.xz", "text", "xz"),
        ("c4.00001-of-00002.json.gz", "json", "gzip"),
        ("a.json.bz2", "json", "bz2"),
        ("a.parquet", "parquet", None),
        ("a.arrow", "arrow", None),
    ],
)
def test_the_name_tells_the_kind(tmp_path: Path, name: str, kind: str, codec: str | None) -> None:
    path = write(tmp_path / name, ["x"])
    for given in (path, tmp_path):
        (source,) = find_inputs([str(given)])
        assert (source.name, source.kind, source.codec) == (str(path), kind, codec)
        assert source.size == path.stat().st_size
        assert pickle.loads(pickle.dumps(source)) == source


def test_the_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["x"])
    stamps = [find_inputs([str(path)])[0].stamp]
    os.utime(path, (0, 0))
    stamps.append(find_inputs([str(path)])[0].stamp)
    path.write_bytes(path.read_bytes() * 2)
    os.utime(path, (0, 0))
    stamps.append(find_inputs([str(path)])[0].stamp)
    assert len(set(stamps)) == 3


def test_inputs_expand_in_a_fixed_order(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.txt", "sub/c.parquet", "sub/d.jsonl.gz"]
    paths = {name: write(tmp_path / name, ["x"]) for name in names}
    (tmp_path / "notes.md").write_text("not a document")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden" / "e.txt", ["x"])
    everything = [paths["a.txt"], paths["b.jsonl"], paths["sub/c.parquet"], paths["sub/d.jsonl.gz"]]
    assert found(tmp_path) == everything
    assert found(tmp_path / "*.jsonl", tmp_path / "a.txt") == [paths["b.jsonl"], paths["a.txt"]]
    assert found(tmp_path / "**/*.gz") == [paths["sub/d.jsonl.gz"]]
    assert found(tmp_path / "[ab].*", tmp_path / "s*") == everything
    assert found(tmp_path / "config.json", tmp_path / "sub") == [tmp_path / "config.json", *everything[2:]]


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    taken = [write(tmp_path / name, ["x"]) for name in ("a.jsonlines", "b.txt.xz", "c.ndjson", "sub/d.json")]
    (tmp_path / "e.json").write_text(json.dumps([{"id": 1, "text": "an array"}], indent=1))
    taken.insert(3, tmp_path / "e.json")
    for name in (
        "README.md",
        "sub/notes.MD",
        "x.pdf",
        "LICENSE",
        "a.parquet.gz",
        "tar.tar.xz",
        ".DS_Store",
        "sub/.x.txt",
    ):
        (tmp_path / name).write_text("not taken")
    (tmp_path / "config.json").write_text('{"text": {"dtype": "string"}, "model": "x"}')
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.txt").write_text("hidden with its folder")
    left_out: Counter[str] = Counter()
    sources = find_inputs([str(tmp_path)], left_out=left_out)
    assert [Path(source.name) for source in sources] == taken
    assert left_out == {
        ".md": 2, ".pdf": 1, "no ending": 1, ".parquet.gz": 1, ".tar.xz": 1, ".json": 1, "hidden": 3
    }  # fmt: skip
    assert counted_kinds(left_out) == "3 hidden, 2 .md, 1 .json, 1 .parquet.gz, 1 .pdf, 1 .tar.xz, 1 no ending"
    left_out.clear()
    assert tmp_path / "e.json" not in found_with(tmp_path, "body", left_out)
    assert left_out[".json"] == 3


def found_with(folder: Path, text_field: str, left_out: "Counter[str]") -> list[Path]:
    return [Path(source.name) for source in find_inputs([str(folder)], text_field, left_out=left_out)]


def test_a_json_file_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(UserError, match="a.json: neither a file nor a folder"):
        find_inputs([str(tmp_path)])


def test_what_lies_in_a_data_set_and_is_not_its_is_counted(tmp_path: Path) -> None:
    save_dataset(tmp_path / "set", ["data-0.arrow"])
    write(tmp_path / "set" / "cache-1.arrow", ["old"])
    (tmp_path / "set" / "README.md").write_text("x")
    left_out: Counter[str] = Counter()
    assert len(find_inputs([str(tmp_path)], left_out=left_out)) == 1
    assert left_out == {".arrow": 1, ".md": 1}


def test_a_file_with_two_names_is_taken_once(tmp_path: Path) -> None:
    path = write(tmp_path / "in" / "a.jsonl", ["x"])
    os.link(path, tmp_path / "in" / "b.jsonl")
    with pytest.raises(UserError, match=rf"b.jsonl: duplicate inputs: it is given twice \(as {path} too\)"):
        find_inputs([str(tmp_path / "in")])
    (tmp_path / "in" / "b.jsonl").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for overlap in (tmp_path / "link", tmp_path / "link" / "a.jsonl", tmp_path / "in" / ".." / "in" / "*.jsonl"):
        with pytest.raises(UserError, match="duplicate inputs"):
            find_inputs([str(tmp_path / "in"), str(overlap)])


def test_a_pattern_gives_a_folder_and_its_files_once(tmp_path: Path) -> None:
    paths = [write(tmp_path / "x" / name, ["x"]) for name in ("a.txt", "b.txt")]
    assert found(tmp_path / "**") == paths


def test_a_name_with_a_pattern_s_marks_is_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", ["x"])
    assert found(path) == [path]


def test_a_file_given_twice_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["x"])
    link = tmp_path / "link.jsonl"
    with pytest.raises(UserError, match=f"{path}: duplicate inputs: it is given twice; name each file once"):
        find_inputs([str(path), str(tmp_path)])
    link.symlink_to(path)
    with pytest.raises(UserError, match=rf"{link}: duplicate inputs: .* \(as {path} too\)"):
        find_inputs([str(tmp_path)])
    with pytest.raises(UserError, match="-: duplicate inputs"):
        find_inputs(["-", "-"])


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    path = write(tmp_path / "elsewhere" / "a.txt", ["x"])
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "linked").symlink_to(path.parent)
    (folder / "circle").symlink_to(folder)
    assert found(folder) == [folder / "linked" / "a.txt"]


def test_saved_datasets_come_in_their_own_order(tmp_path: Path) -> None:
    one = save_dataset(tmp_path / "one", ["data-1.arrow", "data-0.arrow"])
    write(tmp_path / "one" / "cache-5.arrow", ["not of the data set"])
    assert found(tmp_path / "one") == one
    train, test = (save_dataset(tmp_path / "two" / split, ["data-0.arrow"]) for split in ("train", "test"))
    (tmp_path / "two" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(UserError, match=r"two is a data set of several splits; choose one of train, test with --split"):
        found(tmp_path / "two")
    with pytest.raises(UserError, match=r"two has no split dev; choose one of train, test with --split"):
        find_inputs([str(tmp_path)], split="dev")
    assert found(tmp_path / "two" / "test") == test
    first, last = write(tmp_path / "a.txt", ["x"]), write(tmp_path / "z.txt", ["x"])
    for split, files in [("train", train), ("test", test)]:
        sources = find_inputs([str(tmp_path)], split=split)
        assert [Path(source.name) for source in sources] == [first, *one, *files, last]
    (tmp_path / "two" / "dataset_dict.json").write_text(json.dumps({"splits": ["test"]}))
    assert found(tmp_path / "two") == test


def test_a_split_of_nothing_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", ["x"])
    with pytest.raises(UserError, match="--split train: no input is a data set of several splits; leave it out"):
        find_inputs([str(tmp_path)], split="train")


@pytest.mark.parametrize(
    "name", ["../secret.txt", "../secret.arrow", "/etc/passwd", "notes.txt", "sub/../../x.arrow", ""]
)
def test_a_data_set_reads_its_own_files_only(tmp_path: Path, name: str) -> None:
    save_dataset(tmp_path / "set", ["data-0.arrow"])
    for other in ("secret.txt", "secret.arrow", "set/notes.txt"):
        write(tmp_path / other, ["secret"])
    (tmp_path / "set" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(UserError, match="state.json names .*, no Arrow file of the data set"):
        find_inputs([str(tmp_path / "set")])
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["../elsewhere"]}))
    with pytest.raises(UserError, match="dataset_dict.json names '../elsewhere', no folder of the data set"):
        find_inputs([str(tmp_path / "set")])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (b"{", "not what the datasets library writes"),
        (b"[1]", "not what the datasets library writes"),
        (b"[" * 100_000, "not what the datasets library writes"),
        (b'{"_data_files": [{"name": "x"}]}', "not what the datasets library writes"),
        (b'{"_data_files": [{"filename": 5}]}', "not what the datasets library writes"),
        (b'{"_data_files": [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]}', "data-1.arrow: missing"),
    ],
)
def test_a_data_set_that_is_not_whole(tmp_path: Path, state: bytes, message: str) -> None:
    save_dataset(tmp_path, ["data-0.arrow"])
    (tmp_path / "state.json").write_bytes(state)
    with pytest.raises(UserError, match=message):
        find_inputs([str(tmp_path)])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(UserError, match="train/state.json: missing, so the data set is not whole"):
        find_inputs([str(tmp_path)])


def test_inputs_that_give_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "a.parquet.gz").write_text("x")
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "a.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for given, message in [
        ("absent.jsonl", "no such file"),
        ("n" * 5000, "cannot be read"),
        ("*.jsonl.zst", "matches nothing"),
        ("notes.md", "unknown kind of file; give one of .txt, .jsonl"),
        ("a.parquet.gz", "unknown kind of file"),
        ("pipe.jsonl", "neither a file nor a folder.*give -"),
        ("", "pipe.jsonl: neither a file nor a folder"),
        ("empty", "holds no .txt"),
        ("json", r"holds no .txt.* file \(but 1 .json\); a .json file must be named, or have the --text-field"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            find_inputs([str(tmp_path / given)])
        assert str(tmp_path / given) in str(caught.value)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "open" / "a.txt", ["x"])
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"{tmp_path / 'closed'}: cannot be read .Permission denied"):
        find_inputs([str(tmp_path)])


@pytest.mark.parametrize("name", [b"\xff.txt", b"two\nlines.txt"])
def test_names_that_cannot_be_shown(tmp_path: Path, name: bytes) -> None:
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_text("x")
    except OSError:
        pytest.skip("the file system takes other names only")
    with pytest.raises(UserError, match=r"(udcff|two.nlines).txt': .*; rename it") as caught:
        find_inputs([str(tmp_path)])
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_urls(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    paths = [write(tmp_path / name, ["x"]) for name in ("a.txt", "b.jsonl.gz", "sub/c.parquet")]
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "state.json").write_text("{}")
    paths.insert(2, tmp_path / "c.json")
    paths[2].write_text('{"text": "x"}')
    url = tmp_path.as_uri()
    for given in ([url], [f"{url}/*.*[tz]", f"{url}/c.json", f"{url}/sub"]):
        left_out: Counter[str] = Counter()
        sources = find_inputs(given, left_out=left_out)
        assert left_out == ({".md": 1, ".json": 1} if given == [url] else {})
        assert [source.name for source in sources] == [path.as_uri() for path in paths]
        assert [source.size for source in sources] == [path.stat().st_size for path in paths]
        assert [source.codec for source in sources] == [None, "gzip", None, None]
    before = find_inputs([paths[0].as_uri()])
    os.utime(paths[0], (0, 0))
    assert find_inputs([paths[0].as_uri()]) != before
    with pytest.raises(UserError, match="duplicate inputs"):
        find_inputs([url, paths[0].as_uri()])
    (tmp_path / "sub" / "dataset_dict.json").write_text("{}")
    with pytest.raises(UserError, match="a data set of several splits; give the URL of one split's folder"):
        find_inputs([url])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("file:///nowhere/a.txt", "nowhere/a.txt: cannot be read .FileNotFoundError"),
        ("file:///nowhere/*.txt", "is there; check the URL"),
        ("nonsense://bucket/a.txt", "nonsense"),
        ("memory://a.md", "cannot be read|unknown kind"),
    ],
)
def test_urls_that_give_nothing(given: str, message: str) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(UserError, match=message):
        find_inputs([given])


@pytest.mark.parametrize("missing", ["fsspec", "fsspec.core"])
def test_urls_without_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"s3://b/a.txt: reading URLs needs pip install .*\[remote\]"):
        find_inputs(["s3://b/a.txt"])


def test_what_a_protocol_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec.core")

    class Broken:
        def isdir(self, path: str) -> bool:
            raise RuntimeError("no credentials\nlong story")

    monkeypatch.setattr(fsspec, "url_to_fs", lambda url: (Broken(), url))
    check: Callable[[str], bool] = bool
    with pytest.raises(UserError, match=r"s3://b: cannot be read \(RuntimeError: no credentials\); check"):
        list(find_remote("s3://b", check, ""))
