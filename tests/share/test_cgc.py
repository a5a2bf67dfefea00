"""CGC: its closed form, and what it is the same as."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.errors import InputError
from polytask.share import CGC, PLE, MMoE
from polytask.share._experts import Experts


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_a_task_mixes_the_shared_experts_and_its_own(shared: int, own: int, hidden: int) -> None:
    torch.manual_seed(0)
    pathway = CGC(shared=shared, own=own, hidden=hidden).build(3, ("a", "b")).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    (level,) = pathway.levels  # type: ignore[misc]
    for task, output in pathway(x, ("a", "b")).items():
        experts = torch.cat([level.shared(x), level.own[task](x)])
        gate = level.gates[task](x).softmax(1)
        expected = sum(gate[:, e, None] * experts[e] for e in range(shared + own))
        torch.testing.assert_close(output, expected)


def test_without_experts_of_a_task_it_is_mmoe() -> None:
    cgc, mmoe = CGC(shared=3, own=0, hidden=5).build(4, ("a", "b")), MMoE(experts=3, hidden=5).build(4, ("a", "b"))
    names = {"experts.": "levels.0.shared.", "gates.": "levels.0.gates."}
    weights = mmoe.state_dict()
    for old, new in names.items():
        weights = {name.replace(old, new) if name.startswith(old) else name: value for name, value in weights.items()}
    cgc.load_state_dict(weights)
    x = torch.randn(2, 6, 4)
    torch.testing.assert_close(cgc(x, ("b", "a")), mmoe(x, ("b", "a")), rtol=0, atol=0)


def test_it_is_ple_of_one_level() -> None:
    torch.manual_seed(0)
    cgc = CGC(shared=2, own=1).build(4, ("a", "b"))
    torch.manual_seed(0)
    ple = PLE(shared=2, own=1, levels=1).build(4, ("a", "b"))
    x = torch.randn(6, 4)
    torch.testing.assert_close(cgc(x, ("a", "b")), ple(x, ("a", "b")), rtol=0, atol=0)


def test_only_the_shared_experts_are_shared_and_no_other_task_runs() -> None:
    pathway = CGC(shared=2, own=3, hidden=5).build(4, ("a", "b"))
    expert = 4 * 5 + 5 + 5 * 4 + 4
    assert sum(p.numel() for p in pathway.shared_parameters()) == 2 * expert
    assert sum(p.numel() for p in pathway.parameters_of("a")) == 3 * expert + 5 * (4 + 1)
    ran: list[int] = []
    for module in pathway.modules():
        if isinstance(module, Experts):
            module.register_forward_hook(lambda module, *_: ran.append(module.count))
    pathway(torch.randn(1, 4), ("b",))
    assert sorted(ran) == [2, 3]
    with pytest.raises(InputError, match="cgc: shared 0, expected at least 1"):
        CGC(shared=0)
