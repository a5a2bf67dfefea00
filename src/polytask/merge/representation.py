"""How alike models represent the same inputs: linear CKA, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polytask.data.examples import Inputs
from polytask.errors import InputError, suggest
from polytask.nn.modes import evaluating

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Similarity:
    """What `representations` finds.

    Attributes:
        names: of the models.
        cka: for each module the similarity of each pair of models, ``(K, K)``, float64, from 0 to 1; NaN where a model
            represents all inputs alike.
    """

    names: tuple[str, ...]
    cka: dict[str, Tensor]

    def to_json(self) -> dict[str, Any]:
        """The findings as plain values, ``None`` for NaN."""
        plain = {
            module: [[None if math.isnan(x) else x for x in row] for row in c.tolist()] for module, c in self.cka.items()
        }
        return {"models": list(self.names), "cka": plain}

    def plot(self, against: str | None = None) -> Figure:
        """From module to module how alike the models are to one of them, by default the last."""
        from polytask.merge._pictures import similarity_figure

        chosen = self.names[-1] if against is None else against
        if chosen not in self.names:
            raise InputError(f"no model {chosen!r}: {suggest(chosen, self.names)}")
        return similarity_figure(self, chosen)


def linear_cka(x: Tensor, y: Tensor, debiased: bool = False) -> float:
    """Centred kernel alignment with linear kernels, of two representations of the same ``n`` inputs.

    ``HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))`` with ``HSIC(X, Y) = |X^T Y|_F^2`` of columns less their means: 1 where one
    is a rotation and a scaling of the other. Kornblith, Norouzi, Lee and Hinton, *Similarity of neural network
    representations revisited*, ICML 2019. With few inputs and many features it is above 0 for representations that have
    nothing to do with each other.

    Args:
        x, y: ``(n, features)``, of which the numbers of features may differ.
        debiased: estimate HSIC without bias (Song et al., *Feature selection via dependence maximization*, JMLR 2012), which
            mends that, takes 4 inputs or more, and may fall below 0.

    Returns:
        NaN where a representation is the same for all inputs.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise InputError(f"representations of shape {list(x.shape)} and {list(y.shape)}: expected (n, features) for one n")
    if len(x) < 2 + 2 * debiased:
        raise InputError(f"{len(x)} inputs, expected at least {2 + 2 * debiased}")
    x, y = (values.double() - values.double().mean(0) for values in (x, y))
    between, own, other = _hsic(x, y, debiased), _hsic(x, x, debiased), _hsic(y, y, debiased)
    return between / math.sqrt(own * other) if own > 0 and other > 0 else math.nan


def representations(
    models: Mapping[str, nn.Module],
    inputs: Iterable[Inputs],
    modules: Sequence[str],
    *,
    tokens: bool = False,
    debiased: bool = False,
) -> Similarity:
    """Compare what modules give in several models, as in the experts and in what they were merged into.

    Args:
        models: by name; they are run in evaluation mode, and are not changed.
        inputs: batches of what the models take, a tensor or named tensors that are passed as keywords.
        modules: names, as ``named_modules`` has them. Of a module's output, or the first tensor in it, examples come
            first; a module that is called several times gives its last output.
        tokens: whether each vector of the last dimension is a row by itself, and not each example, flattened.
        debiased: see `linear_cka`.

    Raises:
        InputError: a model lacks a module, or does not call it.
    """
    batches = list(inputs)
    if not batches:
        raise InputError("no inputs, expected at least one batch")
    seen = {name: _outputs(name, model, batches, modules, tokens) for name, model in models.items()}
    cka = {}
    for module in modules:
        rows = [seen[name][module] for name in models]
        cka[module] = torch.tensor([[linear_cka(x, y, debiased) for y in rows] for x in rows], dtype=torch.float64)
    return Similarity(tuple(models), cka)


def _outputs(
    name: str, model: nn.Module, batches: Sequence[Inputs], modules: Sequence[str], tokens: bool
) -> dict[str, Tensor]:
    """What each module gives, ``(n, features)``."""
    known = dict(model.named_modules())
    last: dict[str, Tensor] = {}
    found: dict[str, list[Tensor]] = {module: [] for module in modules}

    def watch(module: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_: nn.Module, given: Any, output: Any) -> None:
            last[module] = _rows(output, tokens)

        return look

    hooks = []
    try:
        for module in modules:
            if module not in known:
                raise InputError(f"model {name!r}: no module {module!r}: {suggest(module, known)}")
            hooks.append(known[module].register_forward_hook(watch(module)))
        with evaluating(model), torch.no_grad():
            for batch in batches:
                last.clear()
                model(batch) if isinstance(batch, Tensor) else model(**batch)
                for module in modules:
                    if module not in last:
                        raise InputError(f"model {name!r}: module {module!r} is not called")
                    found[module].append(last[module])
    finally:
        for hook in hooks:
            hook.remove()
    return {module: torch.cat(rows) for module, rows in found.items()}


def _rows(output: Any, tokens: bool) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    values: Tensor = output.detach()
    return values.reshape(-1, values.shape[-1]) if tokens else values.flatten(1)


def _hsic(x: Tensor, y: Tensor, debiased: bool) -> float:
    """Up to a factor, of centred ``x`` and ``y``."""
    n, wide = len(x), x.shape[1] * y.shape[1]
    products = ((x @ x.T) * (y @ y.T)).sum() if n * n < wide else (x.T @ y).square().sum()
    if not debiased:
        return float(products)
    # Centred, every row of a Gram matrix adds up to 0; without its diagonal, to minus that.
    one, other = x.square().sum(1), y.square().sum(1)
    return float(products - one @ other * n / (n - 2) + one.sum() * other.sum() / ((n - 1) * (n - 2)))
