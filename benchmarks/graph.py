"""Graphs: NCN's links scored and learned, beside the same by torch_geometric and torch's sparse products; and the memory of
a stream of events, beside one that keeps its messages in a dictionary; NAT and PRES beside TGN.

    python -m benchmarks.graph [--quick] [--large]

regenerates ``benchmarks/results/graph.json`` and ``graph.md``. What is compared runs in turn, again and again; a ratio is
the median over the rounds. The epochs on Cora and on UCI need POLYTASK_DATA. ``--large`` trains NCN and OFA on a generated
graph of 10^6 nodes and 10^7 edges besides, by sampling.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks._machine import machine, reset_peak, resident
from benchmarks._page import Row, page
from benchmarks._timing import ratio, seconds
from torch import Tensor

import polytask as pt
from polytask.data.graph import GraphData, LinkBatches, Links, LinkSplit, load_graph, split_links
from polytask.data.temporal import EventBatches, Events, load_events
from polytask.events import EventModel, tgn
from polytask.files import write_json, write_text
from polytask.nn.graph import CSR, LastMessages, TemporalMemory, adjacency, alternating
from polytask.papers.nat import NAT
from polytask.papers.ncn import NCN, Encoder, LinkPredictor, preset
from polytask.papers.ofa import OFA, Prompt, PromptNetwork, TextGraph, TextTask, prompted, with_negations
from polytask.papers.pres import pres

RESULTS = Path(__file__).parent / "results"
WIDTH = 64


def generated(nodes: int, edges: int) -> Tensor:
    """Distinct edges, half of them between nodes that are near in a ring, so that there are common neighbours."""
    key = torch.Generator().manual_seed(0)
    start = torch.randint(nodes, (edges * 21 // 20,), generator=key)
    near = (start + torch.randint(1, 31, start.shape, generator=key)) % nodes
    far = torch.randint(nodes, start.shape, generator=key)
    ends = torch.stack([start, torch.where(torch.rand(start.shape, generator=key) < 0.5, near, far)], 1)
    ends = ends[ends[:, 0] != ends[:, 1]].sort(1).values
    keys = torch.unique(ends[:, 0] * nodes + ends[:, 1])
    keys = keys[torch.randperm(len(keys), generator=key)[:edges]]
    return torch.stack([keys // nodes, keys % nodes], 1)


# Scoring


def scoring(rounds: int, nodes: int, count: int) -> dict[str, Any]:
    """Links scored by a pass over the graph and the sums over common neighbours: half are edges, half are random."""
    edges = generated(nodes, 10 * nodes)
    graph = adjacency(edges, nodes)
    key = torch.Generator().manual_seed(1)
    some = edges[torch.randperm(len(edges), generator=key)[: count // 2]]
    pairs = torch.cat([some, torch.randint(nodes, (count - len(some), 2), generator=key)])
    torch.manual_seed(0)
    x = torch.randn(nodes, WIDTH)
    model = NCN(Encoder(WIDTH, hidden=WIDTH), LinkPredictor(WIDTH), graph, x).eval()
    theirs = {"torch_geometric": by_torch_geometric(model, graph, x, pairs), "scipy": by_scipy(model, graph, x, pairs)}
    ours = partial(model.score, pairs, chunk=count)
    for other in theirs.values():
        torch.testing.assert_close(ours(), other(), atol=1e-3, rtol=1e-3)
    found = {name: ratio(ours, other, rounds) for name, other in theirs.items()}
    return {**found, "edges": len(edges), "common": _share(graph, pairs)}


def _share(graph: CSR, pairs: Tensor) -> float:
    from polytask.nn.graph import common_neighbours

    return float((common_neighbours(graph, pairs).degrees > 0).float().mean())


def by_torch_geometric(model: NCN, graph: CSR, x: Tensor, pairs: Tensor) -> Callable[[], Tensor]:
    """The normalisation and the product by torch_geometric, rows and their overlap by torch's sparse tensors."""
    from torch_geometric.nn.conv.gcn_conv import gcn_norm
    from torch_geometric.utils import spmm, to_torch_coo_tensor, to_torch_csr_tensor

    edge_index = torch.stack([graph.rows, graph.columns])
    index, weight = gcn_norm(edge_index, None, len(x))
    propagation = to_torch_csr_tensor(index, weight, size=len(x))
    pattern = to_torch_coo_tensor(edge_index, size=len(x)).coalesce()

    @torch.no_grad()
    def run() -> Tensor:
        h = spmm(propagation, model.encoder.first(x))
        first, second = pattern.index_select(0, pairs[:, 0]), pattern.index_select(0, pairs[:, 1])
        overlap = (first.coalesce() * second.coalesce()).coalesce()
        return _predicted(model, h, torch.sparse.mm(overlap, model.predictor.transformed(h)), pairs)

    return run


