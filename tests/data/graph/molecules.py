"""Forty small graphs in three tables: rings, half of them with chords."""

from pathlib import Path


def write(folder: Path) -> Path:
    nodes, edges, graphs = ["id,graph,weight,shape"], ["source,target,bond"], ["id,chord,size"]
    for g in range(40):
        size = 6 + g % 5
        names = [f"g{g}n{i}" for i in range(size)]
        nodes += [f"{name},m{g},{(7 * i + g) % 10},{'ring' if i % 2 else 'end'}" for i, name in enumerate(names)]
        edges += [f"{names[i]},{names[(i + 1) % size]},{'single' if i % 2 else 'double'}" for i in range(size)]
        if g % 2:
            edges += [f"{names[i]},{names[i + size // 2]},triple" for i in range(size // 2)]
        graphs.append(f"m{g},{'yes' if g % 2 else 'no'},{1.5 * size}")
    for table, rows in (("nodes", nodes), ("edges", edges), ("graphs", graphs)):
        (folder / f"{table}.csv").write_text("\n".join(rows) + "\n")
    return folder
