"""The folder a site's images lie in, and which paths stay in it."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

from client.data.columns import NUL


class Root:
    """A folder that paths must stay in, also after following symbolic links."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._parents: dict[Path, bool] = {}

    def holds(self, path: str) -> bool:
        """Tell whether a path, relative to the folder, leads to a place inside; opens nothing."""
        windows = PureWindowsPath(path)
        if not path or NUL in path or ".." in windows.parts or windows.drive or windows.root:
            return False
        file = self._folder / path
        try:
            if file.parent not in self._parents:
                self._parents[file.parent] = file.parent.resolve().is_relative_to(self._folder)
            if not self._parents[file.parent]:
                return False
            return not file.is_symlink() or file.resolve().is_relative_to(self._folder)
        except (OSError, RuntimeError, ValueError):
            return False
