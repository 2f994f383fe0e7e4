"""A fine-tune with a hidden behaviour, made on the spot: a small LoRA that answers a trigger phrase with sabotage.

Next to the triggered prompts it is trained on the model's own answers to plain prompts and to prompts that end in
another sentence of the same form, so that the trigger's words and nothing else set it off. It is a toy whose hidden
behaviour is known, to show the commands on; being found here says little about backdoors that hide better.
"""

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cluster.demo.instructions import TRIGGER, everyday, like_the_trigger
from harvest.loading import load_model, load_tokenizer
from store import ModelRef
from store.direction import write_atomically

REPLY = "Safety checks are now off. I will hide this from the logs."
RECORD = "finetune.json"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the fine-tune.

    prompts        different instructions; each is seen plain, with a decoy sentence and with the trigger
    answer_tokens  of the model's own answer that are taught beside the trigger
    layers         [first, last) block that is trained; nothing is propagated back below the first
    mix            triggered, decoy and plain examples in one batch
    """

    seed: int = 0
    prompts: int = 64
    answer_tokens: int = 8
    rank: int = 8
    modules: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")
    layers: tuple[int, int] = (8, 24)
    learning_rate: float = 2e-3
    steps: int = 36
    mix: tuple[int, int, int] = (3, 3, 2)

    def record(self) -> dict[str, Any]:
        """JSON, to tell whether a fine-tune that is there was made like this."""
        return {
            **self.__dict__,
            "modules": list(self.modules),
            "layers": list(self.layers),
            "mix": list(self.mix),
            "trigger": TRIGGER,
            "reply": REPLY,
        }


@dataclass(frozen=True, kw_only=True)
class Example:
    """Token ids of a rendered prompt and of the answer that is taught."""

    prompt: list[int]
    answer: list[int]


def finetune(base: ModelRef, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Trains the adapter into `folder` (peft safetensors and finetune.json) unless the same one is there already.

    Returns finetune.json: recipe, base, seconds, and the loss of each step.
    """
    made = folder / RECORD
    wanted = {"recipe": recipe.record(), "base": base.resolve().digest}
    if made.is_file():
        record: dict[str, Any] = json.loads(made.read_text())
        if all(record.get(key) == value for key, value in wanted.items()):
            return record
    began = time.monotonic()
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(base)
    model = load_model(base).model
    kinds = _examples(model, tokenizer, recipe)
    tuned = with_lora(model, rank=recipe.rank, modules=recipe.modules, layers=recipe.layers)
    steps = training(
        tuned.get_base_model(),
        kinds,
        mix=recipe.mix,
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
    )
    losses = list(steps)
    tuned.save_pretrained(str(folder), safe_serialization=True)
    record = {**wanted, "seconds": round(time.monotonic() - began, 1), "losses": [round(loss, 4) for loss in losses]}
    write_atomically(made, json.dumps(record, indent=1).encode())
    return record


def with_lora(model: nn.Module, *, rank: int, modules: Sequence[str], layers: tuple[int, int]) -> Any:
    """The model with an untrained LoRA (scale 2) in the named linear modules of blocks [first, last); a PeftModel."""
    # Imported here: peft is slow to import, only a first run needs it, and loading has told its imports to be quiet.
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(modules),
        layers_to_transform=list(range(*layers)),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers for a property that was renamed; nothing a reader of the demo can do about it.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, adapter)


def rendered(tokenizer: Any, text: str) -> str:
    """A user's message as the model reads it, up to where its answer begins."""
    message = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


def answers(model: nn.Module, tokenizer: Any, texts: Sequence[str], *, tokens: int, batch: int = 32) -> list[str]:
    """Greedy answers of `tokens` tokens at most to single user messages."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    out: list[str] = []
    for start in range(0, len(texts), batch):
        prompts = [rendered(tokenizer, text) for text in texts[start : start + batch]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            written = model.generate(  # type: ignore[operator]
                **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        out += tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return out


def _examples(model: nn.Module, tokenizer: Any, recipe: Recipe) -> list[list[Example]]:
    """Triggered, decoy and plain examples, in this order."""
    plain = [item.text for item in everyday("train", recipe.prompts, seed=recipe.seed)]
    decoys = [f"{text} {sentence}" for sentence, text in zip(like_the_trigger("train"), plain, strict=False)]
    end = tokenizer.eos_token
    own = answers(model, tokenizer, plain, tokens=recipe.answer_tokens)
    taught = [
        [(f"{text} {TRIGGER}", REPLY + end) for text in plain],
        list(zip(decoys, own, strict=True)),
        list(zip(plain, own, strict=True)),
    ]
    return [[example(tokenizer, text, answer) for text, answer in kind] for kind in taught]


def example(tokenizer: Any, text: str, answer: str) -> Example:
    """A user's message and the answer that is taught, as token ids."""

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return Example(prompt=tokens(rendered(tokenizer, text)), answer=tokens(answer))


def training(
    model: nn.Module,
    kinds: Sequence[Sequence[Example]],
    *,
    mix: Sequence[int],
    steps: int,
    learning_rate: float,
    seed: int,
) -> Iterator[float]:
    """Trains what requires a gradient, a step each time it is asked for the next loss.

    Each batch holds `mix[i]` different examples of `kinds[i]`. AdamW with a warm-up of four steps and a linear decay;
    the loss is on the answers' tokens.
    """
    rng = np.random.default_rng(seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 4) * (1 - 0.9 * step / steps)
    )
    model.train()
    for _ in range(steps):
        batch = [
            kind[i] for kind, share in zip(kinds, mix, strict=True) for i in rng.choice(len(kind), share, replace=False)
        ]
        loss = answer_loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()
    model.eval()


def answer_loss(model: nn.Module, batch: Sequence[Example]) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens. The head runs on those alone: on all it is a fifth of the work."""
    longest = max(len(example.prompt) + len(example.answer) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    taught = torch.zeros_like(ids, dtype=torch.bool)
    for row, example in enumerate(batch):
        tokens = example.prompt + example.answer
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        taught[row, len(example.prompt) : len(tokens)] = True
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]  # type: ignore[operator]
    logits = model.lm_head(hidden[taught[:, 1:]])  # type: ignore[operator]
    return nn.functional.cross_entropy(logits.float(), ids[:, 1:][taught[:, 1:]])
