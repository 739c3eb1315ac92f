"""The centre.toml that ``init`` writes: every key with a word on why."""

from __future__ import annotations

import json

from server.centre.folder import CentreConfig

_TEXT = """\
# A coordinating centre of fedcxr. It holds no patient data. What is secret lies in keys/, not here.
# A change counts from the next "fedcxr-server start" on.

# The centre's name in messages and logs.
name = {name}

# HOST:PORT that sites dial, through firewalls and name servers as they see them. The host must
# stand in the server certificate: after a change, "fedcxr-server renew", and a new welcome for
# every site ("fedcxr-server admit" with its request again).
address = {address}

# HOST:PORT that is bound for sites. 0.0.0.0 is every address of this machine. Only what a site's
# node needs is answered here, and nothing but health without the key of an admitted site.
listen = {listen}

# HOST:PORT for this centre's own commands and processes. Must be on loopback: who reaches it, and
# can read keys/admin.token, can start runs at every site.
admin = {admin}

# Bytes of the largest request a site may send; larger ones are refused before they are read.
max_body = {max_body}

# Bytes that must be free on this disk; below that sites are asked to wait, and nothing is lost.
min_free_disk = {min_free_disk}

# The page that shows the runs is for this machine alone (docs/monitor.md has every key). To show it to
# others, give each a password, "fedcxr-server password NAME", and take the # away:
# [monitor]
# listen = "0.0.0.0:9480"

# Alerts go nowhere before a table says where (docs/monitor-alerts.md):
# [alerts.webhook]
# url = "https://chat.example.org/hooks/fedcxr"
"""


def centre_text(config: CentreConfig) -> str:
    """Return the text of a ``centre.toml``, which ``CentreFolder.config`` reads as it stands."""
    # A JSON string of what the settings allow is a TOML string too.
    return _TEXT.format(**{key: json.dumps(value) for key, value in config.model_dump().items()})
