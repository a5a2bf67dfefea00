"""Merge: polytask beside mergekit, in CPU time and anonymous memory.

    python -m benchmarks.merge [--mergekit /path/to/mergekit-yaml] [--work FOLDER] [--quick]

regenerates ``benchmarks/results/merge.json`` and ``merge.md``. A base and 8 fine-tunes of Llama's shape, about 220 M
parameters in bfloat16, 3 shards each, are written to the work folder and merged by command line, each in a process of its
own on one thread. mergekit is measured where its command is found. The limit is the time to read all inputs once and write
the output. A step of the learner of coefficients is taken beside a plain one of the same network, and a pass over the task
vectors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks._machine import machine, sentence
from benchmarks._timing import seconds
from safetensors.torch import load_file, save_file
from torch import nn

from polytask.files import write_json, write_text
from polytask.merge import Coefficients, entropy

RESULTS = Path(__file__).parent / "results"
FULL = {"layers": 18, "width": 768, "inner": 2688, "words": 32_000}
LARGE = {"layers": 76, "width": 768, "inner": 2688, "words": 128_000}
QUICK = {"layers": 2, "width": 64, "inner": 128, "words": 500}
MODELS = 8

RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    # name: polytask's recipe, mergekit's, and the most that polytask may take of mergekit's CPU time
    "ties": (
        {"rule": "ties", "parameters": {"density": 0.2, "scope": "tensor"}},
        {"merge_method": "ties", "parameters": {"density": 0.2, "weight": 1.0}},
        0.10,
    ),
    "breadcrumbs": (
        {"rule": "breadcrumbs", "parameters": {"density": 0.1, "gamma": 0.01}},
        {"merge_method": "breadcrumbs", "parameters": {"density": 0.1, "gamma": 0.01, "weight": 1.0}},
        0.10,
    ),
    "dare": (
        {"rule": "dare", "parameters": {"density": 0.1}},
        {"merge_method": "dare_linear", "parameters": {"density": 0.1, "weight": 1.0}},
        0.33,
    ),
    "task arithmetic": (
        {"rule": "task_arithmetic"},
        {"merge_method": "task_arithmetic", "parameters": {"weight": 0.3}},
        0.33,
    ),
    "average": ({"rule": "average"}, {"merge_method": "linear", "parameters": {"weight": 1.0}}, 0.33),
    "slerp": ({"rule": "slerp"}, {"merge_method": "slerp", "parameters": {"t": 0.5}}, 0.33),
}
OWN = {
    "ties, whole model": {"rule": "ties", "parameters": {"density": 0.2}},
    "pcb": {"rule": "pcb"},
    "consensus": {"rule": "consensus"},
}
"""Recipes that mergekit has not; the whole pipelines of PCB and Consensus may take `PIPELINE` times what TIES takes."""

PIPELINE, STEP = 2.5, 1.3
"""And a step of AdaMerging, less a pass over the task vectors, so many times what one of the plain network takes."""


def shapes(layers: int, width: int, inner: int, words: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, width), "lm_head.weight": (words, width)}
    for i in range(layers):
        place = f"model.layers.{i}."
        found |= {f"{place}self_attn.{n}_proj.weight": (width, width) for n in "qkvo"}
        found |= {f"{place}mlp.{n}_proj.weight": (inner, width) for n in ("gate", "up")}
        found[f"{place}mlp.down_proj.weight"] = (width, inner)
        found |= {f"{place}{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
    return found | {"model.norm.weight": (width,)}


def make(folder: Path, size: dict[str, int]) -> None:
    """Write the base and its fine-tunes."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size["width"],
        "intermediate_size": size["inner"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["width"] // 64,
        "vocab_size": size["words"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    names = list(shapes(**size).items())
    for k in range(MODELS + 1):
        path = folder / ("base" if k == 0 else f"m{k}")
        path.mkdir(parents=True)
        placed = {}
        for i in range(3):
            part = names[i * len(names) // 3 : (i + 1) * len(names) // 3]
            file = f"model-{i + 1:05}-of-00003.safetensors"
            save_file({name: weight(name, shape, k) for name, shape in part}, path / file, metadata={"format": "pt"})
            placed |= {name: file for name, _ in part}
        write_json(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": placed})
        write_json(path / "config.json", config)


def weight(name: str, shape: tuple[int, ...], k: int) -> torch.Tensor:
    def drawn(seed: str) -> torch.Tensor:
        digest = hashlib.sha256(seed.encode()).digest()
        return torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7])))

    base = drawn(name) * 0.02
    return (base if k == 0 else base + drawn(f"{name}{k}") * 1e-3).bfloat16()


