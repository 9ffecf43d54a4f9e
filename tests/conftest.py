"""What every test shares: one hypothesis profile, few threads, and the place of the real data."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import tiny

settings.register_profile(
    "ornstein", derandomize=True, deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
# HYPOTHESIS_PROFILE=search looks for new counterexamples: other cases in every run
settings.register_profile("search", parent=settings.get_profile("ornstein"), derandomize=False, max_examples=200, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ornstein"))

# pytest-xdist runs one process per core: more threads within each would only fight for them
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, `$ORNSTEIN_SHARED/data` or `../shared/data`; without it the test is skipped, with a warning."""
    path = Path(os.environ.get("ORNSTEIN_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not path.is_dir():
        warnings.warn(f"shared data {path} is absent: a real-data test does not run", stacklevel=2)
        pytest.skip(f"{path} is absent; set ORNSTEIN_SHARED")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny class-conditional model, trained for thirty steps; copy it before changing it."""
    import tiny

    out = tmp_path_factory.mktemp("tiny") / "model"
    tiny.trained(tiny.recipe(), out)
    return out


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> tiny.Run:
    """`run(*arguments)` is `ornstein ARGUMENTS` in an empty folder."""
    import tiny
    from ornstein import cli

    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tiny.Ended:
        monkeypatch.setattr(sys, "argv", ["ornstein", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return tiny.Ended(code, captured.out, captured.err)

    return call
