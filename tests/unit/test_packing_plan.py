"""Planning of packs against plain implementations of the same rules."""

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_skills.training.packing import Algorithm, Plan, plan_packs
from nemo_skills.training.packing_exact import ExactFill

ALGORITHMS: tuple[Algorithm, ...] = (
    "fewest_packs",
    "best_fit_decreasing",
    "first_fit_decreasing",
    "first_fit_shuffle",
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, list[int]]:
    capacity = draw(st.integers(1, 120) | st.sampled_from([511, 512, 513, 5000]))
    largest = draw(st.integers(1, capacity))
    # few different lengths make large groups, many make small ones
    sizes = draw(st.lists(st.integers(1, largest), min_size=1, max_size=8) | st.just([largest, 1]))
    length = st.sampled_from(sizes) | st.integers(1, largest)
    return capacity, draw(st.lists(length, max_size=80))


def first_fit(lengths: Iterable[int], capacity: int) -> list[list[int]]:
    packs: list[list[int]] = []
    for length in lengths:
        for pack in packs:
            if sum(pack) + length <= capacity:
                pack.append(length)
                break
        else:
            packs.append([length])
    return packs


def best_fit(lengths: Iterable[int], capacity: int) -> list[list[int]]:
    packs: list[list[int]] = []
    for length in lengths:
        fitting = [pack for pack in packs if sum(pack) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            packs.append([length])
    return packs


def contents(plan: Plan, lengths: Sequence[int]) -> list[list[int]]:
    return sorted(sorted(lengths[i] for i in plan.pack(n)) for n in range(len(plan)))


def in_order(packs: Iterable[list[int]]) -> list[list[int]]:
    return sorted(map(sorted, packs))


@given(problems(), st.sampled_from(ALGORITHMS), st.integers(0, 3))
def test_every_sequence_is_in_one_pack_and_no_pack_is_too_full(
    problem: tuple[int, list[int]], algorithm: Algorithm, seed: int
) -> None:
    capacity, lengths = problem
    plan = plan_packs(lengths, capacity, algorithm, seed)
    assert sorted(plan.order) == list(range(len(lengths)))
    sums = [sum(pack) for pack in contents(plan, lengths)]
    assert all(0 < total <= capacity for total in sums)
    assert sum(sums) == plan.tokens == sum(lengths)
    if lengths:
        assert plan.efficiency == sum(lengths) / (capacity * len(plan))
        assert plan.sequences_per_pack == len(lengths) / len(plan)


@given(problems())
def test_groups_of_packs_are_filled_as_single_packs_would_be(problem: tuple[int, list[int]]) -> None:
    capacity, lengths = problem
    falling = sorted(lengths, reverse=True)
    best, first = best_fit(falling, capacity), first_fit(falling, capacity)
    ours = plan_packs(lengths, capacity, "first_fit_decreasing")
    assert contents(ours, lengths) == in_order(first)
    ours = plan_packs(lengths, capacity, "best_fit_decreasing")
    assert len(ours) == len(best)
    fewest = plan_packs(lengths, capacity)
    assert -(-sum(lengths) // capacity) <= len(fewest) <= min(len(best), len(first))
    shuffled = [lengths[i] for i in np.random.default_rng(7).permutation(len(lengths))]
    ours = plan_packs(lengths, capacity, "first_fit_shuffle", seed=7)
    assert contents(ours, lengths) == in_order(first_fit(shuffled, capacity))


def test_no_rule_is_always_best_so_that_all_are_tried() -> None:
    lengths = [38, 37, 35, 32, 30, 29, 25, 18, 18, 8, 7, 7, 6, 5, 3, 2, 2]
    assert (len(best_fit(lengths, 76)), len(first_fit(lengths, 76))) == (5, 4)
    assert len(plan_packs(lengths, 76)) == 4


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(60, 300), st.integers(2, 40))
def test_exact_filling_loses_nothing_and_saves_packs(seed: int, capacity: int, shortest: int) -> None:
    """Without short sequences to fill gaps, best fit leaves gaps everywhere."""
    longest = max(shortest, capacity // 2)
    lengths = np.random.default_rng(seed).integers(shortest, longest + 1, 2000)
    counts = np.bincount(lengths)
    filler = ExactFill(counts, capacity, seed)
    found = np.zeros(capacity + 1, np.int64)
    for pattern in filler.patterns():
        assert sum(length * number for length, number in pattern.each.items()) <= capacity
        for length, number in pattern.each.items():
            found[length] += pattern.packs * number
    assert ((found + filler.left)[: len(counts)] == counts).all()
    assert filler.left @ np.arange(capacity + 1) <= 8 * capacity


def test_packs_are_filled_to_the_last_token_where_best_fit_leaves_gaps() -> None:
    lengths = np.random.default_rng(0).normal(350, 110, 7473).clip(165, 1088).astype(int)
    fewest = -(-int(lengths.sum()) // 2048)
    assert len(plan_packs(lengths, 2048, "best_fit_decreasing")) > 1.005 * fewest
    assert len(plan_packs(lengths, 2048)) <= 1.002 * fewest


def test_the_seed_decides_the_order_of_packs_and_who_stands_for_a_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 3000)
    plan, again, other = (plan_packs(lengths, 100, seed=seed) for seed in (1, 1, 2))
    assert (plan.order == again.order).all()
    assert (plan.order != other.order).any()
    # long sequences are not all at the beginning
    firsts = [int(lengths[plan.pack(i)].max()) for i in range(len(plan))]
    assert abs(np.corrcoef(firsts, np.arange(len(firsts)))[0, 1]) < 0.2
    # and rows that were neighbours in the input need not be so in the packs
    same = np.flatnonzero(lengths == lengths[0])
    packs = np.repeat(np.arange(len(plan)), np.diff(plan.bounds))[np.argsort(plan.order)][same]
    assert (np.diff(packs) < 0).any()


@pytest.mark.parametrize("lengths", [[1, 0], [11], [-1]])
def test_impossible_lengths_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="from 1 to 10"):
        plan_packs(lengths, 10)


def test_many_lengths_are_planned_nearly_without_waste() -> None:
    lengths = np.random.default_rng(0).lognormal(7, 1, 100_000).clip(1, 16_384).astype(int)
    assert plan_packs(lengths, 16_384).efficiency > 0.999
