"""Digests: of files, of the code that a module runs, and the seeds that follow from names."""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = "paramscope"
SOURCE = Path(__file__).parent.parent


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seed_of(*identity: object) -> int:
    """A 63-bit seed from what a piece of work is, the same wherever and whenever it runs."""
    text = "\x1f".join(str(part) for part in identity)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def code_digest(*modules: str) -> str:
    """SHA-256 over the sources of the named modules and of all they import in this package.

    Modules are named below the package ("curvature.ggn"). Imports inside functions count,
    and so does the `__init__` of every package on the way, since it runs as well.

    Raises:
        ValueError: a module that the package does not have.
    """
    digest = hashlib.sha256()
    for name in sorted(imported_modules(*modules)):
        digest.update(f"{name}\x00".encode())
        digest.update(_file(name).read_bytes())
    return digest.hexdigest()[:16]


def imported_modules(*modules: str) -> set[str]:
    """The full names of the modules that `code_digest` covers, the given ones included."""
    found: set[str] = set()
    waiting = [f"{PACKAGE}.{module}" for module in modules]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += _imports(name)
    return found


def _file(module: str) -> Path:
    base = SOURCE.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file() and (module != PACKAGE or path.name == "__init__.py"):
            return path
    raise ValueError(f"no module {module} in {SOURCE}")


def _exists(module: str) -> bool:
    try:
        _file(module)
    except ValueError:
        return False
    return True


@cache
def _imports(module: str) -> tuple[str, ...]:
    """The package's own modules that one module imports, ancestors' `__init__` included."""
    names: list[str] = [module.rpartition(".")[0]] if module != PACKAGE else []
    for node in ast.walk(ast.parse(_file(module).read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(n for n in names if n.split(".")[0] == PACKAGE and _exists(n))