def by_scipy(model: NCN, graph: CSR, x: Tensor, pairs: Tensor) -> Callable[[], Tensor]:
    """All sparse products by scipy."""
    import scipy.sparse as sp

    ones = np.ones(len(graph.columns), np.float32)
    matrix = sp.csr_matrix((ones, graph.columns.numpy(), graph.offsets.numpy()), shape=graph.shape)
    loops = matrix + sp.identity(len(x), np.float32, "csr")
    scale = sp.diags((1 / np.sqrt(np.asarray(loops.sum(1))[:, 0])).astype(np.float32))
    propagation = (scale @ loops @ scale).tocsr()
    i, j = pairs.T.numpy()

    @torch.no_grad()
    def run() -> Tensor:
        h = torch.from_numpy(propagation @ model.encoder.first(x).numpy())
        total = matrix[i].multiply(matrix[j]).tocsr() @ model.predictor.transformed(h).numpy()
        return _predicted(model, h, torch.from_numpy(total), pairs)

    return run


def _predicted(model: NCN, h: Tensor, total: Tensor, pairs: Tensor) -> Tensor:
    part = model.predictor
    z = part.f_ij(h[pairs[:, 0]] * h[pairs[:, 1]]) + part.beta * part.f_cn(total)
    logits: Tensor = part.f_out(z)[:, 0]
    return logits


# Training


def cora(rounds: int) -> dict[str, float] | None:
    """Seconds of an epoch of NCN, and of NCNC, on Cora with the paper's settings, evaluation left out."""
    path = Path(os.environ.get("POLYTASK_DATA", "")) / "planetoid" / "cora.npz"
    if not path.exists():
        return None
    data = load_graph(path)
    split, settings, found = split_links(data, seed=0), preset("cora"), {}
    for name, depth in (("ncn", 0), ("ncnc", 1)):
        torch.manual_seed(0)
        model = settings.build(split.graph, data.features, depth=depth)
        batches = LinkBatches(split, settings.batch_size)
        fitted = pt.fit(model, batches, epochs=rounds, lr=settings.lr, optimizer=torch.optim.Adam, schedule="constant")
        found[name] = fitted.seconds / rounds
    return found


def large(steps: int, nodes: int = 1_000_000, edges: int = 10_000_000) -> dict[str, float]:
    """Seconds a step and a scored link, and peak memory, of NCN that draws 10 neighbours of each node it needs."""
    ends = generated(nodes, edges)
    graph = adjacency(ends, nodes)
    model = NCN(Encoder(WIDTH, hidden=WIDTH), LinkPredictor(WIDTH), graph, torch.randn(nodes, WIDTH), fanouts=[10])
    held = resident("RssAnon") / 2**30
    links = Links(ends[:1000], torch.randint(nodes, (1000, 2)))
    split = LinkSplit(graph, ends[: 1024 * steps], links, links)
    fitted = pt.fit(model, LinkBatches(split, 1024), steps=steps, lr=1e-3)
    model.eval()
    took = seconds(lambda: model.score(ends[:20_000], chunk=2048))
    return {
        "step": fitted.seconds / steps,
        "links a second": 20_000 / took,
        "held GiB": held,
        "peak GiB": resident("VmHWM") / 2**30,
    }


