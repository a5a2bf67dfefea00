"""The API platform's registry: documents in one SQLite file, with their versions and a full-text index (FTS5)."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polytask.errors import InputError, suggest
from polytask.route.tools.document import Document

APPLICATION = 0x70746B74
"""SQLite's application id of a registry, so that no other database is taken for one."""

COLUMNS = ("name", "description", "parameters", "module", "examples")

SCHEMA = f"""
    create table documents (
        id integer primary key autoincrement, module text not null, name text not null, version integer not null,
        live integer not null, body text not null);
    create unique index live_names on documents (name, module) where live;
    create index live_modules on documents (module) where live;
    create index versions on documents (module, name);
    create virtual table words using fts5 ({", ".join(COLUMNS)}, tokenize = 'porter unicode61');
    create table outcomes (
        id integer primary key, document integer not null, request text not null,
        correct integer not null, detail text not null);
    pragma application_id = {APPLICATION};
"""


class Registry:
    """Documents of APIs by name: register, update, delete, search by `polytask.route.tools.Lexical` and others.

    Each version of a document has an id of its own, which is never given again: an index over ids is never out of date, it
    only knows ids that are no longer there. Several processes may use one file at once: a writer waits for another, and
    what a change consists of happens at once or not at all. Threads may share a registry.

    Args:
        path: the file; it is made where there is none. ``":memory:"`` keeps everything in memory.
        wait: seconds to wait for another process that writes.

    Raises:
        InputError: in one line, for a file that is no registry, is corrupt, or stays locked.
    """

    def __init__(self, path: Path | str = ":memory:", *, wait: float = 5.0) -> None:
        self.path, self.wait = str(path), wait
        self._lock = threading.RLock()
        with self._told():
            if self.path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self.path, timeout=wait, isolation_level=None, check_same_thread=False)
            self._base.execute("pragma cache_size = -65536")  # 64 MiB at most: names come in no order
            self._prepare()

    def _prepare(self) -> None:
        (application,) = self._base.execute("pragma application_id").fetchone()
        if application == APPLICATION:
            return
        if self._base.execute("select count(*) from sqlite_master").fetchone()[0]:
            self._base.close()
            raise InputError(f"{self.path}: a database of something else, expected a registry of APIs")
        self._base.execute("pragma journal_mode = wal")
        with self.changing() as base:
            if base.execute("pragma application_id").fetchone()[0] != APPLICATION:  # no other process came first
                for statement in SCHEMA.split(";"):
                    base.execute(statement)

    def close(self) -> None:
        """Close the file; the registry cannot be used any more."""
        self._base.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Changing

    def register(self, document: Document) -> int:
        """Enter a document and give its id; `InputError` where its module has one of this name."""
        return self.register_all([document])[0]

    def register_all(self, documents: Iterable[Document]) -> Sequence[int]:
        """Enter several documents, all or none of them."""
        with self.changing() as base:
            before = base.execute("select seq from sqlite_sequence where name = 'documents'").fetchone()
            first = (before[0] if before else 0) + 1
            count = sum(1 for document in documents if self._enter(base, document, 1))
        return range(first, first + count)

    def update(self, document: Document) -> int:
        """Put a new version in place of the document of this name and module, and give the new version's id."""
        with self.changing() as base:
            version = self._retire(base, document.name, document.module)
            return self._enter(base, document, version + 1)

    def delete(self, name: str, module: str = "") -> None:
        """Take a document out; its versions can still be looked at."""
        with self.changing() as base:
            self._retire(base, name, module)

    def record(self, document: int, request: str, *, right: bool, detail: str = "") -> None:
        """Keep what came of a call of the document with this id, for whoever maintains it."""
        with self.changing() as base:
            values = (document, request, int(right), detail)
            base.execute("insert into outcomes (document, request, correct, detail) values (?, ?, ?, ?)", values)

    def _enter(self, base: sqlite3.Connection, document: Document, version: int) -> int:
        values = (document.module, document.name, version, document.to_json())
        try:
            cursor = base.execute("insert into documents (module, name, version, live, body) values (?, ?, ?, 1, ?)", values)
        except sqlite3.IntegrityError as error:
            where = f" in module {document.module!r}" if document.module else ""
            raise InputError(f"{self.path}: {document.name!r} is already registered{where}, expected an update") from error
        made = int(cursor.lastrowid or 0)
        texts = document.columns()
        base.execute(f"insert into words (rowid, {', '.join(COLUMNS)}) values (?, ?, ?, ?, ?, ?)",
                     (made, *(texts[column] for column in COLUMNS)))  # fmt: skip
        return made

    def _retire(self, base: sqlite3.Connection, name: str, module: str) -> int:
        """Take out the living version, and give its number."""
        query = "select id, version from documents where live and name = ? and module = ?"
        found = base.execute(query, (name, module)).fetchone()
        if found is None:
            raise InputError(self._unknown(name, module))
        base.execute("update documents set live = 0 where id = ?", found[:1])
        base.execute("delete from words where rowid = ?", found[:1])
        return int(found[1])

    # Reading

    def __len__(self) -> int:
        return int(self.ask("select count(*) from documents where live")[0][0])

    def get(self, ids: Sequence[int]) -> list[Document]:
        """The documents of these ids, in their order, past versions too."""
        found: dict[int, str] = {}
        for start in range(0, len(ids), 500):
            some = [int(one) for one in ids[start : start + 500]]
            marks = ", ".join("?" * len(some))
            found |= dict(self.ask(f"select id, body from documents where id in ({marks})", some))
        if missing := next((one for one in ids if int(one) not in found), None):
            raise InputError(f"{self.path}: no document has the id {missing}")
        return [Document.from_json(found[int(one)]) for one in ids]

    def find(self, name: str, module: str | None = None) -> tuple[int, Document]:
        """The id and document called ``name``; with no module the name has to be the only one of its kind."""
        query, values = "select id, body, module from documents where live and name = ?", [name]
        if module is not None:
            query, values = f"{query} and module = ?", [name, module]
        found = self.ask(query, values)
        if not found:
            raise InputError(self._unknown(name, module or ""))
        if len(found) > 1:
            modules = ", ".join(repr(row[2]) for row in found[:5])
            raise InputError(f"{self.path}: {name!r} is in {len(found)} modules ({modules}), expected the module too")
        return int(found[0][0]), Document.from_json(found[0][1])

    def versions(self, name: str, module: str = "") -> list[tuple[int, Document]]:
        """All versions with their ids, the oldest first; deleted ones too."""
        query = "select id, body from documents where name = ? and module = ? order by id"
        return [(int(one), Document.from_json(body)) for one, body in self.ask(query, (name, module))]

    def ids(self, modules: Collection[str] | None = None) -> list[int]:
        """The ids of all living documents, or of those in some modules."""
        if modules is None:
            return [row[0] for row in self.ask("select id from documents where live order by id")]
        marks = ", ".join("?" * len(modules))
        return [row[0] for row in self.ask(f"select id from documents where live and module in ({marks})", [*modules])]

    def modules(self) -> dict[str, int]:
        """The modules and how many documents each has."""
        return dict(self.ask("select module, count(*) from documents where live group by module order by module"))

    def living(self, ids: Sequence[int]) -> set[int]:
        """Those of some ids (a few hundred) that are living versions."""
        marks = ", ".join("?" * len(ids))
        return {
            row[0] for row in self.ask(f"select id from documents where live and id in ({marks})", [int(i) for i in ids])
        }

    def outcomes(self) -> Iterator[tuple[str, str, int, int]]:
        """What maintainers want to know: module, name, how often it was called, and how often that was wrong."""
        query = """select module, name, count(*), sum(not correct) from outcomes join documents on documents.id = document
                   group by module, name order by 4 desc, 3 desc, 2"""
        yield from self.ask(query)

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query; what fails is told in one line."""
        with self._lock, self._told():
            return self._base.execute(query, values).fetchall()

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A change that happens as a whole, or not at all where the block raises; for as long no other process writes."""
        with self._lock, self._told():
            self._base.execute("begin immediate")
            try:
                yield self._base
                self._base.execute("commit")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("rollback")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise InputError(f"{self.path}: locked by another process for more than {self.wait:g} s") from error
            raise InputError(f"{self.path}: cannot be used as a registry ({error})") from error
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.path}: not a registry, or a corrupt one ({error})") from error
        except OSError as error:
            raise InputError(f"{self.path}: cannot be opened ({error.strerror})") from error

    def _unknown(self, name: str, module: str) -> str:
        where = f" in module {module!r}" if module else ""
        query = "select distinct name from documents where live and name like ? limit 200"
        near = [row[0] for row in self.ask(query, (f"{name[:2]}%",))]
        return f"{self.path}: no API is called {name!r}{where}" + (f": {suggest(name, near)}" if near and not where else "")