def measure(command: list[str]) -> dict[str, float]:
    """CPU and wall seconds of a process, and the most anonymous memory that it has, in MB."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    before, started = os.times(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True)
    peak = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.02):
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    stop.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {errors[-2000:]}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu": cpu, "wall": time.perf_counter() - started, "memory": peak / 1e3}


READ = """
import sys, pathlib
buffer = bytearray(2**22)
with open(sys.argv[1] + "/copy", "wb") as out:
    for k, folder in enumerate(sys.argv[2:]):
        for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
            with open(path, "rb", buffering=0) as file:
                while n := file.readinto(buffer):
                    if k == 0: out.write(memoryview(buffer)[:n])
"""


def run(work: Path, mergekit: str | None, recipes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    models = [f"m{k}" for k in range(1, MODELS + 1)]
    rows = []
    limit = measure([sys.executable, "-c", READ, str(work), *(str(work / name) for name in ["base", *models])])
    polytask = [sys.executable, "-m", "polytask.cli.main", "merge"]
    for name, own in recipes.items():
        row: dict[str, Any] = {"rule": name, "polytask": merged(polytask, work, name, own, models)}
        if name in RECIPES and mergekit is not None:
            _, theirs, bar = RECIPES[name]
            row["mergekit"] = merged([mergekit], work, name, theirs | {"dtype": "float32", "out_dtype": "bfloat16"}, models)
            row["ratio"], row["bar"] = row["polytask"]["cpu"] / row["mergekit"]["cpu"], bar
        rows.append(row)
        print(f"  {name}: {row['polytask']['cpu']:.1f} s of CPU, ratio {row.get('ratio', float('nan')):.3f}", flush=True)
    return {"rows": rows, "limit": limit}


def merged(command: list[str], work: Path, name: str, recipe: dict[str, Any], models: list[str]) -> dict[str, float]:
    own = "rule" in recipe
    chosen = models[:2] if name == "slerp" else models
    recipe = recipe | {"models": [{"model": str(work / model)} for model in chosen]}
    if name == "slerp" and not own:
        recipe["base_model"] = str(work / models[0])
    elif name not in ("slerp", "average"):
        recipe["base_model"] = str(work / "base")
    write_json(work / "recipe.yaml", recipe)  # JSON is YAML
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    more = ["--out", str(out)] if own else [str(out), "--no-copy-tokenizer"]
    found = measure([*command, str(work / "recipe.yaml"), *more])
    shutil.rmtree(out)
    return found


def learner(folder: Path, rounds: int = 9) -> dict[str, float]:
    """Seconds of AdaMerging's step, of forward and backward through the network, and of a pass over the task vectors."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(384, 12, 1536, dropout=0.0, batch_first=True)
    network = nn.Sequential(nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), nn.Linear(384, 10)).eval()
    vectors = []
    for k in range(MODELS):
        vector = {name: (1e-3 * torch.randn_like(p.detach())).bfloat16() for name, p in network.named_parameters()}
        save_file(vector, folder / f"vector{k}.safetensors")
        vectors.append(load_file(folder / f"vector{k}.safetensors"))
    coefficients = Coefficients(network, vectors)
    x = torch.randn(16, 64, 384)
    slopes = {name: torch.ones_like(p) for name, p in network.named_parameters()}

    def plain() -> None:
        network.zero_grad()
        entropy(network(x)).backward()

    def a_pass() -> None:
        coefficients.accumulate(slopes)

    def step() -> None:
        coefficients.backward({"one": x}, lambda merged, task, batch: entropy(merged(batch)))

    times = [(seconds(step), seconds(plain), seconds(a_pass)) for _ in range(rounds + 1)][1:]  # the first round warms up
    names = ("step", "plain", "pass")
    found = {name: statistics.median(column) for name, column in zip(names, zip(*times, strict=True), strict=True)}
    return found | {"ratio": statistics.median((step - a_pass) / plain for step, plain, a_pass in times)}


