"""Share: what insertions, routed factors and banks of experts cost, beside peft and beside the plain way.

    python -m benchmarks.share [--quick]

regenerates ``benchmarks/results/share.json`` and ``share.md``. Everything runs in one process on one thread, what is compared
in turn, again and again; a ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks._machine import machine, sentence
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from polytask import task_scope
from polytask.files import write_json, write_text
from polytask.nn.sentence import text_encoder_folder
from polytask.share import ExpertBank, LoRA, SMoRA, insert, top_gates

RESULTS = Path(__file__).parent / "results"
TASKS = [f"task{i}" for i in range(8)]
LINEAR = ["*.query", "*.key", "*.value", "*.dense"]
TOKENS = 32

Run = Callable[[], Any]


def minilm() -> nn.Module:
    from transformers import AutoModel

    model: nn.Module = AutoModel.from_pretrained(text_encoder_folder("minilm"), add_pooling_layer=False).eval()
    return model.requires_grad_(False)


def tokens(examples: int) -> Tensor:
    return torch.randint(1000, 20_000, (examples, TOKENS), generator=torch.Generator().manual_seed(0))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=ids)[0].square().mean()
    return loss


def trained(model: nn.Module, ids: Tensor, task: str | None = None, index: Tensor | None = None) -> None:
    """Forward and backward."""
    for parameter in model.parameters():
        parameter.grad = None
    if task is None and index is None:
        loss_of(model, ids).backward()
        return
    with task_scope(task if index is None else TASKS, index):  # type: ignore[arg-type]
        loss_of(model, ids).backward()


def ratio(ours: Run, theirs: Run, rounds: int) -> dict[str, float]:
    """Seconds of each, the median, and the median over rounds of ours divided by theirs."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds + 1):
        for name, run in (("ours", ours), ("theirs", theirs)):
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    kept = {name: found[1:] for name, found in times.items()}  # the first round warms up
    ratios = [a / b for a, b in zip(kept["ours"], kept["theirs"], strict=True)]
    return {"ratio": statistics.median(ratios), **{name: statistics.median(found) for name, found in kept.items()}}


