"""Draws: seeds that are the same everywhere, rows that depend on their own key only."""

import copy
import hashlib
import pickle
import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from sec4sr_pl.draws import Draws, kept_generators, key, normal, seed_generators, uniform


def test_a_key_is_a_hash_of_its_parts_that_any_process_can_compute() -> None:
    by_hand = hashlib.blake2b(b"0\x1f3\x1f103-1240-0001\x1fcrop", digest_size=8).digest()
    assert key(0, 3, "103-1240-0001", "crop") == int.from_bytes(by_hand, "big") // 2 == 0x1B7E151DDB23C76D // 2


def test_every_key_seeds_a_generator() -> None:
    keys = [key("name", index) for index in range(1_000)]
    assert all(0 <= value < 2**63 for value in keys) and max(keys) > 2**62
    for value in (*keys[:10], 2**63 - 1):
        torch.Generator().manual_seed(value)


def test_keys_differ_where_any_part_does() -> None:
    parts = [(), ("",), (0,), (1,), (0, 0), (0, 1), (1, 0), ("0", "10"), ("01", "0"), ("010",), (0, 0, 0)]
    keys = [key(*part) for part in parts]
    assert keys[0] == keys[1]  # nothing, and a text of nothing
    assert len(set(keys)) == len(parts) - 1


def test_keys_are_spread_evenly() -> None:
    keys = [key(0, epoch, f"utterance-{index}") for epoch in range(20) for index in range(250)]
    assert kstest([value / 2**63 for value in keys], "uniform").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.tensor([*pairwise(value / 2**63 for value in keys)]).T)[0, 1]) < 0.05


def test_a_row_depends_on_its_own_key_only() -> None:
    keys = [key("row", index) for index in range(4)]
    rows = uniform(keys, torch.empty(4, 1_000))
    for index, own in enumerate(keys):
        assert torch.equal(uniform([own], torch.empty(1, 1_000))[0], rows[index])
    shuffled = uniform([keys[2], keys[0], keys[2]], torch.empty(3, 1_000))
    assert torch.equal(shuffled, rows[[2, 0, 2]])
    assert len({tuple(row.tolist()) for row in rows}) == 4


def test_draws_neither_use_nor_move_the_global_generator() -> None:
    torch.manual_seed(0)
    first, state = uniform([5], torch.empty(1, 100)), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(uniform([5], torch.empty(1, 100)), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copied_generator_goes_on_from_the_same_place_on_its_own(duplicate: Callable[[Draws], Draws]) -> None:
    original = Draws()
    original.seed(3)
    torch.rand(5, generator=original.generator)
    other = duplicate(original)
    expected = torch.rand(10, generator=other.generator)
    assert torch.equal(torch.rand(10, generator=original.generator), expected)
    assert not torch.equal(torch.rand(10, generator=original.generator), expected)
    original.seed(3)
    torch.rand(5, generator=original.generator)
    assert torch.equal(torch.rand(10, generator=original.generator), expected)


def test_draws_are_uniform_between_0_and_1() -> None:
    rows = uniform([key("uniform", index) for index in range(50)], torch.empty(50, 2_000))
    assert rows.min() >= 0.0 and rows.max() < 1.0
    assert kstest(rows.flatten().numpy(), "uniform").pvalue > 1e-3
    assert kstest(rows[:, 0].numpy(), "uniform").pvalue > 1e-3  # over the rows, too
    assert abs(torch.corrcoef(torch.stack([rows[:, :-1].flatten(), rows[:, 1:].flatten()]))[0, 1]) < 0.02


@pytest.mark.parametrize("shape", [(3, 1), (3, 7), (3, 2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_shape_type_and_device_of_the_example(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    rows = uniform([1, 2, 3], torch.empty(shape, dtype=dtype, device=device))
    assert (rows.shape, rows.dtype, rows.device.type) == (torch.Size(shape), dtype, device.type)
    assert torch.equal(rows.cpu(), uniform([1, 2, 3], torch.empty(shape)).to(dtype))


def test_normal_draws_are_normal_and_a_row_depends_on_its_key_alone_not_on_its_size() -> None:
    keys = [key("normal", index) for index in range(50)]
    rows = normal(keys, torch.empty(50, 2_000))
    assert kstest(rows.flatten().numpy(), "norm").pvalue > 1e-3
    assert kstest(rows[:, 0].numpy(), "norm").pvalue > 1e-3  # over the rows, too
    for size in (1, 7, 15, 16, 17, 33, 1_999):
        for index in (0, 17):
            assert torch.equal(normal([keys[index]], torch.empty(1, size))[0], rows[index, :size])


def test_the_keys_of_the_first_rows_do_not_depend_on_how_many_follow() -> None:
    draws = Draws()
    draws.seed(3)
    keys, later = draws.keys(8), draws.keys(8)
    assert len(set(keys + later)) == 16
    draws.seed(3)
    assert draws.keys(3) == keys[:3]


def test_seeding_the_generators_gives_the_draws_of_torchs_own_seed() -> None:
    torch.manual_seed(7)
    expected = torch.rand(5)
    seed_generators(7, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected)


def test_what_draws_from_any_global_generator_is_seeded_and_given_back() -> None:
    def draw() -> tuple[float, ...]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    device = torch.device("cpu")
    seed_generators(1, device)
    expected = draw(), draw()
    seed_generators(1, device)
    assert draw() == expected[0]
    with kept_generators(device):
        seed_generators(2, device)
        assert not set(draw()) & set(expected[0] + expected[1])
    assert draw() == expected[1]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_the_generator_of_the_device_given_is_seeded_whichever_is_the_current_one() -> None:
    before = torch.cuda.get_rng_state(0)
    seed_generators(7, torch.device("cuda:1"))
    assert torch.cuda.initial_seed() != 7 and torch.equal(torch.cuda.get_rng_state(0), before)
