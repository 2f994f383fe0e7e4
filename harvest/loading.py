"""Models and tokenizers from a ModelRef: safetensors and GGUF only, never code that comes with a model."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from harvest.adapters import check_adapter_kind, check_fits, with_adapter
from harvest.architecture import Decoder, find_decoder, n_layers_of
from harvest.gguf import cache_folder, unpacked
from harvest.streamed import stream_map
from store import ModelRef, Site
from store.errors import InputError, first_line


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to run: in evaluation mode, its decoder found, on one device.

    ref      what it was loaded from, resolved
    model    the causal language model; with an adapter, the base with the adapter's layers in it
    decoder  its blocks and sites
    """

    ref: ModelRef
    model: nn.Module
    decoder: Decoder

    @property
    def device(self) -> torch.device:
        """Where tokens go: a streamed model keeps what is beside its backbone nowhere."""
        return next(self.decoder.backbone.parameters()).device

    @property
    def context(self) -> int | None:
        """Longest prompt in tokens; None where the config names no limit."""
        return context_of(self.decoder.config)


def context_of(config: Any) -> int | None:
    """A text config's longest prompt in tokens; None where it names no limit (ALiBi, recurrent models)."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def load_model(
    ref: ModelRef,
    *,
    device: str | torch.device | None = None,
    attention: str = "auto",
    threads: int | None = None,
    quantization: str = "none",
    streamed_through: str | None = None,
) -> LoadedModel:
    """Loads weights, and an adapter on top of them where the reference has one (left unmerged).

    device     where to; by default the first CUDA device if there is one. "auto" spreads over all devices
    attention  transformers' attention backend; "auto" takes the one transformers prefers for the model
    threads    set for this process's tensor arithmetic before anything runs; None leaves them
    quantization  of the linear layers' weights while they are loaded, by bitsandbytes: none, 8bit or 4bit
    streamed_through  a folder: the model's blocks stay in their files and are read from there in every pass (see
                      `harvest.streamed`), for as long as the folder exists. What transformers holds in another form
                      than the checkpoint does (experts fused into one tensor) is written there first, in the
                      reference's dtype

    Raises InputError for a model that is missing, is no causal language model, changed since it was hashed, or is to
    be streamed and has an adapter, whose layers peft would leave without weights.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    ref = _found_here(ref.resolve())
    ref.check_unchanged()
    check_device(device)
    place = device if device is not None else default_device()
    folder = _folder(ref)
    options: dict[str, Any] = {"device_map": "auto"} if place == "auto" else {}
    if quantization != "none":
        options |= {"device_map": {"": place} if place != "auto" else "auto", **_quantized(quantization)}
    if streamed_through is not None:
        if ref.adapter is not None:
            raise InputError(f"model {ref.name!r} has an adapter, and no model with an adapter can be streamed")
        options = {
            "device_map": stream_map(skeleton(ref), torch.device(place)),
            "offload_folder": streamed_through,
        }
    with _quietly():
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                output_loading_info=True,
                dtype=getattr(torch, ref.dtype),
                attn_implementation=None if attention == "auto" else attention,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                **options,
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise InputError(f"model {ref.name!r} cannot be loaded: {first_line(error)}") from error
        _check_whole(ref, found)
        if ref.adapter_folder:
            model = with_adapter(model, ref)
    if not options:
        model = model.to(place)
    ref.check_unchanged()
    model.eval().requires_grad_(False)
    return LoadedModel(ref=ref, model=model, decoder=find_decoder(model))


def _check_whole(ref: ModelRef, found: Mapping[str, Any]) -> None:
    """Raises InputError for weights that the files do not hold, or hold in another shape: they would be random."""
    lacking = sorted(found["missing_keys"]) + sorted(str(entry[0]) for entry in found["mismatched_keys"])
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise InputError(
            f"the files of model {ref.name!r} lack {lacking[0]}{more}, or hold it in another shape than the config "
            "says: fetch the checkpoint again"
        )


