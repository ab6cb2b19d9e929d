"""Proteins as a language of a general model (ProLLaMA): residues as tokens, two stages of training, tasks by
likelihood, and oracles that say to which family a sequence belongs."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.alignment.protein.format import ProteinFormat as ProteinFormat
    from likely.alignment.protein.model import GeneratedProtein as GeneratedProtein
    from likely.alignment.protein.model import ProteinModel as ProteinModel
    from likely.alignment.protein.model import mutated as mutated
    from likely.alignment.protein.oracles import KmerClassifier as KmerClassifier
    from likely.alignment.protein.oracles import ProfileHMM as ProfileHMM
    from likely.alignment.protein.oracles import group_by_similarity as group_by_similarity
    from likely.alignment.protein.recipe import stage1 as stage1
    from likely.alignment.protein.recipe import stage2 as stage2
    from likely.alignment.protein.rows import ProteinRow as ProteinRow
    from likely.alignment.protein.rows import read_proteins as read_proteins
    from likely.alignment.protein.training_run import ProteinRun as ProteinRun
    from likely.alignment.protein.training_run import train_proteins as train_proteins

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
