"""Methods from outside the repository: one file (`--plugin`), or an installed entry point."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Sequence
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType

from methods import METHODS
from methods.base import Method
from results.errors import UserError
from results.lookup import unknown

ENTRY_POINTS = "bench.methods"
_CODE = frozenset({".py", ".so", ".pyd"})
_SOURCE = "__bench_source__"
"""Name in a plugin's module of the digest of the bytes that it was made of."""


def available(plugins: Sequence[str]) -> dict[str, type[Method]]:
    """Built-in methods and those of plugin files, by name.

    Importing a plugin runs its code: pass only files you trust.

    Raises:
        UserError: a plugin that is missing, broken, holds no method, or takes a known name.
    """
    found: dict[str, type[Method]] = {m.name: m for m in METHODS}
    for plugin in plugins:
        for cls in from_file(Path(plugin)):
            if cls.name in found:
                raise UserError(
                    f"plugin {plugin} defines method '{cls.name}', which exists already; rename it"
                )
            found[cls.name] = cls
    return found


def resolve(names: Sequence[str], plugins: Sequence[str]) -> dict[str, type[Method]]:
    """The methods called `names`, entry points among them; only named entry points are imported.

    Raises:
        UserError: an unknown name, with a suggestion, or a plugin that cannot be used.
    """
    known = available(plugins)
    installed = {e.name: e for e in entry_points(group=ENTRY_POINTS)}
    chosen = {}
    for name in names:
        if name in known:
            chosen[name] = known[name]
        elif name in installed:
            try:
                loaded = installed[name].load()
            except Exception as error:
                raise UserError(
                    f"entry point {name} ({installed[name].value}) fails to import: "
                    f"{type(error).__name__}: {error}"
                ) from error
            cls = _checked(loaded, f"entry point {name}")
            if cls.name != name:
                raise UserError(f"entry point {name} is the method '{cls.name}'; use one name")
            chosen[name] = cls
        else:
            raise unknown("method", name, [*known, *installed])
    return chosen


def installed() -> dict[str, str]:
    """Names of installed entry points and where each comes from, without importing them."""
    return {
        e.name: f"{e.value} ({e.dist.name} {e.dist.version})" if e.dist else e.value
        for e in entry_points(group=ENTRY_POINTS)
    }


def from_file(path: Path) -> list[type[Method]]:
    """The methods that a plugin file defines, in the file's order; names with _ are helpers.

    Raises:
        UserError: the file is missing, fails to import, or defines no method.
    """
    if not path.is_file():
        raise UserError(f"plugin {path}: no such file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"plugin {path} cannot be read: {error.strerror or error}") from None
    source = hashlib.sha256(content).hexdigest()
    name = f"bench_plugin_{path.stem}_{source[:8]}"
    if name not in sys.modules:
        loader = _Bytes(name, str(path), content)
        spec = spec_from_file_location(name, path, loader=loader)
        if spec is None:
            raise UserError(f"plugin {path}: not a Python file")
        module = module_from_spec(spec)
        setattr(module, _SOURCE, source)
        sys.modules[name] = module  # dataclasses look their module up while it is imported
        try:
            loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise UserError(
                f"plugin {path} fails to import: {type(error).__name__}: {error}"
            ) from error
    classes = [
        c
        for c in vars(sys.modules[name]).values()
        if inspect.isclass(c) and issubclass(c, Method) and c.__module__ == name
        if not c.__name__.startswith("_")
    ]
    if not classes:
        raise UserError(f"plugin {path} defines no subclass of methods.base.Method")
    return [_checked(c, f"plugin {path}") for c in classes]


class _Bytes(SourceFileLoader):
    """Imports these bytes: Python's own may take the bytecode of an earlier file of this length."""

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)
        self.content = content

    def get_code(self, fullname: str) -> CodeType:
        """What the bytes compile to."""
        return self.source_to_code(self.content, self.path)


@cache
def source_of(cls: type[Method]) -> str:
    """SHA-256 of the code that a method from outside runs; "" for built-in methods.

    Of its file, or of all code of the package that it belongs to, as it was imported or first asked
    about: files change while runs train.
    """
    if cls in METHODS:
        return ""
    known = getattr(sys.modules.get(cls.__module__), _SOURCE, None)
    if known is not None:
        return str(known)
    top = cls.__module__.partition(".")[0]
    folders = [Path(folder) for folder in getattr(sys.modules.get(top), "__path__", ())]
    if not folders:
        return digest(Path(inspect.getfile(cls)))
    code = {
        path.relative_to(folder).as_posix(): digest(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in _CODE
    }
    return hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _checked(cls: object, where: str) -> type[Method]:
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise UserError(f"{where} is {cls!r}, not a subclass of methods.base.Method")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise UserError(f"{where}: {cls.__name__} lacks {missing}")
    lacking = [n for n in ("name", "title", "paper", "inputs", "fidelity") if not hasattr(cls, n)]
    if lacking:
        raise UserError(f"{where}: {cls.__name__} lacks the class variables {', '.join(lacking)}")
    try:
        cls()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {cls.__name__} needs a default for every field: {error}"
        ) from None
    return cls
