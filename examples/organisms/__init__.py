"""Models with known ground truth, made from SmolLM2 on a CPU: what detectors are measured against."""

from examples.organisms.base import base_ref
from examples.organisms.building import build, organism_ref
from examples.organisms.organism import Organism
from examples.organisms.prompts import Case
from examples.organisms.recipes import ORGANISMS, prompts

__all__ = ["ORGANISMS", "Case", "Organism", "base_ref", "build", "organism_ref", "prompts"]
