"""Models in, activations out: reads and writes sites while a model runs."""

from harvest.certificate import Certificate
from harvest.encoding import EncodedPrompt, encode
from harvest.execution import Progress
from harvest.generation import Sampling, generate
from harvest.interventions import Intervention, intervene
from harvest.loading import LoadedModel, count_layers, load_model, load_tokenizer
from harvest.outcome import HarvestResult
from harvest.raw_sink import RawSink
from harvest.responses import respond
from harvest.run import harvest
from harvest.settings import NumericSettings
from harvest.token_sinks import Int8Sink, LogProbSink
from store.sink import ROLES

__all__ = [
    "ROLES",
    "Certificate",
    "EncodedPrompt",
    "HarvestResult",
    "Int8Sink",
    "Intervention",
    "LoadedModel",
    "LogProbSink",
    "NumericSettings",
    "Progress",
    "RawSink",
    "Sampling",
    "count_layers",
    "encode",
    "generate",
    "harvest",
    "intervene",
    "load_model",
    "load_tokenizer",
    "respond",
]
