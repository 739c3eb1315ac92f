"""Studies side by side on a processor's threads: the same numbers, in order, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from client.activations import digests_of
from client.frozen import ImagePrefix
from client.outputs import Outputs
from client.streams import side_by_side
from common.config import RunConfig
from common.model.build import build_model


@pytest.fixture
def four_threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


def test_pieces_come_in_order_worked_on_side_by_side_and_the_caller_keeps_its_threads(
    four_threads: int,
) -> None:
    meeting = threading.Barrier(2, timeout=20)
    threads = []

    def work(piece: int) -> int:
        if piece < 2:
            meeting.wait()  # nobody passes alone
        threads.append(torch.get_num_threads())
        return piece * piece

    assert [*side_by_side(work, range(9), 2)] == [n * n for n in range(9)]
    assert {*threads} == {2}
    assert torch.get_num_threads() == four_threads


def test_one_stream_is_the_callers_own_thread(four_threads: int) -> None:
    def work(piece: int) -> tuple[threading.Thread, int]:
        return threading.current_thread(), torch.get_num_threads()

    assert {*side_by_side(work, range(3), 1)} == {(threading.current_thread(), four_threads)}


def test_no_thread_rests_where_there_are_fewer_pieces_than_streams(four_threads: int) -> None:
    def threads(piece: int) -> int:
        return torch.get_num_threads()

    assert [*side_by_side(threads, range(1), 4)] == [four_threads]
    assert [*side_by_side(threads, range(2), 4)] == [2, 2]
    assert [*side_by_side(threads, range(0), 4)] == []


@pytest.mark.usefixtures("four_threads")
def test_an_error_comes_out_and_what_was_not_begun_is_left() -> None:
    begun = []

    def work(piece: int) -> int:
        begun.append(piece)
        if piece == 3:
            raise ValueError("the fourth piece")
        return piece

    taken: list[int] = []
    with pytest.raises(ValueError, match="the fourth piece"):
        taken.extend(side_by_side(work, range(1000), 2))
    assert taken == [0, 1, 2]
    assert len(begun) < 20
    assert torch.get_num_threads() == 4


def test_whoever_stops_taking_leaves_nothing_running(four_threads: int) -> None:
    before = threading.active_count()
    made = side_by_side(abs, range(1000), 4)
    assert next(made) == 0
    made.close()
    assert threading.active_count() == before
    assert torch.get_num_threads() == four_threads


@pytest.mark.parametrize("backbone", ["timm:test_vit", "timm:densenet121"])
def test_what_a_frozen_part_says_is_the_same_to_the_last_bit(backbone: str) -> None:
    """On one thread as on three, where each stream has one too; by itself, where it has all three."""
    config = RunConfig.from_flat({"model.backbone": backbone, "data.image-size": 32, "pet.method": "head"})
    model = build_model(config)
    part = ImagePrefix(model, len(model.arch.blocks) + 1)
    count = 5 * part.together + 3
    images = torch.randn(count, model.channels, 32, 32, generator=torch.Generator().manual_seed(1))
    rows = torch.arange(count).numpy()

    def said(threads: int, some: slice) -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            outputs = Outputs(
                part,
                lambda asked: (images[torch.from_numpy(asked)],),
                digests_of(images.numpy()),
                (),
                torch.float32,
                None,
                {},
            )
            return outputs.take(rows[some])
        finally:
            torch.set_num_threads(before)

    model.train_mode(True)
    alone = said(1, slice(None))
    assert torch.equal(said(3, slice(None)), alone)
    assert torch.equal(said(3, slice(7)), alone[:7])
    assert torch.equal(alone[:1], part.say(images[:1]))
    assert model.net.training
