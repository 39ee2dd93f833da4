"""Files of benchmarks in the formats that their authors use, read row by row."""

import csv
import fnmatch
import gzip
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from nemo_skills.core.errors import UserError
from nemo_skills.dataset.rows import SourceRow

Reader = Callable[[IO[bytes], str], Iterator[Mapping[str, Any]]]
"""Yields the rows of an open file; the text is what messages call it."""


def read_jsonl(file: IO[bytes], where: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file with one JSON object a line."""
    for number, line in enumerate(file, start=1):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{where}, line {number}: not a JSON object")
        yield row


def read_json(file: IO[bytes], where: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file that is one JSON list of objects, or one object."""
    try:
        data = json.load(file)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    rows = data if isinstance(data, list) else [data]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{where}, item {number}: not a JSON object")
        yield row


def csv_reader(*columns: str, delimiter: str = ",") -> Reader:
    """Return a reader of CSV files; `columns` names the columns of files without a header."""

    def read(file: IO[bytes], where: str) -> Iterator[Mapping[str, Any]]:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            for row in csv.DictReader(text, fieldnames=columns or None, delimiter=delimiter):
                if None in row or None in row.values():
                    raise UserError(f"{where}: a row has not as many cells as there are columns")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{where}: not a CSV file: {error}") from None

    return read


def read_parquet(file: IO[bytes], where: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a Parquet file, with pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{where}: Parquet files are read with pyarrow, which is not installed: pip install pyarrow"
        ) from None
    try:
        for batch in parquet.ParquetFile(io.BytesIO(file.read())).iter_batches(batch_size=1000):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{where}: not a Parquet file: {error}") from None


READERS: Mapping[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": csv_reader(),
    ".tsv": csv_reader(delimiter="\t"),
    ".parquet": read_parquet,
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a benchmark's files are to be read, where it is not as their names say."""

    members: str = "*"
    """Which files of an archive or a folder are meant: a pattern for their whole paths in there."""

    readers: Mapping[str, Reader] = field(default_factory=dict)
    """Readers by the ending of a file's name, before the usual ones."""

    password: bytes | None = None
    """Password of a zip archive, which its authors publish so that crawlers do not read it."""


def read_rows(path: Path, layout: Layout) -> Iterator[SourceRow]:
    """Yield the rows of a file, of an archive, or of a folder with files.

    Raises:
        UserError: something cannot be read, is in no known format, or nothing matches the layout.
    """
    try:
        yield from _rows(path, layout)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        # zipfile says RuntimeError of a wrong password
        raise UserError(f"cannot read {path}: {error}") from None


def _rows(path: Path, layout: Layout) -> Iterator[SourceRow]:
    found = False
    for name, file in _open(path, layout):
        found = True
        with file:
            reader, where = _reader(name, path, layout)
            for number, values in enumerate(reader(file, where), start=1):
                yield SourceRow(values=values, file=name, number=number)
    if not found:
        raise UserError(f"{path} has no file that matches {layout.members}")


def _open(path: Path, layout: Layout) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield files with the names they go by, in the natural order of names: 2 comes before 10."""
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        for name in _wanted(files, layout, folder=path.name):
            yield name, files[name].open("rb")
    elif path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for name in _wanted(archive.namelist(), layout):
                yield name, archive.open(name, pwd=layout.password)
    elif path.name.endswith((".tar", ".tar.gz", ".tgz")):
        with tarfile.open(path) as archive:
            members = {member.name: member for member in archive if member.isfile()}
            for name in _wanted(members, layout):
                file = archive.extractfile(members[name])
                assert file is not None
                yield name, file
    else:
        yield path.name, path.open("rb")


def _wanted(names: Mapping[str, object] | list[str], layout: Layout, folder: str = "") -> list[str]:
    """Return the names that match; an unpacked archive may be given by any folder of it."""
    matching = [
        name
        for name in names
        if not Path(name).name.startswith(".")
        and (fnmatch.fnmatch(name, layout.members) or fnmatch.fnmatch(f"{folder}/{name}", layout.members))
    ]
    return sorted(matching, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])


def _reader(name: str, path: Path, layout: Layout) -> tuple[Reader, str]:
    where = str(path) if name == path.name else f"{path}: {name}"
    plain = name.removesuffix(".gz")
    readers = {**READERS, **layout.readers}
    suffix = Path(plain).suffix
    if suffix not in readers:
        raise UserError(f"{where}: its format is not known; known endings are {', '.join(readers)}")
    if plain == name:
        return readers[suffix], where

    def unpack(file: IO[bytes], where: str) -> Iterator[Mapping[str, Any]]:
        with gzip.open(file, "rb") as text:
            yield from readers[suffix](text, where)  # type: ignore[arg-type]

    return unpack, where
