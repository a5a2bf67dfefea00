"""A bank of experts, small networks of one shape, of which each input uses the few that a gate chooses."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import wraps
from typing import Literal, ParamSpec, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError, suggest
from polytask.share.gate import Gates

P = ParamSpec("P")

Execution: TypeAlias = Literal["auto", "dense", "sorted", "expert-major"]
"""How a bank is evaluated; the results are equal."""

WORTH_SORTING = 2**19
"""Multiplications to be saved for each expert before sorting takes less time than all experts for all inputs: measured on a
processor, forward and backward, with widths of 32 to 384 and 4 to 16 experts."""


def _apart(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """What `torch.compiler.disable` does, which takes seconds to import, on the first call from compiled code."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        output: Tensor = torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return output

    run._torchdynamo_disable = True  # type: ignore[attr-defined]
    return run


class ExpertBank(nn.Module):
    """``y = sum_e g_e (f(x A_e^T + a_e) B_e + b_e)`` over the experts ``e`` that an input's gates choose.

    The weights of all experts are stacked: ``hidden (E, hidden, width)``, ``hidden_bias (E, hidden)``, ``output (E, hidden,
    width)`` and ``output_bias (E, width)``. So an expert that no input chose takes part in the backward pass too, with a
    gradient of 0, and several processes agree on what has one. Each begins as a pair of linear layers.

    How it is evaluated, with equal results:

    - ``"dense"``: all experts for all inputs, two large products; the gates scale the hidden layer between them. Its shapes
      do not depend on the gates, so it compiles whole.
    - ``"sorted"``: inputs sorted by expert, two products for each expert on its own, and the results added up where they
      belong.
    - ``"expert-major"``: one expert after the other on its queue of inputs, added to the output at once: at any time the
      weights and activations of one expert are in use. Liang et al., *M3ViT*, NeurIPS 2022.
    - ``"auto"``: ``"dense"`` where sorting would not be worth it, for few inputs, small experts, or when most are chosen,
      and in exported code; else ``"sorted"``.

    All but ``"dense"`` have shapes that depend on the gates: ``torch.compile`` leaves them as they are and compiles what is
    before and after (with ``fullgraph=True`` it refuses, and ``"dense"`` is to be chosen).

    Products are in the dtype of the inputs, or of autocast; inputs are ``(..., width)``, and so is what comes out.

    Args:
        width: of inputs and outputs.
        hidden: the width of each expert's hidden layer.
        experts: ``E``.
        activation: ``f``, GELU by default.
        execution: ``"auto"`` by default; may be changed at any time.

    >>> from polytask.share import Gate
    >>> bank, gate = ExpertBank(6, 12, experts=4), Gate(nn.Linear(6, 4, bias=False), experts=4, k=2)
    >>> x = torch.randn(3, 5, 6)
    >>> bank(x, gate(x)).shape
    torch.Size([3, 5, 6])
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        execution: Execution = "auto",
    ) -> None:
        super().__init__()
        if min(width, hidden, experts) < 1:
            raise InputError(f"expert bank: {experts} experts from {width} to {hidden}, expected at least 1 each")
        if execution not in get_args(Execution):
            raise InputError(f"expert bank: unknown execution {execution!r}: {suggest(execution, get_args(Execution))}")
        self.activation, self.execution = activation, execution
        self.hidden = nn.Parameter(torch.empty(experts, hidden, width))
        self.hidden_bias = nn.Parameter(torch.empty(experts, hidden))
        self.output = nn.Parameter(torch.empty(experts, hidden, width))
        self.output_bias = nn.Parameter(torch.empty(experts, width))
        for parameters, inputs in (((self.hidden, self.hidden_bias), width), ((self.output, self.output_bias), hidden)):
            for parameter in parameters:
                nn.init.uniform_(parameter, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        """The experts' mixture for each of the inputs ``(..., width)``, whose gates are ``(..., k)``."""
        if gates.values.shape[:-1] != x.shape[:-1]:
            raise InputError(f"gates of shape {tuple(gates.values.shape)} for inputs of shape {tuple(x.shape)}")
        rows, gates = x.flatten(0, -2), Gates(*(part.flatten(0, -2) for part in gates))
        ways = {"dense": self._dense, "sorted": self._sorted, "expert-major": self._expert_major}
        mixed: Tensor = ways[self._execution(rows, gates)](rows, gates)
        return mixed.view_as(x)

    def _execution(self, rows: Tensor, gates: Gates) -> Execution:
        if self.execution != "auto":
            return self.execution
        experts, hidden, width = self.hidden.shape
        saved = len(rows) * hidden * width * (experts - gates.values.shape[1])
        return "sorted" if saved > WORTH_SORTING * experts and not torch.compiler.is_exporting() else "dense"

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden, hidden_bias, output, output_bias = (
            weight.to(x.dtype) for weight in (self.hidden, self.hidden_bias, self.output, self.output_bias)
        )
        return hidden, hidden_bias, output, output_bias

    def _dense(self, x: Tensor, gates: Gates) -> Tensor:
        hidden, hidden_bias, output, output_bias = self._weights(x)
        inner = self.activation(F.linear(x, hidden.flatten(0, 1), hidden_bias.flatten()))
        weights = gates.dense(len(hidden)).to(inner.dtype)
        weighed = (inner.view(len(x), *hidden.shape[:2]) * weights[:, :, None]).view_as(inner)
        mixed: Tensor = weighed @ output.flatten(0, 1) + weights @ output_bias
        return mixed

    @_apart
    def _sorted(self, x: Tensor, gates: Gates) -> Tensor:
        chosen = gates.experts.flatten()
        order = chosen.argsort(stable=True)
        row = order // gates.experts.shape[1]
        queues = torch.split(x.index_select(0, row), chosen.bincount(minlength=len(self.hidden)).tolist())
        outputs = torch.cat([self._expert(queue, *own) for queue, *own in zip(queues, *self._unbound(x), strict=True)])
        values = gates.values.flatten().index_select(0, order).to(outputs.dtype)
        return outputs.new_zeros(x.shape).index_add(0, row, outputs * values[:, None])

    @_apart
    def _expert_major(self, x: Tensor, gates: Gates) -> Tensor:
        mixed = None
        for expert, own in enumerate(zip(*self._unbound(x), strict=True)):
            row, place = (gates.experts == expert).nonzero(as_tuple=True)
            output = self._expert(x.index_select(0, row), *own)
            output = output * gates.values[row, place].to(output.dtype)[:, None]
            mixed = output.new_zeros(x.shape) if mixed is None else mixed
            mixed = mixed.index_add_(0, row, output)
        assert mixed is not None
        return mixed

    def _unbound(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        return [weight.unbind(0) for weight in self._weights(x)]

    def _expert(self, x: Tensor, hidden: Tensor, hidden_bias: Tensor, output: Tensor, output_bias: Tensor) -> Tensor:
        return torch.addmm(output_bias, self.activation(F.linear(x, hidden, hidden_bias)), output)
