"""Share: what insertions, routed factors and banks of experts cost, beside peft and beside the plain way.

    python -m benchmarks.share [--quick]

regenerates ``benchmarks/results/share.json`` and ``share.md``. Everything runs in one process on one thread, what is
compared in turn, again and again; a ratio is the median over the rounds.
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
from benchmarks._machine import machine
from benchmarks._page import Row, page
from benchmarks._timing import Run, ratio
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


def minilm(dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import AutoModel

    model: nn.Module = AutoModel.from_pretrained(text_encoder_folder("minilm"), add_pooling_layer=False).eval()
    return model.requires_grad_(False).to(dtype)


def tokens(examples: int, each: int = TOKENS) -> Tensor:
    return torch.randint(1000, 20_000, (examples, each), generator=torch.Generator().manual_seed(0))


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


def lora_and_peft(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """LoRA in a base in ``dtype``, ours and peft's; the factors of both are in float32."""
    import peft

    ours = minilm(dtype)
    insert(ours, LoRA(rank=8), TASKS[:1], LINEAR)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"])
    return ours, peft.get_peft_model(minilm(dtype), config).eval()


def lora_beside_peft(rounds: int) -> dict[str, Any]:
    ids = tokens(16)
    ours, theirs = lora_and_peft()
    return ratio(partial(trained, ours, ids, TASKS[0]), partial(trained, theirs, ids), rounds)


def memory_beside_peft(dtype: torch.dtype) -> dict[str, float]:
    """What the forward pass keeps for LoRA, beside what the base keeps where its first layer is trained, in megabytes."""
    ids = tokens(16)
    ours, theirs = lora_and_peft(dtype)
    plain = minilm(dtype)
    plain.embeddings.word_embeddings.weight.requires_grad_(True)  # type: ignore[union-attr, operator]
    base = saved_bytes(lambda: loss_of(plain, ids), plain)
    with task_scope(TASKS[0]):
        our_bytes = saved_bytes(lambda: loss_of(ours, ids), ours)
    found = {"ours": our_bytes - base, "theirs": saved_bytes(lambda: loss_of(theirs, ids), theirs) - base}
    return {"ratio": found["ours"] / found["theirs"], **{name: size / 1e6 for name, size in found.items()}}


def mixed_batch(rounds: int, length: int = TOKENS) -> dict[str, Any]:
    """Four texts of each of eight tasks; beside the loop also one LoRA for the whole batch, which is the limit."""
    each = 4
    ids, index = tokens(8 * each, length), torch.arange(8).repeat(each)
    model = minilm()
    insert(model, LoRA(rank=8), TASKS, LINEAR)

    def by_task() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        for i, task in enumerate(TASKS):
            with task_scope(task):
                loss_of(model, ids[index == i]).backward()

    limit = ratio(partial(trained, model, ids, TASKS[0]), by_task, rounds)
    return {**ratio(partial(trained, model, ids, index=index), by_task, rounds), "limit": limit["ratio"]}


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


def one_task_of_five(rounds: int) -> dict[str, Any]:
    """An M3ViT of five tasks on images of 128 x 128: one task served against all, in time and in FLOPs."""
    import polytask as pt
    from polytask.papers.m3vit import M3ViT

    names = TASKS[:5]
    encoder = M3ViT(names, size=(128, 128), patch=8, embedding=192, depth=6, heads=6, experts=8, k=2, ratio=2.0)
    tasks = [pt.Task.segmentation(name, classes=5) for name in names]
    model = pt.Model(encoder, tasks, width=192).eval()
    images = torch.randn(4, 3, 128, 128)

    def serve(tasks: list[str]) -> None:
        with torch.no_grad():
            model(images, tasks=tasks)

    found = ratio(partial(serve, names[:1]), partial(serve, names), rounds)
    return {**found, "flops": flops(partial(serve, names[:1])) / flops(partial(serve, names))}


def slimmed(rounds: int) -> dict[str, Any]:
    """A convolutional encoder and three decoders, extracted at half their width, against the whole."""
    import polytask as pt
    from polytask.share.slimmable import Configuration, Supernet

    def stage(before: int, after: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.ReLU()]

    encoder = nn.Sequential(*stage(3, 64, 2), *stage(64, 128, 2), *stage(128, 256, 1), nn.Conv2d(256, 128, 1))
    tasks = [pt.Task.segmentation(name, classes=5) for name in TASKS[:3]]
    decoders = {task.name: nn.Sequential(*stage(128, 128, 1), nn.Conv2d(128, 5, 1)) for task in tasks}
    whole = Supernet(encoder, decoders, tasks).eval()
    halves = whole.extract(Configuration(0.5, dict.fromkeys(TASKS[:3], 0.5)))
    wholes = whole.extract(whole.largest)
    images = torch.randn(4, 3, 128, 128)

    def run(network: Any) -> None:
        with torch.no_grad():
            features = network[0](images)
            for decoder in network[1].values():
                decoder(features)

    found = ratio(partial(run, halves), partial(run, wholes), rounds)
    return {**found, "flops": flops(partial(run, halves)) / flops(partial(run, wholes))}


