"""A GGUF file read as the Hugging Face checkpoint it was made from.

llama.cpp renames tensors and, for some architectures, reorders rows (query and key of Llama, for its own rotary
embedding) or shifts values. transformers knows how to undo that; its name map and processors are used here, on one
tensor at a time and on a model without storage, so that the result equals `from_pretrained(..., gguf_file=...)`.
"""

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)

from store.errors import InputError
from store.model_ref import ModelRef


class GgufCheckpoint:
    """Raises InputError for a file that is no GGUF or an architecture that cannot be mapped back."""

    def __init__(self, model: ModelRef) -> None:
        self.name = model.name
        path = Path(model.folder) / str(model.gguf_file)
        try:
            self._reader = GGUFReader(str(path))
            parsed = load_gguf_checkpoint(str(path), return_tensors=False)
            settings = dict(parsed["config"])
            architecture = self._architecture()
            config = AutoConfig.for_model(settings.pop("model_type"), **settings)
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(config)
            self._processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=parsed["config"])
            names = self._names(skeleton)
        except (ValueError, NotImplementedError, KeyError, OSError) as error:
            raise InputError(f"{path} cannot be read as a GGUF checkpoint ({error})") from error
        expected = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
        self._tensors = {names[t.name]: t for t in self._reader.tensors if t.name in names}
        self.shapes = {name: expected[name] for name in self._tensors if name in expected}
        unmapped = sorted(t.name for t in self._reader.tensors if t.name not in names and "rope_freqs" not in t.name)
        if unmapped:
            raise InputError(
                f"{path}: no Hugging Face name is known for {unmapped[0]} ({len(unmapped)} such tensors): compare "
                "the safetensors checkpoint instead"
            )
        self._recent: tuple[str, torch.Tensor] | None = None

    def _names(self, skeleton: PreTrainedModel) -> dict[str, str]:
        """GGUF name -> Hugging Face name."""
        names = get_gguf_hf_weights_map(_WithoutChildren(skeleton), self._processor)
        if all(tensor.name in names for tensor in self._reader.tensors):
            return names
        return get_gguf_hf_weights_map(skeleton, self._processor)

    def _architecture(self) -> str:
        field = self._reader.fields["general.architecture"]
        return bytes(field.parts[field.data[0]]).decode()

    def dtype(self, tensor: str) -> torch.dtype:
        return torch.float32

    def rows(self, tensor: str, start: int, stop: int) -> torch.Tensor:
        # Undoing a row order needs the whole tensor: the one in use is kept while its rows are asked for.
        if self._recent is None or self._recent[0] != tensor:
            self._recent = None
            self._recent = (tensor, self._read(tensor))
        rows = self._recent[1][start:stop]
        if stop >= self.shapes[tensor][0]:
            self._recent = None
        return rows

    def _read(self, tensor: str) -> torch.Tensor:
        source = self._tensors[tensor]
        values = dequantize(source.data, source.tensor_type)
        values = self._processor.process(
            weights=values,
            name=source.name,
            tensor_key_mapping={source.name: tensor},
            parsed_parameters={"tensors": {}},
        ).weights
        if tuple(values.shape) != self.shapes[tensor]:
            raise InputError(
                f"{self.name}: {source.name} has shape {list(values.shape)}, its configuration says "
                f"{list(self.shapes[tensor])}: fetch the file again"
            )
        return torch.from_numpy(np.array(values, dtype=np.float32))


class _WithoutChildren:
    """A model as the name map wants it, without the submodules that it would otherwise all map again (10 s)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.config, self.state_dict = model.config, model.state_dict

    def named_children(self) -> list[tuple[str, torch.nn.Module]]:
        return []
