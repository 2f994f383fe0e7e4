"""Rows on their way from a model's device to the host, without the model waiting for them."""

import ml_dtypes
import numpy as np
import torch


class HostCopy:
    """A copy of a tensor on the host, sharing nothing with it.

    On CUDA it goes into pinned memory behind the work that the stream has, and an event marks its end; until then
    nobody reads it. The source may be freed at once: its memory is used again in order of the stream. Elsewhere the
    copy is done when this is made.
    """

    def __init__(self, values: torch.Tensor) -> None:
        values = values.detach()
        self._done: torch.cuda.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))
        else:
            self._host = values.contiguous().to("cpu", copy=True)

    def numpy(self) -> np.ndarray:
        """The same bits as an array of its own, when they have come; bfloat16 is `ml_dtypes.bfloat16`."""
        if self._done is not None:
            self._done.synchronize()
            # Pinned memory is short: it goes back as soon as its rows are in ordinary memory.
            self._host, self._done = self._host.clone(), None
        if self._host.dtype == torch.bfloat16:
            return self._host.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return self._host.numpy()