# The page


def rows(results: dict[str, Any]) -> list[Row]:
    def below(what: str, found: float, bar: float) -> Row:
        return what, f"{found:.3f}", f"{bar:g}", found <= bar

    def within(what: str, found: dict[str, float], factor: float) -> Row:
        ratios = f"{found['ratio']:.3f} of {found['flops']:.3f}"
        return what, ratios, f"{factor:g} x", found["ratio"] <= factor * found["flops"]

    bank_, switch, insertion = results["bank"], results["switching"], results["inserting"]
    times = f"{switch['ours_us']:.1f} µs; {switch['theirs_us']:,.0f} µs"
    seconds = f"{insertion['ours']:.2f} s; {insertion['theirs']:.1f} s"
    return [
        below("LoRA beside peft: time of a training pass", results["lora"]["ratio"], 1.0),
        below("LoRA beside peft: memory kept for the backward pass", results["memory"]["ratio"], 0.9),
        below("the same on a base in bfloat16", results["memory bfloat16"]["ratio"], 0.9),
        below("eight LoRAs in one batch beside a loop over tasks", results["mixed"]["ratio"], 0.6),
        ("one LoRA for that whole batch beside the loop: the limit", f"{results['mixed']['limit']:.3f}", "", None),
        below("eight LoRAs in one batch of short texts, 8 tokens", results["mixed short"]["ratio"], 0.6),
        ("one LoRA for that whole batch: the limit", f"{results['mixed short']['limit']:.3f}", "", None),
        below("SMoRA, 8 of 64 ranks, beside LoRA of rank 64", results["smora"]["ratio"], 1.15),
        below("bank of experts beside a loop with masks", bank_["masks"]["ratio"], 0.5),
        ("bank of experts beside a loop that picks tokens by masks", f"{bank_['indexed']['ratio']:.3f}", "", None),
        below("bank of experts beside all experts for all tokens", bank_["dense"]["ratio"], 0.4),
        within("one task of an M3ViT of five beside all: time, of FLOPs", results["one task"], 1.15),
        within("network at half its width beside the whole: time, of FLOPs", results["slimmed"], 1.2),
        ("switching among 32 tasks; peft's set_adapter", times, "50 µs", switch["ours_us"] < 50),
        ("what 1,000 switches leave allocated", f"{switch['kept_bytes']:,} bytes", "nothing", switch["kept_bytes"] < 1000),
        ("inserting LoRA for 32 tasks into MiniLM; peft", seconds, "0.5 s", insertion["ours"] < 0.5),
    ]


def written(about: dict[str, Any], results: dict[str, Any]) -> str:
    words = [
        "Regenerated by `python -m benchmarks.share`. Times are of one process on one thread, what is compared in turn;",
        "ratios are medians over the rounds. MiniLM has 6 layers of width 384; LoRA is in all of its linear layers. A pass",
        f"is forward and backward, {TOKENS} tokens a text. Memory is what the forward pass keeps for LoRA alone.",
    ]
    return page("Share: what it costs", about, words, rows(results), "ours / the other's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing is written")
    rounds = 2 if parser.parse_args().quick else 15
    torch.set_num_threads(1)
    torch.manual_seed(0)
    about = machine()
    parts: dict[str, Run] = {
        "lora": partial(lora_beside_peft, rounds),
        "memory": partial(memory_beside_peft, torch.float32),
        "memory bfloat16": partial(memory_beside_peft, torch.bfloat16),
        "mixed": partial(mixed_batch, rounds),
        "mixed short": partial(mixed_batch, rounds, 8),
        "smora": partial(smora_beside_lora, rounds),
        "bank": partial(bank, rounds),
        "switching": switching,
        "inserting": partial(inserting, min(rounds, 5)),
        "one task": partial(one_task_of_five, rounds),
        "slimmed": partial(slimmed, rounds),
    }
    results = {}
    for name, run in parts.items():
        results[name] = run()
        print(name, results[name], flush=True)
    print(written(about, results))
    if rounds > 2:
        write_json(RESULTS / "share.json", {"machine": about, **results})
        write_text(RESULTS / "share.md", written(about, results))


if __name__ == "__main__":
    main()
