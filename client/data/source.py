"""Where a site's rows come from: its own table, a folder of files, or a public set as published.

Whatever the layout, what comes out are columns of text with one row per image; an empty cell is ''.
"""

from __future__ import annotations

from client.data.columns import Text, read_columns
from client.data.folder import read_folder
from client.data.pixel_cache import Progress
from client.data.public.layouts import LAYOUTS
from client.site import SiteConfig
from common.errors import TableError


def read_source(site: SiteConfig, progress: Progress | None = None) -> dict[str, Text]:
    """Read every column the site has, as `site.columns` names them or under the table's own names.

    A folder is read file by file the first time, which takes as long as decoding it.

    Raises:
        TableError: if the table, the folder or a file of the public layout is missing or malformed.
    """
    data = site.data
    if not data.root.is_dir():
        raise TableError("site.toml: data.root is not a folder", found=str(data.root))
    if data.layout == "folder":
        return read_folder(site, progress)
    if data.layout == "table":
        assert data.table is not None  # noqa: S101  (held by DataConfig)
        return read_columns(data.table)
    return LAYOUTS[data.layout](data.root)
