"""The exception tree: codes, exit codes, words."""

from __future__ import annotations

import pickle

import pytest

from common import errors
from common.errors import ConfigError, FedcxrError, closest


def tree(kind: type[FedcxrError] = FedcxrError) -> list[type[FedcxrError]]:
    """The classes of common.errors; a package may refine one under the same code."""
    own = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(leaf for child in own for leaf in tree(child))]


def test_codes_are_stable_unique_and_drawn_in_the_docstring():
    codes = [kind.code for kind in tree()]
    assert len(codes) == len(set(codes))
    for kind in tree()[1:]:
        assert kind.code.startswith("E_")
        assert f"{kind.__name__} " in errors.__doc__ and kind.code in errors.__doc__


def test_a_branch_shares_its_exit_code():
    for branch in FedcxrError.__subclasses__():
        assert {kind.exit_code for kind in tree(branch)} == {branch.exit_code}
    branches = [branch.exit_code for branch in FedcxrError.__subclasses__()]
    assert sorted(branches) == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("kind", tree())
def test_an_error_survives_the_way_between_processes(kind):
    error = kind("a problem", found="this", fix="do that")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is kind
    assert str(again) == str(error)


def test_words_lie_under_the_code():
    full = ConfigError("wrong", found="x", fix="y")
    assert str(full).splitlines() == ["E_CONFIG  wrong", "          found: x", "          fix:   y"]
    assert str(ConfigError("wrong")) == "E_CONFIG  wrong"
    assert str(ConfigError("wrong", fix="y")).splitlines()[1:] == ["          fix:   y"]


@pytest.mark.parametrize(
    ("name", "said"), [("edma", "did you mean 'edema'?"), ("zzz", ""), ("edema", "did you mean 'edema'?")]
)
def test_closest(name, said):
    assert closest(name, ["edema", "effusion"]) == said