def large_prompts(steps: int, nodes: int = 1_000_000, edges: int = 10_000_000) -> dict[str, float]:
    """Seconds to make OFA's prompt graphs of 64 links, with two hops of at most 100 nodes, and to train on them; memory
    before, with the graph, and at most since."""
    ends, key = generated(nodes, edges), torch.Generator().manual_seed(0)

    def embed(texts: Sequence[str]) -> Tensor:
        return torch.randn(len(texts), 384, generator=key)

    words = [f"word {k}" for k in range(10_000)]
    kinds = torch.randint(len(words), (nodes,), generator=key)
    graph = TextGraph.build(GraphData("generated", nodes, ends), words, node_of=kinds, embed=embed)
    pairs = torch.cat([ends[:10_000], torch.randint(nodes, (10_000, 2), generator=key)])
    labels = with_negations(torch.arange(len(pairs)) < 10_000)
    del ends
    linked = Prompt.of("say whether two words are linked", ["they are", "they are not"], embed)
    task = TextTask("links", graph, pairs, labels, linked, hops=2, limit=100)
    model = OFA(PromptNetwork(384, WIDTH, 3), [task])
    batches = torch.randint(len(pairs), (steps, 64), generator=key)
    held = resident("VmRSS") / 2**30
    reset_peak()
    sizes = [len(prompted(task, batch).nodes) for batch in batches]
    made = seconds(lambda: [prompted(task, batch) for batch in batches]) / steps
    fitted = pt.fit(model, {"links": task.examples()}, steps=steps, batch_size=64)
    return {
        "made": made,
        "step": fitted.seconds / steps,
        "nodes": sum(sizes) / steps,
        "held GiB": held,
        "peak GiB": resident("VmHWM") / 2**30,
    }


# Streams


def memory(rounds: int, count: int, nodes: int = 10_000, width: int = 100, batch: int = 200) -> dict[str, Any]:
    """Seconds for the messages of ``count`` events, each batch's last to a node taken and the new ones stored: alone, and
    with the GRU and the states around it. The dictionary is as TGN's authors have it: a list for each node."""
    key = torch.Generator().manual_seed(0)
    source, destination = torch.randint(nodes, (2, count), generator=key)
    time = torch.arange(count).double()
    starts = range(0, count, batch)
    values = torch.randn(2 * batch, width, generator=key)
    torch.manual_seed(0)
    module, found = TemporalMemory(nodes, width), {}

    def tensors() -> Tensor:
        store = LastMessages(nodes, width)
        for k in starts:
            ends = alternating(source[k : k + batch], destination[k : k + batch])
            some = torch.unique(ends)
            some = some[store.waiting[some]]
            _, _ = store.message[some], store.time[some]
            store.clear(some)
            store.put(ends, values, time[k : k + batch].repeat_interleave(2))
        return store.message

    def dictionary() -> Tensor:
        store = _Dictionary(nodes, width)
        for k in starts:
            ends = alternating(source[k : k + batch], destination[k : k + batch])
            store.take(torch.unique(ends))
            store.put(ends, values, time[k : k + batch].repeat_interleave(2))
        return store.last()

    torch.testing.assert_close(tensors(), dictionary())
    found["store"] = ratio(tensors, dictionary, rounds)

    @torch.no_grad()
    def ours() -> Tensor:
        module.reset()
        for k in starts:
            part = source[k : k + batch], destination[k : k + batch]
            module.advance(module(torch.unique(torch.cat(part))), *part, time[k : k + batch])
        return module.table.column("state")

    @torch.no_grad()
    def theirs() -> Tensor:
        store, states, last = _Dictionary(nodes, 3 * width), torch.zeros(nodes, width), torch.zeros(nodes).double()
        for k in starts:
            part = source[k : k + batch], destination[k : k + batch]
            ends, others = alternating(*part), alternating(*part[::-1])
            some, messages, times = store.take(torch.unique(ends))
            if len(some):
                states[some], last[some] = module.cell(messages, states[some]), times
            moments = time[k : k + batch].repeat_interleave(2)
            store.put(ends, torch.cat([states[ends], states[others], module.encode(moments - last[ends])], 1), moments)
        return states

    torch.testing.assert_close(ours(), theirs())
    return {**found, "memory": ratio(ours, theirs, rounds)}


