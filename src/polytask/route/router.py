"""The loss-table router: a text encoder, a predicted loss for each expert, and a choice by loss and costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch as safetensors
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polytask import __version__
from polytask.errors import InputError, suggest
from polytask.files import replacing
from polytask.route.choice import order
from polytask.route.encoders import TextEncoder, text_encoders
from polytask.route.endpoint import Endpoint
from polytask.route.expert import Expert
from polytask.route.goals import FLAGS, Wish, parse_flags, weighted_costs
from polytask.route.regression import Error, HiddenLayer, fit_hidden, fit_rows, predict_rows

FORMAT = 1


@dataclass(frozen=True)
class Decision:
    """Where one prompt goes.

    Attributes:
        expert: the name of the chosen one.
        text: the prompt without its flags.
        predicted: the loss predicted for each expert, by name.
        order: the experts' names, best first by loss and weighed costs.
        abstained: whether the router was in doubt, so that ``expert`` is the one to back off to.
    """

    expert: str
    text: str
    predicted: dict[str, float]
    order: tuple[str, ...]
    abstained: bool = False


@dataclass(frozen=True, eq=False)
class Router:
    """Predicts from a prompt alone what each expert would lose, and chooses ``argmin_i l_i + sum_j lambda_j C_ij``.

    Hari and Thomson, *Tryage: real-time, intelligent routing of user prompts to large language models*, 2023: there a small
    BERT is trained to predict the losses (see `polytask.papers.tryage`); here the encoder stays as it is, and what is learnt
    is a row of coefficients for each expert, with a hidden layer before it if wished. So an expert is added by fitting its
    own row.

    Make one with `Router.fit`, read one with `Router.load`.

    Attributes:
        encoder: texts to features ``(N, width)``.
        experts: what prompts are sent to.
        rows: ``(1 + members, K, D + 1)``: the fit, then the members of the ensemble that tells its uncertainty.
        hidden: the hidden layer, if there is one.
        settings: how rows are fitted: ``l2``, ``error``, ``delta``, ``seed``.

    >>> from polytask.route import Expert, NGramFeatures
    >>> texts = ["def f(x): return x", "to be, or not to be"] * 10
    >>> experts = [Expert("code", costs={"size": 1e6}), Expert("verse", costs={"size": 1e7})]
    >>> router = Router.fit(NGramFeatures(), experts, texts, [[1.0, 3.0], [3.0, 1.0]] * 10)
    >>> router.route("def g(y): return y + 1").expert, router.route("not to be").expert
    ('code', 'verse')
    >>> router.route("not to be", {"size": 100.0}).expert, router.route("not to be [Flag: small model 100]").expert
    ('code', 'code')
    """

    encoder: TextEncoder
    experts: tuple[Expert, ...]
    rows: Tensor
    hidden: HiddenLayer | None
    settings: Mapping[str, Any]

    @classmethod
    def fit(
        cls,
        encoder: TextEncoder,
        experts: Sequence[Expert],
        texts: Sequence[str],
        losses: ArrayLike,
        *,
        l2: float = 0.1,
        error: Error = "squared",
        delta: float = 0.5,
        hidden: int = 0,
        members: int = 0,
        seed: int = 0,
    ) -> Router:
        """Learn from a loss table.

        Args:
            encoder: fitted here where it has a method ``fit``.
            experts: one for each column of ``losses``.
            texts: the prompts, without flags. No expert may have been trained on them: its loss on them says nothing.
            losses: ``(N, K)``, NaN where not known, as `polytask.route.LossTable.losses` gives them.
            l2, error, delta: see `polytask.route.fit_rows`.
            hidden: the width of a hidden layer; none by default.
            members: how many more rows are fitted to prompts of random weight, the Bayesian bootstrap (Rubin, 1981), to
                tell how sure the predictions are; 0 by default, 10 or so are enough.
            seed: of the hidden layer and the members.
        """
        table = np.asarray(losses, dtype=float)
        if table.shape != (len(texts), len(experts)):
            raise InputError(f"losses of shape {table.shape}, expected ({len(texts)}, {len(experts)}): prompts, experts")
        _check_names(experts)
        if hasattr(encoder, "fit"):
            encoder.fit(texts)
        features, targets = encoder(texts), torch.from_numpy(table)
        layer = fit_hidden(features, targets, hidden, error=error, delta=delta, seed=seed) if hidden else None
        settings = {"l2": l2, "error": error, "delta": delta, "seed": seed}
        empty = cls(encoder, (), torch.empty(1 + members, 0, 0), layer, settings)
        rows = empty._fitted(empty._features(features), targets)
        return replace(empty, experts=tuple(experts), rows=rows)

    def add(self, expert: Expert, texts: Sequence[str], losses: ArrayLike) -> Router:
        """A router with one more expert, whose row alone is fitted: the others' predictions do not change.

        Args:
            expert: the new one.
            texts: prompts, those of the table or fewer.
            losses: the new expert's, ``(N,)``.
        """
        _check_names([*self.experts, expert])
        column = torch.from_numpy(np.array(losses, dtype=float))[:, None]
        rows = self._fitted(self._features(self.encoder(texts)), column)
        return replace(self, experts=(*self.experts, expert), rows=torch.cat([self.rows, rows], 1))

    def _fitted(self, features: Tensor, losses: Tensor) -> Tensor:
        how = {name: self.settings[name] for name in ("l2", "error", "delta")}
        generator = torch.Generator().manual_seed(self.settings["seed"])
        weights = [None, *(torch.empty(len(features)).exponential_(generator=generator) for _ in self.rows[1:])]
        return torch.stack([fit_rows(features, losses, **how, weights=weight) for weight in weights])

    def _features(self, features: Tensor) -> Tensor:
        return features if self.hidden is None else self.hidden(features)

    def features(self, texts: Sequence[str]) -> Tensor:
        """What the rows are multiplied with, ``(N, D)``."""
        return self._features(self.encoder(texts))

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """The losses to expect, ``(N, K)`` float64."""
        predicted: np.ndarray = predict_rows(self.features(texts), self.rows[0]).double().numpy()
        return predicted

    def route(
        self,
        prompt: str,
        weights: Mapping[str, float] | None = None,
        *,
        flags: Mapping[str, Mapping[str, float]] | None = FLAGS,
        doubt: float = 0.0,
        back_off: str | None = None,
    ) -> Decision:
        """Where one prompt goes, see `route_each`."""
        return self.route_each([prompt], weights, flags=flags, doubt=doubt, back_off=back_off)[0]

    def route_each(
        self,
        prompts: Sequence[str],
        weights: Mapping[str, float] | None = None,
        *,
        flags: Mapping[str, Mapping[str, float]] | None = FLAGS,
        doubt: float = 0.0,
        back_off: str | None = None,
    ) -> list[Decision]:
        """Where each prompt goes.

        Args:
            prompts: with flags or without.
            weights: of the normalised costs, by name (`polytask.route.normalised_costs`); flags are added.
            flags: what flags stand for; ``None`` leaves them in the prompts.
            doubt: abstain where the runner-up is behind by less than so many standard deviations of that difference over
                the ensemble; 0, the default, never does.
            back_off: where prompts go then; by default to the expert of the largest ``size``, or of the lowest mean
                predicted loss where sizes are not stated.
        """
        wishes = [parse_flags(prompt, flags) if flags is not None else Wish(prompt, {}) for prompt in prompts]
        if doubt and len(self.rows) < 3:
            raise InputError(f"doubt {doubt}: this router has no ensemble, expected one fitted with members of at least 2")
        names = [expert.name for expert in self.experts]
        features = self.features([text for text, _ in wishes])
        every = predict_rows(features, self.rows if doubt else self.rows[:1]).double().numpy()
        decisions = []
        asked = dict(weights or {})
        for i, (text, wished) in enumerate(wishes):
            totals = {cost: asked.get(cost, 0.0) + wished.get(cost, 0.0) for cost in {**asked, **wished}}
            costs = weighted_costs(self.experts, totals)
            ranks = order(every[0, i : i + 1], costs)[0]
            first, abstained = int(ranks[0]), False
            if doubt and len(ranks) > 1:
                gaps = every[:, i, ranks[1]] - every[:, i, ranks[0]]
                lead = gaps[0] + costs[ranks[1]] - costs[ranks[0]]
                abstained = bool(lead < doubt * gaps[1:].std(ddof=1))
            if abstained:
                first = self._place(back_off) if back_off is not None else self._safest(every[0])
            predicted = dict(zip(names, every[0, i].tolist(), strict=True))
            decisions.append(Decision(names[first], text, predicted, tuple(names[k] for k in ranks), abstained))
        return decisions

    def _place(self, name: str) -> int:
        names = [expert.name for expert in self.experts]
        if name not in names:
            raise InputError(f"unknown expert {name!r}: {suggest(name, names)}")
        return names.index(name)

    def _safest(self, predicted: np.ndarray) -> int:
        sizes = [expert.costs.get("size") for expert in self.experts]
        known = [size for size in sizes if size is not None]
        return int(np.argmax(known)) if len(known) == len(sizes) else int(predicted.mean(0).argmin())

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all: tensors, and a description in JSON in its header.

        A frozen sentence encoder is named, not contained; experts keep their names, costs, descriptions and endpoints.
        """
        named = next((name for name, kind in text_encoders.items() if type(self.encoder) is kind), None)
        encoder: Any = self.encoder
        about = {
            "format": FORMAT,
            "polytask": __version__,
            "encoder": {"name": named, "settings": encoder.settings() if named else {}},
            "experts": [
                {
                    "name": expert.name,
                    "costs": dict(expert.costs),
                    "description": expert.description,
                    "endpoint": asdict(expert.endpoint) if expert.endpoint else None,
                }
                for expert in self.experts
            ],
            "settings": dict(self.settings),
        }
        tensors = {"rows": self.rows.contiguous()}
        tensors |= {f"encoder.{name}": tensor.contiguous() for name, tensor in (encoder.tensors() if named else {}).items()}
        if self.hidden is not None:
            tensors |= {f"hidden.{name}": tensor.contiguous() for name, tensor in self.hidden.state_dict().items()}
        with replacing(path) as temporary:
            try:
                safetensors.save_file(tensors, temporary, {"router": json.dumps(about)})
            except SafetensorError as error:
                raise InputError(f"{path}: cannot be written ({error})") from error
            temporary.chmod(0o644)

    @classmethod
    def load(cls, path: Path | str, encoder: TextEncoder | None = None) -> Router:
        """Read what `save` wrote.

        Args:
            path: the file.
            encoder: the encoder, where it is one of your own.

        Raises `InputError` for a file that is missing, damaged, of another kind or of a newer format.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("router", "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as a router ({error})") from error
        if not isinstance(about.get("format"), int):
            raise InputError(f"{path}: is no router, expected a file that Router.save wrote")
        if about["format"] > FORMAT:
            raise InputError(f"{path}: format {about['format']}, expected up to {FORMAT}: upgrade polytask")
        try:
            if encoder is None:
                if about["encoder"]["name"] is None:
                    raise InputError(f"{path}: its encoder is one of your own: pass it as encoder=")
                named: Any = text_encoders[about["encoder"]["name"]](**about["encoder"]["settings"])
                named.load_tensors(_below("encoder.", tensors))
                encoder = named
            hidden = None
            if state := _below("hidden.", tensors):
                width, inputs = state["linear.weight"].shape
                hidden = HiddenLayer(inputs, width).requires_grad_(False).eval()
                hidden.load_state_dict(state)
            experts = tuple(
                Expert(**{**values, "endpoint": Endpoint(**values["endpoint"]) if values["endpoint"] else None})
                for values in about["experts"]
            )
            return cls(encoder, experts, tensors["rows"], hidden, about["settings"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{path}: does not describe a router ({error!r})") from error


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_names(experts: Sequence[Expert]) -> None:
    names = [expert.name for expert in experts]
    if not names or len(set(names)) < len(names):
        raise InputError(f"experts {names}, expected at least one, and no name twice")