def saved_bytes(run: Callable[[], Tensor], model: nn.Module) -> int:
    """What a forward pass keeps for the backward pass, beside the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()  # its graph keeps what is saved alive, so that no address is counted twice
    del result
    return sum(found.values())


# LoRA


def lora_beside_peft(rounds: int) -> dict[str, Any]:
    import peft

    ids = tokens(16)
    ours = minilm()
    insert(ours, LoRA(rank=8), TASKS[:1], LINEAR)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"])
    theirs = peft.get_peft_model(minilm(), config).eval()
    found = ratio(partial(trained, ours, ids, TASKS[0]), partial(trained, theirs, ids), rounds)
    plain = minilm()
    first = plain.embeddings.word_embeddings.weight.requires_grad_(True)  # so that the base keeps what it must
    base = saved_bytes(lambda: loss_of(plain, ids), plain)
    first.requires_grad_(False)
    with task_scope(TASKS[0]):
        our_bytes = saved_bytes(lambda: loss_of(ours, ids), ours)
    their_bytes = saved_bytes(lambda: loss_of(theirs, ids), theirs)
    extra = {"base_mb": base / 1e6, "ours_mb": our_bytes / 1e6, "theirs_mb": their_bytes / 1e6}
    return {**found, **extra, "memory_ratio": our_bytes / their_bytes}


def mixed_batch(rounds: int) -> dict[str, Any]:
    each = 4
    ids, index = tokens(8 * each), torch.arange(8).repeat(each)
    model = minilm()
    insert(model, LoRA(rank=8), TASKS, LINEAR)

    def by_task() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        for i, task in enumerate(TASKS):
            with task_scope(task):
                loss_of(model, ids[index == i]).backward()

    return ratio(partial(trained, model, ids, index=index), by_task, rounds)


def smora_beside_lora(rounds: int) -> dict[str, Any]:
    ids = tokens(16)
    ours, theirs = minilm(), minilm()
    insert(ours, SMoRA(rank=64, active=8), TASKS[:1], LINEAR)
    insert(theirs, LoRA(rank=64), TASKS[:1], LINEAR)
    return ratio(partial(trained, ours.train(), ids, TASKS[0]), partial(trained, theirs.train(), ids, TASKS[0]), rounds)


# Experts


def bank(rounds: int) -> dict[str, Any]:
    """Top-2 of 8 experts with a hidden layer of 4 x 384, for 4,096 tokens; forward and backward."""
    made = ExpertBank(384, 1536, 8)
    x = torch.randn(4096, 384, requires_grad=True)
    gates = top_gates(torch.randn(4096, 8), 2)
    dense_gates = gates.dense(8)

    def run(execution: Any) -> None:
        made.execution = execution
        made(x, gates).square().mean().backward()

    def expert(e: int, rows: Tensor) -> Tensor:
        inner = made.activation(nn.functional.linear(rows, made.hidden[e], made.hidden_bias[e]))
        return torch.addmm(made.output_bias[e], inner, made.output[e])

    def masked() -> None:
        """Every expert for every token, and 0 for tokens that did not choose it."""
        sum(dense_gates[:, e : e + 1] * expert(e, x) for e in range(8)).square().mean().backward()  # type: ignore[union-attr]

    def indexed() -> None:
        """A loop that picks each expert's tokens by a mask and puts the results back by it."""
        y = torch.zeros_like(x)
        for e in range(8):
            chosen = dense_gates[:, e] > 0
            y[chosen] = y[chosen] + dense_gates[chosen, e : e + 1] * expert(e, x[chosen])
        y.square().mean().backward()

    ours = partial(run, "auto")
    return {
        "masks": ratio(ours, masked, rounds),
        "indexed": ratio(ours, indexed, rounds),
        "dense": ratio(ours, partial(run, "dense"), rounds),
    }


# Switching and inserting


def switching() -> dict[str, Any]:
    """Microseconds to another task with 32 adapters inserted, and bytes allocated; peft's ``set_adapter`` beside."""
    import peft

    names = [f"task{i}" for i in range(32)]
    model = minilm()
    insert(model, LoRA(rank=8), names, LINEAR)

    def switch(count: int) -> None:
        for i in range(count):
            with task_scope(names[i % 32]):
                pass

    switch(100)
    started = time.perf_counter()
    switch(10_000)
    ours = (time.perf_counter() - started) / 10_000
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    switch(1000)
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    config = peft.LoraConfig(r=8, target_modules=["query", "key", "value", "dense"])
    theirs = peft.get_peft_model(minilm(), config, adapter_name=names[0])
    for name in names[1:]:
        theirs.add_adapter(name, config)
    started = time.perf_counter()
    for i in range(20):
        theirs.set_adapter(names[i])
    return {"ours_us": 1e6 * ours, "theirs_us": 1e6 * (time.perf_counter() - started) / 20, "kept_bytes": kept}


def inserting(rounds: int) -> dict[str, Any]:
    """Seconds to insert LoRA for 32 tasks into all linear layers of MiniLM; peft's ``add_adapter`` beside."""
    import peft

    names = [f"task{i}" for i in range(32)]
    config = peft.LoraConfig(r=8, target_modules=["query", "key", "value", "dense"])
    ours, theirs = [], []
    for _ in range(rounds):
        model = minilm()
        started = time.perf_counter()
        insert(model, LoRA(rank=8), names, LINEAR)
        ours.append(time.perf_counter() - started)
        base = minilm()
        started = time.perf_counter()
        adapted = peft.get_peft_model(base, config, adapter_name=names[0])
        for name in names[1:]:
            adapted.add_adapter(name, config)
        theirs.append(time.perf_counter() - started)
    return {"ours": statistics.median(ours), "theirs": statistics.median(theirs)}


def flops(run: Run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
