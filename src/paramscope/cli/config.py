"""The command that writes, checks and validates configurations."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def config(
    files: Annotated[
        list[Path] | None,
        Argument(help="With --validate: files to lay over the default, the last on top."),
    ] = None,
    write: Annotated[bool, Option("--write", help="Write the generated files.")] = False,
    check: Annotated[bool, Option("--check", help="Fail when a generated file drifted.")] = False,
    validate: Annotated[bool, Option("--validate", help="Check FILES.")] = False,
    root: Annotated[Path, Option(help="Folder that holds config.yaml and workflow/.")] = Path(),
) -> None:
    """Print the default configuration, commented; write its files, or check a run's.

    The generated files are config.yaml and workflow/schemas/config.schema.json.
    """
    from paramscope.artifacts.atomic import atomic
    from paramscope.config.load import load
    from paramscope.config.render import default_yaml, schema_json
    from paramscope.errors import ParamscopeError, RequestError

    if write + check + validate > 1:
        raise RequestError("config: give one of --write, --check and --validate")
    if files and not validate:
        raise RequestError("config: files are only read with --validate; add it, or leave them out")
    generated = {
        root / "config.yaml": default_yaml,
        root / "workflow" / "schemas" / "config.schema.json": schema_json,
    }
    if validate:
        load(files or [])
        print(f"ok: the default{''.join(f' + {path}' for path in files or [])}")
    elif write:
        for path, text in generated.items():
            with atomic(path) as partial:
                partial.write_text(text(), encoding="utf-8")
            print(f"wrote {path}")
    elif check:
        drifted = [
            str(path)
            for path, text in generated.items()
            if not path.is_file() or path.read_text(encoding="utf-8") != text()
        ]
        if drifted:
            raise ParamscopeError(
                f"config: {' and '.join(drifted)} {'differs' if len(drifted) == 1 else 'differ'} "
                "from what src/paramscope/config describes; run `paramscope config --write`"
            )
        print(f"ok: {' and '.join(str(path) for path in generated)}")
    else:
        print(default_yaml(), end="")
