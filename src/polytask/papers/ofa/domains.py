"""WordNet and molecules as text-attributed graphs, and the claims' tasks on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from polytask.data.graph import GraphData
from polytask.data.npz import read_npz
from polytask.papers._minilm import read_gzip
from polytask.papers.ofa.graph import TextGraph
from polytask.papers.ofa.task import TextTask
from polytask.papers.ofa.texts import Prompt, one_hot, with_negations

WORDNET = tuple(f"wn18rr_text/{name}" for name in ("entities.tsv.gz", "relations.txt", "triples.npz"))
MOLECULES = tuple(f"ofa_molecules/{name}" for name in ("bbbp.npz", "hiv_subset.npz", "texts.json"))
FILES = WORDNET + MOLECULES

RELATIONS = {
    "_hypernym": "hypernym: the first is a kind of the second",
    "_derivationally_related_form": "derivationally related form: both words have one stem",
    "_instance_hypernym": "instance hypernym: the first is an instance of the second",
    "_also_see": "also see: the second is of interest beside the first",
    "_member_meronym": "member meronym: the second is a member of the first",
    "_synset_domain_topic_of": "domain topic: the first is a term of the field that is the second",
    "_has_part": "has part: the second is a part of the first",
    "_member_of_domain_usage": "domain usage: the second is used as the first says",
    "_member_of_domain_region": "domain region: the second is a term of the region that is the first",
    "_verb_group": "verb group: both verbs are alike in meaning",
    "_similar_to": "similar to: both adjectives are alike in meaning",
}
TOPIC = "_synset_domain_topic_of"
"""The relation whose second word is what the node task asks of the first; it is in no graph and not among the links."""
LIMIT = 10
"""The most neighbours that a sample of words sees."""


class WordNet:
    """WN18RR (Dettmers et al., *Convolutional 2D knowledge graph embeddings*, AAAI 2018) with WordNet's definitions.

    Attributes:
        words: each entity's name and definition.
        names: the relations, without the one of topics.
        triples: by split ``(T, 3)``, first entity, relation (by ``names``), second; none of an entity with itself.
        topics: ``(P, 2)`` entities and their topics, of all splits, one topic for each entity.
    """

    def __init__(self, data: Path) -> None:
        entities, relations, triples = (data / name for name in WORDNET)
        lines = read_gzip(entities).splitlines()
        self.words = [line.split("\t", 1)[1] for line in lines]
        known = relations.read_text(encoding="utf-8").split()
        self.names = [name for name in known if name != TOPIC]
        topic = known.index(TOPIC)
        number = torch.tensor([self.names.index(name) if name != TOPIC else -1 for name in known])
        self.triples: dict[str, Tensor] = {}
        topics = []
        for split, array in read_npz(triples).items():
            rows = torch.from_numpy(array).long()
            rows = rows[rows[:, 0] != rows[:, 2]]
            topics.append(rows[rows[:, 1] == topic][:, [0, 2]])
            rows = rows[rows[:, 1] != topic]
            self.triples[split] = torch.stack([rows[:, 0], number[rows[:, 1]], rows[:, 2]], 1)
        pairs = torch.cat(topics)
        once = torch.bincount(pairs[:, 0], minlength=len(self.words)) == 1
        self.topics = pairs[once[pairs[:, 0]]]

    def graph(self, without: Sequence[int] = ()) -> TextGraph:
        """The graph of the training triples, without those of some relations."""
        rows = self.triples["train"]
        rows = rows[~torch.isin(rows[:, 1], torch.tensor(list(without), dtype=torch.int64))]
        structure = GraphData("WN18RR", len(self.words), rows[:, [0, 2]], edge_types=rows[:, 1], directed=True)
        return TextGraph.build(structure, [f"Word and meaning: {word}" for word in self.words], self.texts)

    @property
    def texts(self) -> list[str]:
        """What the relations mean."""
        return [RELATIONS[name] for name in self.names]

    def links(self, graph: TextGraph, triples: Tensor, name: str = "relations") -> TextTask:
        """Which relation two entities have."""
        prompt = Prompt.of("say which relation the two words have", [f"relation. {text}" for text in self.texts])
        labels = one_hot(triples[:, 1], len(self.names))
        return TextTask(name, graph, triples[:, [0, 2]], labels, prompt, hops=1, limit=LIMIT)

    def nodes(self, graph: TextGraph, classes: int = 10, name: str = "topics") -> TextTask:
        """Which field a word is a term of, among those with the most."""
        counts = torch.bincount(self.topics[:, 1], minlength=len(self.words))
        fields = counts.sort(descending=True, stable=True).indices[:classes]
        place = torch.full((len(self.words),), -1)
        place[fields] = torch.arange(classes)
        labels = place[self.topics[:, 1]]
        known = labels >= 0
        prompt = Prompt.of("say which field the word is a term of", [f"field. {self.words[k]}" for k in fields.tolist()])
        return TextTask(name, graph, self.topics[known, 0], one_hot(labels[known], classes), prompt, hops=1, limit=LIMIT)


MOLECULE_TASKS = {
    "hiv": ("hiv_subset.npz", "say whether the molecule inhibits the replication of HIV", "inhibits HIV"),
    "bbbp": ("bbbp.npz", "say whether the molecule passes from blood to the brain", "passes the blood-brain barrier"),
}


def molecules(data: Path, name: str) -> tuple[TextTask, dict[str, Tensor]]:
    """A task of MoleculeNet (Wu et al., 2018), ``"hiv"`` (a part of it) or ``"bbbp"``, and its split by scaffolds."""
    file, asked, positive = MOLECULE_TASKS[name]
    arrays = {key: torch.from_numpy(array.astype("int64")) for key, array in read_npz(data / "ofa_molecules" / file).items()}
    texts = json.loads((data / MOLECULES[-1]).read_text(encoding="utf-8"))
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), arrays["n_atoms"].cumsum(0)])
    shift = starts[:-1].repeat_interleave(arrays["n_bonds"])
    edges = torch.stack([arrays["bond_src"] + shift, arrays["bond_dst"] + shift], 1)
    structure = GraphData(file, int(starts[-1]), edges, edge_types=arrays["bond_type"])
    graph = TextGraph.build(structure, texts["atoms"], texts["bonds"], node_of=arrays["atom_type"], starts=starts)
    prompt = Prompt.of(
        asked, [f"class. The molecule {positive}", f"class. The molecule does not: it is false that it {positive}"]
    )
    task = TextTask(name, graph, torch.arange(len(arrays["y"])), with_negations(arrays["y"]), prompt, "graph", metric="auc")
    splits = ("train", "validation", "test")
    return task, {split: (arrays["split"] == k).nonzero()[:, 0] for k, split in enumerate(splits)}