def _quantized(quantization: str) -> dict[str, Any]:
    if find_spec("bitsandbytes") is None:
        raise InputError(f"{quantization} weights need bitsandbytes: pip install 'thresher[quantized]'")
    return {"quantization_config": BitsAndBytesConfig(**{f"load_in_{quantization}": True})}


def check_device(device: str | torch.device | None) -> None:
    """Raises InputError for a device that is not here; None and `auto` leave the choice to others."""
    if device is None or device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"there is no device {device!r} here ({first_line(error)}): use cpu, cuda or auto") from error


def default_device() -> torch.device:
    """The first CUDA device if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def weight_shards(ref: ModelRef) -> list[Path]:
    """The safetensors files that the base's weights are loaded from; of GGUF, what they were unpacked into."""
    ref = _found_here(ref.resolve())
    folder = Path(_folder(ref))
    if ref.gguf_file:
        return sorted(folder.glob("*.safetensors"))
    return [folder / file.path for file in ref.files if file.role == "weights"]


def load_tokenizer(ref: ModelRef) -> Any:
    """The model's tokenizer. Raises InputError where there is none that transformers knows."""
    return _tokenizer(_found_here(ref.resolve()))


# The driver and a worker in the same process ask for the same few, and those of GGUF files take seconds.
@lru_cache(maxsize=4)
def _tokenizer(ref: ModelRef) -> Any:
    with _quietly():
        try:
            return AutoTokenizer.from_pretrained(_folder(ref), trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InputError(f"model {ref.name!r} has no usable tokenizer: {first_line(error)}") from error


def load_config(ref: ModelRef) -> Any:
    """The model's config alone: number of blocks and context without loading weights."""
    return _config(_found_here(ref.resolve()))


@lru_cache(maxsize=4)
def _config(ref: ModelRef) -> Any:
    with _quietly():
        try:
            return AutoConfig.from_pretrained(_folder(ref), trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"model {ref.name!r} has no readable config: {first_line(error)}") from error


def count_layers(ref: ModelRef) -> int:
    """Number of blocks, from the config."""
    return n_layers_of(load_config(ref))


@lru_cache(maxsize=4)
def _folder(ref: ModelRef) -> str:
    """Where transformers finds the model: its own folder, or what its GGUF file was unpacked into."""
    if not ref.gguf_file:
        return ref.folder
    with _quietly():
        try:
            return str(unpacked(ref))
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise InputError(f"{ref.name!r} cannot be unpacked into {cache_folder()}: {first_line(error)}") from error


def check_sites(ref: ModelRef, sites: Sequence[str]) -> None:
    """Raises InputError for a site the architecture does not have: the model is built without its weights.

    Modules that an adapter brings along are only known once it is loaded.
    """
    decoder = skeleton(ref)
    for site in map(Site.parse, sites):
        if site.kind != "module" or ref.adapter is None:
            decoder.tap(site)
    if ref.adapter_folder:
        check_adapter_kind(ref)
        check_fits(ref, decoder.root)


def skeleton(ref: ModelRef) -> Decoder:
    """The model's modules without weights."""
    with _quietly(), torch.device("meta"):
        return find_decoder(AutoModelForCausalLM.from_config(load_config(ref), trust_remote_code=False))


def _found_here(ref: ModelRef) -> ModelRef:
    """The same model on this machine. A worker elsewhere may keep the files in another place."""
    if os.path.isdir(ref.base_folder) and (not ref.adapter_folder or os.path.isdir(ref.adapter_folder)):
        return ref
    here = replace(ref, files=(), base_folder="", adapter_folder="").resolve()
    if here.digest != ref.digest:
        raise InputError(f"model {ref.name!r} is another one here ({here.id}) than where it was named ({ref.id})")
    return here


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bars or advice of transformers and what it imports: our own command line reports."""
    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for name in ("transformers", "accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
