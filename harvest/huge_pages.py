"""The processor's memory in huge pages, where Linux gives them.

A batch's activations are tens of megabytes that PyTorch asks for and gives back, batch after batch. In pages of 4 KiB a
sixth of the processor's time went into clearing them; in pages of 2 MiB a tenth of that does.
"""

import os

# PyTorch's own switch (c10/core/impl/alloc_cpu.cpp): it looks once, when it first allocates something.
VARIABLE = "THP_MEM_ALLOC_ENABLE"


def use_huge_pages() -> None:
    """For this process's tensors of 2 MiB and more, unless the variable is set; too late after the first tensor."""
    os.environ.setdefault(VARIABLE, "1")