class _Dictionary:
    """Messages of each node in a list."""

    def __init__(self, nodes: int, width: int) -> None:
        self.messages: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.nodes, self.width = nodes, width

    def put(self, nodes: Tensor, messages: Tensor, time: Tensor) -> None:
        for k, node in enumerate(nodes.tolist()):
            self.messages[node].append((messages[k], time[k]))

    def take(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        some = [node for node in nodes.tolist() if self.messages[node]]
        if not some:
            return nodes[:0], torch.empty(0, self.width), torch.empty(0)
        messages, time = zip(*(self.messages[node][-1] for node in some), strict=True)
        for node in some:
            self.messages[node] = []
        return torch.tensor(some), torch.stack(messages), torch.stack(time)

    def last(self) -> Tensor:
        found = torch.zeros(self.nodes, self.width)
        for node, messages in self.messages.items():
            if messages:
                found[node] = messages[-1][0]
        return found


def streams(rounds: int, count: int, batch: int = 200) -> dict[str, Any] | None:
    """A training epoch over the first ``count`` messages of UCI: of NAT beside torch_geometric's TGN as in its example, of
    NAT with 10 times the nodes beside itself, and of PRES beside polytask's own TGN."""
    path = Path(os.environ.get("POLYTASK_DATA", "")) / "temporal_graphs" / "uci_collegemsg.npz"
    if not path.exists():
        return None
    events = load_events(path)[:count]

    def epoch(model: EventModel, size: int = batch) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)

        def run() -> None:
            for each in EventBatches(events, size).epoch(0):
                optimizer.zero_grad()
                torch.stack(list(model.losses(each).values())).sum().backward()
                optimizer.step()

        return run

    nodes, width = events.nodes, 100
    torch.manual_seed(0)
    nat = epoch(NAT(nodes, width))
    found: dict[str, Any] = {
        "events": count,
        "nat": ratio(nat, tgn_of_torch_geometric(events, batch, width), rounds),
        "nodes": ratio(epoch(NAT(10 * nodes, width)), nat, rounds),
    }
    for embedding in ("identity", "attention"):
        plain = epoch(tgn(TemporalMemory(nodes, width), embedding))
        found[f"pres {embedding}"] = ratio(epoch(pres(nodes, width, embedding)), plain, rounds)
        found[f"pres {embedding} x 4"] = ratio(epoch(pres(nodes, width, embedding), 4 * batch), plain, rounds)
    return found


