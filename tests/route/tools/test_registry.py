"""The registry: what is in it, that it is whole, and that processes share it."""

import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.route.tools.tools import file_documents

from polytask.errors import InputError
from polytask.route.tools import Document, Lexical, Registry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "below" / "registry.sqlite"


def test_it_is_there_the_next_time(path: Path) -> None:
    with Registry(path) as registry:
        ids = registry.register_all(file_documents())
    with Registry(path) as again:
        assert again.get(ids) == file_documents() and len(again) == 5
        assert again.modules() == {"files": 3, "math": 2} and again.ids(["math"]) == list(ids[3:])
        assert again.find("math.root") == (ids[4], file_documents()[4])


def test_versions_are_kept() -> None:
    registry = Registry()
    first = registry.register_all(file_documents())[3]
    newer = file_documents()[3].but(description="n!")
    second = registry.update(newer)
    assert registry.find("math.factorial", "math") == (second, newer)
    registry.delete("math.factorial", "math")
    assert [one for one, _ in registry.versions("math.factorial", "math")] == [first, second]
    assert registry.register(newer) > second, "an id is never given again"
    with pytest.raises(InputError, match=r"no API is called 'math\.factoria': did you mean 'math.factorial'"):
        registry.find("math.factoria")
    with pytest.raises(InputError, match="no API is called"):
        registry.delete("gone", "math")
    with pytest.raises(InputError, match="no document has the id 99"):
        registry.get([99])


def test_a_name_may_be_in_several_modules_but_once_in_each() -> None:
    registry = Registry()
    registry.register_all([Document("read", module="a"), Document("read", module="b")])
    with pytest.raises(InputError, match="in 2 modules"):
        registry.find("read")
    assert registry.find("read", "b")[1].module == "b"
    with pytest.raises(InputError, match="already registered in module 'a'"):
        registry.register_all([Document("write", module="a"), Document("read", module="a")])
    assert len(registry) == 2, "all or none"
    with pytest.raises(ZeroDivisionError):
        registry.register_all(Document(f"n{1 // (3 - i)}_{i}") for i in range(5))
    assert len(registry) == 2


def test_registering_and_deleting_leaves_search_as_it_was() -> None:
    registry = Registry()
    registry.register_all(file_documents())
    lexical = Lexical(registry)
    requests = ["open a file", "square root of a number", "read the text", "close what was opened"]
    before = [lexical.select(request, 5) for request in requests]
    registry.register(Document("open_door", description="Open a door and read its number."))
    assert [lexical.select(request, 5) for request in requests] != before
    registry.delete("open_door")
    assert [lexical.select(request, 5) for request in requests] == before


def test_what_is_no_registry_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, and longer than the header of one: " * 20)
    with pytest.raises(InputError, match="not a registry, or a corrupt one"):
        Registry(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("create table mine (a)")
    with pytest.raises(InputError, match="a database of something else"):
        Registry(tmp_path / "other")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be used as a registry"):
        Registry(tmp_path / "folder")
    assert (tmp_path / "text").read_text().startswith("not a database")


def test_a_corrupt_registry_is_one_clear_error(path: Path) -> None:
    with Registry(path) as registry:
        registry.register_all(Document(f"f{i}", description="word " * 50) for i in range(200))
    registry._base.close()
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)

    def use() -> None:
        registry = Registry(path)
        Lexical(registry).select("word", 5)
        registry.get(registry.ids())

    with pytest.raises(InputError, match="corrupt"):
        use()


def test_a_locked_registry_is_one_clear_error_and_can_still_be_read(path: Path) -> None:
    registry = Registry(path, wait=0.1)
    registry.register_all(file_documents())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin exclusive")
    with pytest.raises(InputError, match=r"locked by another process for more than 0\.1 s"):
        registry.register(Document("late"))
    assert len(registry) == 5
    other.execute("rollback")
    registry.register(Document("late"))


def writer(path: Path, name: str, count: int, pipe: Any) -> None:
    registry = Registry(path, wait=30)
    for i in range(count):
        registry.register(Document(f"{name}_{i}", description=f"number {i}"))
        if i == 3:
            pipe.send("going")


def test_two_processes_write_and_one_is_killed(path: Path) -> None:
    Registry(path).close()
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(2)]
    lasting = context.Process(target=writer, args=(path, "a", 40, ends[0][1]))
    killed = context.Process(target=writer, args=(path, "b", 100_000, ends[1][1]))
    for process in (lasting, killed):
        process.start()
    assert ends[1][0].recv() == "going"
    killed.kill()
    for process in (lasting, killed):
        process.join()
    registry = Registry(path)
    assert lasting.exitcode == 0 and registry.ask("pragma integrity_check") == [("ok",)]
    names = [document.name for document in registry.get(registry.ids())]
    assert sum(name.startswith("a_") for name in names) == 40 and "b_3" in names
    assert registry.ask("select count(*) from words")[0][0] == len(names), "a document and its words, or neither"


def test_what_came_of_calls_is_told_to_maintainers() -> None:
    registry = Registry()
    ids = registry.register_all(file_documents())
    registry.record(ids[0], "open it", right=False, detail="timeout")
    registry.record(ids[0], "open that", right=True)
    registry.record(ids[4], "root", right=True)
    assert list(registry.outcomes()) == [("files", "open_local_file", 2, 1), ("math", "math.root", 1, 0)]
