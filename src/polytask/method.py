"""A method by name: a way of sharing and a balancer, as in ``mmoe+uncertainty``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from polytask.balance import Balancer, balancers
from polytask.errors import InputError, suggest
from polytask.share import Insertable, Sharing, insertables, sharings


@dataclass(frozen=True)
class Method:
    """What distinguishes one way of training a model of many tasks from another.

    Args:
        sharing, balance: names in `polytask.share.sharings` or `polytask.share.insertables`, and
            `polytask.balance.balancers`.

    >>> Method.parse("uncertainty")
    Method(sharing='hard', balance='uncertainty')
    >>> Method.parse("mmoe+equal").name
    'mmoe+equal'
    """

    sharing: str = "hard"
    balance: str = "equal"

    @staticmethod
    def parse(text: str) -> Method:
        """The method that ``text`` names: ``SHARING``, ``BALANCER`` or ``SHARING+BALANCER``, in either order.

        A part left out is hard sharing, or equal weights. An unknown name is an error that suggests the nearest.
        """
        chosen: dict[str, str] = {}
        known = [*sharings, *insertables, *balancers, "all", "all-sharing", "all-balancers"]
        for part in text.split("+"):
            role = "sharing" if part in sharings or part in insertables else "balance" if part in balancers else None
            if role is None:
                raise InputError(f"unknown method {part!r} in {text!r}: {suggest(part, known)}")
            if role in chosen:
                raise InputError(f"method {text!r} names two of one kind: {chosen[role]!r} and {part!r}")
            chosen[role] = part
        return Method(**chosen)

    @property
    def name(self) -> str:
        """``SHARING+BALANCER``."""
        return f"{self.sharing}+{self.balance}"

    def build_sharing(self) -> Sharing | Insertable:
        """The way of sharing with the defaults of its paper."""
        return way_of_sharing(self.sharing)()

    def build_balancer(self) -> Balancer:
        """The balancer with the defaults of its paper."""
        return balancers[self.balance]()


def way_of_sharing(name: str) -> Callable[..., Sharing | Insertable]:
    """What makes the way of sharing ``name`` of its settings, be it between encoder and heads or inserted."""
    return insertables[name] if name in insertables else sharings[name]


def parse_methods(texts: Iterable[str], pretrained: bool = False) -> list[Method]:
    """The methods that ``texts`` name, each once.

    ``all-sharing`` and ``all-balancers`` stand for every way of sharing with equal weights, and every balancer with hard
    sharing; ``all`` for every pair of the two.

    Args:
        texts: names of methods or groups.
        pretrained: whether the encoder has a part that was trained before: then the ways that adapt one are among all.
    """
    ways = [*sharings, *(insertables if pretrained else ())]
    groups = {
        "all": [Method(s, b) for s in ways for b in balancers],
        "all-sharing": [Method(s, "equal") for s in ways],
        "all-balancers": [Method("hard", b) for b in balancers],
    }
    methods = [method for text in texts for method in groups.get(text) or [Method.parse(text)]]
    return list(dict.fromkeys(methods))
