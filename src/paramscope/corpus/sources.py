"""Where text comes from: Python's own documentation, or local files."""

import ast
import hashlib
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from paramscope.errors import RequestError

DOCSTRING_CHARACTERS = 120  # shorter docstrings are left out
NOT_DOCUMENTATION = {
    "__pycache__",
    "dist-packages",
    "idlelib",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}
TOPICS = "pydoc_data/topics.py"
PLAIN_SUFFIXES = {".txt", ".text", ".md", ".rst", ".raw", ".tokens"}
FIELD = "text"
# WikiText's article title: one "=" each side, and a blank line before and after
TITLE = re.compile(r" = (?!= ).+(?<! =) = ?")


@dataclass(frozen=True)
class Document:
    """A text and where it is from: a file, or a name within the source."""

    origin: str
    text: str


def stdlib_documents(folder: Path | None = None) -> list[Document]:
    """Python's language topics and the standard library's docstrings, in a fixed order.

    Sources are parsed, never imported or run: the same text under `-OO`, and no side effects.
    Docstrings of modules, classes and functions of at least 120 characters, dedented; tests,
    IDLE and installed packages are left out. The text differs between Python versions.

    Args:
        folder: the standard library; this Python's own by default.

    Raises:
        RequestError: the folder has no readable sources (an installation without them).
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    mend = "use a Python that has its sources, or --source local --path FILE"
    try:
        topics = _topics((folder / TOPICS).read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise RequestError(
            f"can't read the language topics in {folder / TOPICS}: {error}; {mend}"
        ) from error
    found = [Document(f"{TOPICS}:{name}", text) for name, text in topics.items()]
    names = (path.relative_to(folder) for path in folder.rglob("*.py"))
    wanted = sorted(n.as_posix() for n in names if not NOT_DOCUMENTATION & set(n.parts))
    for name in tqdm(wanted, desc="reading docstrings", unit="file"):
        found += _docstrings(name, (folder / name).read_bytes())
    if len(found) == len(topics):
        raise RequestError(f"no docstrings in {folder}: Python came without its sources; {mend}")
    return found


def local_documents(paths: Sequence[Path]) -> list[Document]:
    """The documents of local files, in the order given.

    Plain text in WikiText's style gives its articles, other plain text its paragraphs (split
    at blank lines); `.jsonl` a document a line, `.parquet` a document a row, from the field
    `text`. Empty documents are left out.

    Raises:
        RequestError: no path; or one that is missing, empty, of another kind, not UTF-8, or
            without the field.
    """
    if not paths:
        raise RequestError("the local source has no file: name at least one with --path FILE")
    found: list[Document] = []
    for path in tqdm(paths, desc="reading", unit="file"):
        texts = [text for text in _texts(path) if text.strip()]
        if not texts:
            raise RequestError(f"{path}: holds no text; name another file")
        found += [Document(f"{path.name}:{i}", text) for i, text in enumerate(texts)]
    return found


def hub_files(dataset: str, files: Sequence[str]) -> list[Path]:
    """Files of a dataset on the Hugging Face hub, as stored here; or of a local folder.

    Raises:
        RequestError: no file is named, or one that can't be had.
    """
    if not dataset or not files or not all(files):
        raise RequestError("the hub source needs a dataset and its files: --dataset ID --path FILE")
    if Path(dataset).is_dir():
        return [Path(dataset) / file for file in files]
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return [Path(hf_hub_download(dataset, file, repo_type="dataset")) for file in files]
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RequestError(
            f"dataset '{dataset}': {line}; give a local folder or a hub id that is in reach"
        ) from error


def describe(documents: Sequence[Document]) -> dict[str, Any]:
    """What a corpus was made of: Python's version, counts, and a SHA-256 of the source text."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.text.encode() + b"\x00")
    return {
        "python": sys.version.split()[0],
        "source_sha256": digest.hexdigest(),
        "source_documents": len(documents),
        "source_characters": sum(len(document.text) for document in documents),
    }


def _topics(source: bytes) -> dict[str, str]:
    """The dictionary that the module of topics assigns."""
    for node in _parse(source).body:
        if isinstance(node, ast.Assign):
            topics = ast.literal_eval(node.value)
            if isinstance(topics, dict):
                return topics
    raise ValueError("holds no dictionary")


def _docstrings(name: str, source: bytes) -> Iterator[Document]:
    try:
        tree = _parse(source)
    except (SyntaxError, ValueError) as error:  # a template or a foreign file among the sources
        tqdm.write(f"left out {name}, which this Python can't parse: {error}", file=sys.stderr)
        return
    for node in _definitions(tree):
        text = ast.get_docstring(node) or ""
        if len(text) >= DOCSTRING_CHARACTERS and _encodable(text):
            line = 1 if isinstance(node, ast.Module) else node.lineno
            yield Document(f"{name}:{line}", text)


Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(node: ast.AST) -> Iterator[Definition]:
    """What can have a docstring, in the order of the source; expressions are not entered."""
    if isinstance(node, Definition):
        yield node
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        inner = getattr(node, block, ())
        for child in inner if isinstance(inner, list) else ():
            yield from _definitions(child)


def _parse(source: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other people's escapes
        return ast.parse(source)


def _texts(path: Path) -> Iterable[str]:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise RequestError(f"{path}: no such file; --path takes files, relative to where it runs")
    if suffix in PLAIN_SUFFIXES:
        return _plain(_read(path))
    if suffix == ".jsonl":
        return _jsonl(path)
    if suffix == ".parquet":
        return _parquet(path)
    known = ", ".join(sorted(PLAIN_SUFFIXES | {".jsonl", ".parquet"}))
    raise RequestError(f"{path}: can't tell what it holds; known are {known}")


def _plain(text: str) -> list[str]:
    lines = ["", *text.split("\n"), ""]
    starts = [
        i
        for i in range(1, len(lines) - 1)
        if TITLE.fullmatch(lines[i]) and not lines[i - 1].strip() and not lines[i + 1].strip()
    ]
    if not starts:
        return re.split(r"\n\s*\n", text)
    ends = [*starts, len(lines)]
    return ["\n".join(lines[a:b]) for a, b in zip([0, *starts], ends, strict=True)]


def _jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            try:
                text = json.loads(line)[FIELD]
            except ValueError as error:
                raise RequestError(f"{path}: line {number} is not JSON: {error}") from error
            except (KeyError, TypeError) as error:
                raise RequestError(
                    f'{path}: line {number} lacks the field; each line is {{"{FIELD}": "..."}}'
                ) from error
            yield _checked(text, f"{path}: line {number}")


def _parquet(path: Path) -> Iterator[str]:
    try:
        columns = pq.read_schema(path).names
        if FIELD not in columns:
            raise RequestError(
                f"{path}: has no column {FIELD} (but {', '.join(columns)}); rename the column"
            )
        rows = pq.read_table(path, columns=[FIELD])[FIELD].to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise RequestError(f"{path}: not a readable Parquet file: {error}") from error
    for number, text in enumerate(rows):
        yield _checked(text, f"{path}: row {number}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path}: not UTF-8 at byte {error.start}; convert it, as with "
            f"iconv -f latin1 -t utf-8 {path.name}"
        ) from error


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str) or not _encodable(text):
        raise RequestError(f"{where}: the field {FIELD} is not a text; mend or remove it")
    return text


def _encodable(text: str) -> bool:
    """Whether UTF-8 can hold it: half a surrogate pair, which an escape can write, it can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
