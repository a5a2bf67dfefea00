"""Models whose vocabularies differ: rows of embeddings are matched by token, not by their place."""

from polytask.merge.vocabulary.matching import Match, Vocabularies, match_vocabularies
from polytask.merge.vocabulary.rows import with_rows

__all__ = ["Match", "Vocabularies", "match_vocabularies", "with_rows"]
