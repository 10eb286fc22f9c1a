"""A slice of the nightly search for false certificates (``benchmarks.verification.adversary``)."""

from __future__ import annotations

from tests.workers.verification.adversary.questions import FALSE, Tally, ask
from tests.workers.verification.adversary.search import find_case


def test_no_bound_proves_the_distance_of_a_known_wrong_input() -> None:
    tally = Tally()
    # Of the newest layers, seed 2 found a softmax that could win and had the upper bound 0.
    for newest, seeds in ((False, range(200, 233)), (True, range(2, 5))):
        for seed in seeds:
            case = find_case(seed, newest=newest)
            if case is not None:
                ask(case, tally, f"seed {seed}, newest {newest}", seed=seed, share=0.1)
    assert tally.false == []
    # The search has teeth only where bounds prove something, and where wrong inputs are found.
    assert tally.graphs >= 15
    assert tally.proved >= 0.05 * tally.allowed


def test_a_false_answer_is_counted() -> None:
    tally = Tally()
    assert not tally.count("honest", [True] * FALSE + [False] * 3)
    assert tally.count("liar", [True] * (FALSE + 1) + [False] * 2)