def page(result: dict[str, Any]) -> str:
    lines = [
        "# Merge beside mergekit",
        "",
        f"{sentence(result['machine'])}. One run of {result['minutes']:.0f} minutes.",
        "",
        f"Llama's shape, {result['parameters'] / 1e6:.0f} M parameters, bfloat16, base and {MODELS} fine-tunes, 3 shards "
        "each; arithmetic in float32. Each in a process of its own, imports included, one thread. Memory is the peak of "
        "anonymous "
        "memory. slerp merges two models. mergekit rescales DARE's rows to their former sums of magnitudes, polytask by "
        "1 / density. The limit is reading all inputs and writing as much as one of them: "
        f"{result['limit']['cpu']:.1f} s of CPU, {result['limit']['wall']:.1f} s.",
        "",
        "| rule | polytask, CPU s | mergekit, CPU s | ratio | bar | met | polytask, s | mergekit, s | polytask, MB "
        "| mergekit, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        own, theirs = row["polytask"], row.get("mergekit")
        cells = [row["rule"], f"{own['cpu']:.1f}"]
        if theirs is None:
            cells += ["", "", "", "", f"{own['wall']:.1f}", "", f"{own['memory']:.0f}", ""]
        else:
            met = "yes" if row["ratio"] <= row["bar"] else "**no**"
            cells += [f"{theirs['cpu']:.1f}", f"{row['ratio']:.3f}", f"{row['bar']:g}", met, f"{own['wall']:.1f}"]
            cells += [f"{theirs['wall']:.1f}", f"{own['memory']:.0f}", f"{theirs['memory']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    ties = {row["rule"]: row["polytask"]["cpu"] for row in result["rows"]}["ties, whole model"]
    for row in result["rows"]:
        if row["rule"] in ("pcb", "consensus"):
            ratio = row["polytask"]["cpu"] / ties
            verdict = "met" if ratio <= PIPELINE else "**not met**"
            lines += [
                "",
                f"{row['rule']} takes {ratio:.2f} of what TIES of the whole model takes; bar {PIPELINE:g}, {verdict}.",
            ]
    found = result["learner"]
    lines += [
        "",
        f"A step of AdaMerging on a transformer of 11 M parameters with {MODELS} task vectors in bfloat16, 16 sequences of "
        f"64: {found['step']:.2f} s; forward and backward through the network alone {found['plain']:.2f} s, a pass over the "
        f"task vectors {found['pass']:.2f} s. The step less a pass takes {found['ratio']:.2f} of the former; bar {STEP:g}, "
        f"{'met' if found['ratio'] <= STEP else '**not met**'}.",
    ]
    if "large" in result:
        lines += ["", "A model 4 times as large:", "", "| rule | polytask, CPU s | polytask, MB |", "|---|---|---|"]
        lines += [
            f"| {row['rule']} | {row['polytask']['cpu']:.1f} | {row['polytask']['memory']:.0f} |" for row in result["large"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", default=shutil.which("mergekit-yaml"), help="mergekit's command, if not in PATH")
    parser.add_argument("--work", type=Path, help="where to write some 5 GB; by default a temporary folder")
    parser.add_argument("--large", action="store_true", help="also a model 4 times as large, by polytask alone: 16 GB more")
    parser.add_argument("--quick", action="store_true", help="a tiny model; nothing is written")
    options = parser.parse_args()
    started = time.perf_counter()
    size = QUICK if options.quick else FULL
    parameters = sum(torch.Size(shape).numel() for shape in shapes(**size).values())
    result: dict[str, Any] = {"machine": machine(), "parameters": parameters}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        make(Path(folder), size)
        torch.set_num_threads(1)
        result["learner"] = learner(Path(folder))
        result |= run(Path(folder), options.mergekit, {name: own for name, (own, _, _) in RECIPES.items()} | OWN)
    if options.large:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            make(Path(folder), LARGE)
            result["large"] = run(
                Path(folder), None, {"ties": RECIPES["ties"][0], "ties, whole model": OWN["ties, whole model"]}
            )["rows"]
    result["minutes"] = (time.perf_counter() - started) / 60
    text = page(result)
    if not options.quick:
        write_json(RESULTS / "merge.json", json.loads(json.dumps(result)))
        write_text(RESULTS / "merge.md", text)
    print(text)


if __name__ == "__main__":
    main()