def tgn_of_torch_geometric(events: Events, batch: int, width: int) -> Callable[[], None]:
    """An epoch of TGN made of torch_geometric's classes, as in its example: attention to the last 10 neighbours."""
    from torch_geometric.nn import TGNMemory, TransformerConv
    from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator, LastNeighborLoader

    nodes, count = events.nodes, len(events)
    time, messages = events.time.long() - int(events.time[0]), torch.zeros(count, 1)
    kept = TGNMemory(nodes, 1, width, width, IdentityMessage(1, width, width), LastAggregator())
    neighbours, place = LastNeighborLoader(nodes, size=10), torch.empty(nodes, dtype=torch.int64)
    attention = TransformerConv(width, width // 2, heads=2, dropout=0.1, edge_dim=1 + width)
    decoder = torch.nn.Sequential(torch.nn.Linear(2 * width, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    optimizer = torch.optim.Adam([p for part in (kept, attention, decoder) for p in part.parameters()], 1e-3)
    measure = torch.nn.BCEWithLogitsLoss()

    def run() -> None:
        kept.reset_state()
        neighbours.reset_state()
        for start, each in zip(range(0, count, batch), EventBatches(events, batch).epoch(0), strict=True):
            optimizer.zero_grad()
            ends = each.source, each.destination, each.negative
            wanted, edges, numbers = neighbours(torch.cat(ends).unique())
            place[wanted] = torch.arange(len(wanted))
            z, last = kept(wanted)
            since = kept.time_enc((last[edges[0]] - time[numbers]).to(z.dtype))
            z = attention(z, edges, torch.cat([since, messages[numbers]], 1))
            source, destination, negative = (z[place[end]] for end in ends)
            true, false = decoder(torch.cat([source, destination], 1)), decoder(torch.cat([source, negative], 1))
            loss = measure(true, torch.ones_like(true)) + measure(false, torch.zeros_like(false))
            part = slice(start, start + len(each))
            kept.update_state(each.source, each.destination, time[part], messages[part])
            neighbours.insert(each.source, each.destination)
            loss.backward()
            optimizer.step()
            kept.detach()

    return run


# The page


def rows(results: dict[str, Any]) -> list[Row]:
    torch_ratio, scipy_ratio = (results["scoring"][name]["ratio"] for name in ("torch_geometric", "scipy"))
    found: list[Row] = [
        ("NCN scores links beside torch_geometric and torch.sparse", f"{torch_ratio:.2f} x", "0.7 x", torch_ratio <= 0.7),
        ("the same beside scipy's sparse products", f"{scipy_ratio:.2f} x", "", None),
    ]
    if results["cora"]:
        found.append(("NCN epoch on Cora", f"{results['cora']['ncn']:.2f} s", "3 s", results["cora"]["ncn"] < 3))
        found.append(("NCNC epoch on Cora", f"{results['cora']['ncnc']:.2f} s", "", None))
    if results.get("memory"):
        store, whole = (results["memory"][name]["ratio"] for name in ("store", "memory"))
        found.append(("last messages of 10^5 events beside a dictionary's", f"{store:.2f} x", "0.1 x", store <= 0.1))
        found.append(("the same with the GRU of the memory, width 100", f"{whole:.2f} x", "", None))
    if results.get("streams"):
        each = results["streams"]
        faster, nodes = 1 / each["nat"]["ratio"], each["nodes"]["ratio"]
        found.append(
            ("NAT's events a second beside torch_geometric's TGN, batch 200", f"{faster:.1f} x", "2 x", faster >= 2)
        )
        found.append(("NAT with 10 x the nodes, same events", f"{nodes:.2f} x", "1.2 x", nodes <= 1.2))
        for embedding in ("identity", "attention"):
            same, larger = each[f"pres {embedding}"]["ratio"], each[f"pres {embedding} x 4"]["ratio"]
            found.append((f"PRES beside TGN at equal batch, {embedding}", f"{same:.2f} x", "1.15 x", same <= 1.15))
            found.append((f"PRES with 4 x the batch beside TGN, {embedding}", f"{larger:.2f} x", "0.4 x", larger <= 0.4))
    if results.get("large"):
        each = results["large"]
        words = f"{each['step']:.2f} s; {each['links a second']:,.0f} links scored a second; peak {each['peak GiB']:.1f} GiB"
        found.append(("NCN step of 1,024 links on 10^6 nodes, 10^7 edges, by sampling", words, "", None))
    if results.get("prompts"):
        each = results["prompts"]
        words = f"{each['made']:.2f} s, {each['step']:.2f} s with the step; peak {each['peak GiB']:.1f} GiB, "
        words += f"{each['held GiB']:.1f} of them the graph"
        found.append((f"OFA prompt graphs of 64 links there, {each['nodes']:,.0f} nodes of 2 hops", words, "", None))
    return found


def written(about: dict[str, Any], results: dict[str, Any]) -> str:
    share = results["scoring"]["common"]
    words = [
        "Regenerated by `python -m benchmarks.graph --large`. What is compared runs in turn; ratios are medians over the",
        f"rounds. Scored are 100,000 links of a graph of 200,000 nodes of mean degree 20, of which {share:.0%} have common",
        "neighbours, with one propagation, width 64. Epochs have the paper's settings, width 256. Peak memory includes",
        "making the graph.",
    ]
    return page("Graphs: links scored and learned", about, words, rows(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds on a smaller graph, nothing is written")
    parser.add_argument("--large", action="store_true", help="a graph of 10^6 nodes and 10^7 edges too")
    chosen = parser.parse_args()
    quick = chosen.quick
    warnings.filterwarnings("ignore", message="Sparse")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    about = machine()
    results: dict[str, Any] = {"scoring": scoring(*((2, 20_000, 10_000) if quick else (7, 200_000, 100_000)))}
    results |= {"memory": memory(*((2, 10_000) if quick else (5, 100_000)))}
    results |= {"streams": streams(*((2, 2_000) if quick else (7, 10_000)))}
    results |= {"cora": cora(2 if quick else 10), "large": large(20) if chosen.large else None}
    results |= {"prompts": large_prompts(10) if chosen.large else None}
    print(json.dumps(results, indent=1))
    print(written(about, results))
    if not quick:
        write_json(RESULTS / "graph.json", {"machine": about, **results})
        write_text(RESULTS / "graph.md", written(about, results))


if __name__ == "__main__":
    main()
