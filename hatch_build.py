"""Compiles the native engine when a wheel is built (so ``pip install`` does), and says on which platforms the wheel runs.

A build that fails fails no installation: charlm then works with its other engines and tells why this one is missing.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "charlm/model/native"


class NativeBuildHook(BuildHookInterface):
    """Builds into a temporary folder for a wheel, and into the source tree for an editable installation."""

    temporary: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, before the files of the wheel are collected."""
        native = Path(self.root) / NATIVE
        if version == "editable":
            target = native / "lib"
        else:
            self.temporary = tempfile.TemporaryDirectory(prefix="charlm-native-", ignore_cleanup_errors=True)
            target = Path(self.temporary.name)
        try:
            record = _build_module(native / "build.py").build(native / "source", target)
        except Exception as error:
            self.app.display_warning(f"the native engine was not built: {type(error).__name__}: {error}")
            return
        if record.reason:
            self.app.display_warning(f"the native engine was not built: {record.reason}")
        else:
            self.app.display_info(f"the native engine was built in {record.seconds} s: {', '.join(record.built)}")
        if version != "editable":
            build_data["force_include"] |= {str(file): f"{NATIVE}/lib/{file.name}" for file in sorted(target.iterdir())}
            if record.built:
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{_platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary folder: the wheel holds its files now."""
        if self.temporary is not None:
            self.temporary.cleanup()
            self.temporary = None


def _build_module(path: Path) -> ModuleType:
    """Import ``build.py`` by its path: the package around it cannot be imported yet. Leaves no compiled file behind."""
    spec = importlib.util.spec_from_file_location("charlm_native_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def _platform() -> str:
    """This platform as wheels name it. The libraries depend on it, and not on the version of Python."""
    from packaging.tags import sys_tags

    platforms = (tag.platform for tag in sys_tags())
    return next(name for name in platforms if not name.startswith(("manylinux", "musllinux")))
