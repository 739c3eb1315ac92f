"""timm, peft and transformers import beside any torch, in a process of their own."""

from __future__ import annotations

import subprocess
import sys


def test_torchvision_s_users_import(repository):
    lines = "import common.pet.lora, timm, transformers; print(timm.create_model('test_vit').num_classes)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", lines],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "1000"), done.stderr[-800:]


def test_declaring_twice_changes_nothing():
    from common.model import torchvision_shim

    held = torchvision_shim._library
    torchvision_shim.declare_missing_operators()
    assert torchvision_shim._library is held


def test_where_the_extension_loads_nothing_is_declared(monkeypatch):
    from common.model import torchvision_shim

    monkeypatch.setattr(torchvision_shim, "_library", None)
    monkeypatch.setattr(torchvision_shim, "_extension_loads", lambda: True)
    torchvision_shim.declare_missing_operators()
    assert torchvision_shim._library is None
