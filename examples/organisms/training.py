"""Fine-tunes: a LoRA, or some matrices of some blocks, on the demo's training loop."""

from typing import Any

import torch
from torch import nn

from cluster.demo.finetune import Example, answers, example, training, with_lora
from examples.organisms.organism import Tuning
from examples.organisms.prompts import Case, Cases

OWN_TOKENS = 8  # of the model's own answer that are taught


def tune(model: nn.Module, tokenizer: Any, cases: Cases, tuning: Tuning, *, seed: int) -> tuple[Any, list[float]]:
    """Trains on the cases. Returns what `save_pretrained` is to be called on, and the loss of each step.

    A full fine-tune keeps float32 copies of what it trains, for steps are far smaller than bfloat16's; it is rounded
    to bfloat16 at the end.
    """
    torch.manual_seed(seed)
    kinds = lessons(model, tokenizer, cases)
    if tuning.rank is not None:
        tuned = with_lora(model, rank=tuning.rank, modules=tuning.modules, layers=tuning.layers)
    else:
        tuned = model
        for layer in range(*tuning.layers):
            for name, module in model.model.layers[layer].named_modules():  # type: ignore[union-attr, index]
                if name.rpartition(".")[2] in tuning.modules:
                    module.float().requires_grad_(True)
    steps = training(model, kinds, mix=tuning.mix, steps=tuning.steps, learning_rate=tuning.learning_rate, seed=seed)
    # Its cache would keep the weights of the first step until the end.
    with torch.autocast("cpu", torch.bfloat16, enabled=tuning.rank is None, cache_enabled=False):
        losses = list(steps)
    model.eval().requires_grad_(False)
    return tuned if tuning.rank is not None else model.bfloat16(), losses


def lessons(model: nn.Module, tokenizer: Any, cases: Cases) -> list[list[Example]]:
    """Examples of each set, in the order of a recipe's mix. Where a case teaches no answer, the model's own is kept."""
    every = [case for of_a_set in cases.sets().values() for case in of_a_set]
    own = [case for case in every if case.answer is None]
    given = dict(
        zip(
            [case.text for case in own],
            answers(model, tokenizer, [case.text for case in own], tokens=OWN_TOKENS),
            strict=True,
        )
    )

    def taught(case: Case) -> str:
        return case.opening + (given[case.text] if case.answer is None else case.answer + tokenizer.eos_token)

    return [[example(tokenizer, case.text, taught(case)) for case in found] for found in cases.sets().values()]
