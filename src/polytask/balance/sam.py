"""Sharpness-aware minimisation of the sum of the losses, around any balancer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from polytask.balance._balancer import Balancer, Evaluate, balancers
from polytask.balance._looks import Around, Looks
from polytask.balance.engine.passes import Backward
from polytask.balance.perturb import frozen_statistics, moved, radius


@balancers.add("sam")
class SAM(Around):
    """The inner balancer's step, as seen from the worst point for the sum of the losses in a ball around the weights.

    ``e = rho v / |v|`` with ``v`` the gradient of ``sum_k L_k`` on all parameters; the inner balancer works on the losses
    at ``w + e``, and its step is taken from ``w``. Foret, Kleiner, Mobahi and Neyshabur, *Sharpness-aware minimization
    for efficiently improving generalization*, ICLR 2021, Eq. 2 and 3, for a single loss. `FlatRegions` moves the weights
    for each task by itself.

    A step takes one forward and one backward pass more than the inner balancer's. Random layers draw the same numbers in
    both looks, running statistics of batch norms move in the first only, and the weights end with the bits that they had.
    Where the gradient vanishes or is not finite, the inner balancer works at ``w``.

    Args:
        inner: a balancer, or its name.
        rho: the radius; by default 0.05 (plain) or 0.5 (adaptive), as in the papers. 0 leaves just ``inner``.
        adaptive: in units of each weight: ``e = rho w^2 v / ||w| v|`` (Kwon, Kim, Park and Choi, *ASAM: adaptive
            sharpness-aware minimization for scale-invariant learning of deep neural networks*, ICML 2021).
    """

    def __init__(self, inner: str | Balancer = "equal", rho: float | None = None, adaptive: bool = False) -> None:
        super().__init__(balancers[inner]() if isinstance(inner, str) else inner)
        self.rho = radius("rho", (0.5 if adaptive else 0.05) if rho is None else rho)
        self.adaptive = adaptive

    def step(
        self,
        batches: Sequence[Evaluate],
        shared: Sequence[nn.Parameter],
        backward: Backward,
        processes: ProcessGroup | None = None,
    ) -> None:
        if self.rho == 0:
            self.inner.step(batches, shared, backward, processes)
            return
        looks = Looks(batches, shared, backward, processes, hold="sum")
        steps = looks.steps(looks.sum(), looks.names, (self.rho, self.rho), joint=True, adaptive=self.adaptive)

        def again(i: int) -> Mapping[str, Tensor]:
            looks.random[i].restore()
            return batches[i]()

        directions, factors = [d for d, _ in steps.values()], [f for _, f in steps.values()]
        with moved(list(steps), directions, factors), frozen_statistics():
            self.inner.step([partial(again, i) for i in range(len(batches))], shared, backward, processes)


@balancers.add("asam")
def asam() -> SAM:
    """`SAM` in units of each weight, with the radius of its paper: ``SAM(adaptive=True)``."""
    return SAM(adaptive=True)
