"""A site's own baseline: trained by the worker a federation uses, kept, and told clearly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from client.plan import read_plan
from client.site import SiteConfig, load_site
from client.train_local import check_device, train_site
from client.worker import SiteWorker
from common.code import code_digest
from common.config import RunConfig
from common.errors import ConfigError, DataError, DeploymentError, LabelError, TableError
from common.protocol import Instruction
from simulations.make_site import make_site

SETTINGS = (
    "data.findings=['effusion', 'edema']",
    "data.image_size=32",
    "model.backbone=timm:test_vit",
    "pet.rank=2",
    "rounds.count=2",
    "evaluate.replicates=20",
)


@pytest.fixture(scope="module")
def site_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = make_site(tmp_path_factory.mktemp("sites") / "north", "north", 80, 1, 32, prevalence=0.5)
    with file.open("a") as stream:
        stream.write("\n[evaluate]\nmin_cell = 3\n[device]\nthreads = 1\n")
    return file


@pytest.fixture
def site(site_file: Path) -> SiteConfig:
    return load_site(site_file)


@pytest.fixture(scope="module")
def plan() -> RunConfig:
    return read_plan(None, SETTINGS)


def test_the_baseline_is_measured_and_kept_for_a_run_of_the_same_plan(
    site: SiteConfig, plan: RunConfig
) -> None:
    first = train_site(site, plan)
    assert first.metrics.macro_auroc is not None
    assert set(first.metrics.findings) == {"effusion", "edema"}
    assert sum(first.studies.values()) == 80
    assert not first.kept_before
    written = first.file.read_bytes()

    again = train_site(site, plan)
    assert again.kept_before
    assert again.metrics == first.metrics
    assert first.file.read_bytes() == written
    # What a federation of this plan asks its worker for is the same baseline, not trained again.
    worker, flat = SiteWorker(site), plan.to_flat()
    base = worker.base_digest(flat)
    asked = Instruction("local", plan.plan_digest(base, code_digest()), code_digest(), base)
    assert worker.handle(asked, flat).metrics["steps"] == first.steps
    assert first.file.read_bytes() == written


def test_another_plan_is_another_baseline(site: SiteConfig) -> None:
    other = train_site(site, read_plan(None, [*SETTINGS, "seed=1"]))
    assert not other.kept_before


def test_the_command_prints_each_finding_and_reads_a_plan_file(site_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text('[data]\nfindings = ["effusion", "edema"]\nimage_size = 32\n[rounds]\ncount = 2\n')
    options = [part for text in SETTINGS[2:] for part in ("--set", text)]
    shown = command(site_file.parent, "--plan", str(file), *options)
    assert shown.returncode == 0, shown.stderr
    for word in ("effusion", "macro", "test AUROC", "95 % interval", "test studies"):
        assert word in shown.stdout
    told = json.loads(command(site_file, "--plan", str(file), *options, "--json").stdout)
    assert told["kept_before"] is True
    assert f"{told['macro_auroc']:.3f}" in shown.stdout


def test_the_plan_of_a_run_is_read_as_the_run_read_it(tmp_path: Path, plan: RunConfig) -> None:
    from server.plan import write_plan

    write_plan(plan, "ab" * 32, tmp_path)
    assert read_plan(tmp_path / "plan.toml") == plan
    assert read_plan(tmp_path / "plan.toml", ["pet.rank=4"]).pet.rank == 4


def test_a_site_without_the_plans_findings_is_told_so(site: SiteConfig) -> None:
    with pytest.raises(DataError, match="no training study carries a label"):
        train_site(site, read_plan(None, [*SETTINGS, "data.findings=['fracture']"]))


def test_the_workers_words_come_back(site: SiteConfig) -> None:
    with pytest.raises(DataError, match="no finding has 500 training patients") as caught:
        train_site(site, read_plan(None, [*SETTINGS, "data.shots=500"]))
    assert caught.value.fix == "lower data.shots, or leave this site out"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--set", "pet.rnak=2"), ConfigError.exit_code, "did you mean 'pet.rank'?"),
        (("--plan", "nowhere.toml"), ConfigError.exit_code, "nowhere.toml: cannot be read"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said(
    site_file: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    shown = command(site_file, *options)
    assert shown.returncode == code
    assert words in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_gpu_that_is_not_there_is_said_before_anything_is_read(site: SiteConfig) -> None:
    asked = site.model_copy(update={"device": site.device.model_copy(update={"name": "cuda:99"})})
    with pytest.raises(DeploymentError, match="cuda:99"):
        check_device(asked)


@pytest.mark.parametrize("error", [TableError, LabelError])
def test_a_table_that_cannot_be_used_is_said(
    site: SiteConfig, plan: RunConfig, error: type[DataError], tmp_path: Path
) -> None:
    table = tmp_path / "studies.csv"
    if error is LabelError:
        assert site.data.table is not None
        table.write_text(site.data.table.read_text().replace("edema", "oedema", 1))
    spoilt = site.model_copy(update={"data": site.data.model_copy(update={"table": table})})
    with pytest.raises(error):
        train_site(spoilt, plan)


def command(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "client.cli", "train-local", str(place), *options]
    return subprocess.run(whole, capture_output=True, text=True, timeout=100, check=False)
