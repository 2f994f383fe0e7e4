"""What can be asked of a harvest's rows."""

import pytest

from store import CaptureSpec, InputError


@pytest.mark.parametrize("reduce", ["none", "mean", "max", "last", "ema", "ema:0.1", "ema:.05", "ema:0.999"])
def test_reductions_that_there_are(reduce: str) -> None:
    assert CaptureSpec(sites="resid_post.0", reduce=reduce).reduce == reduce


@pytest.mark.parametrize("reduce", ["ema:0", "ema:0.0", "ema:.00", "ema:1", "ema:1.0", "ema:", "ema:-0.1", "median"])
def test_an_average_with_no_or_all_weight_on_the_new_row_is_refused_with_the_range(reduce: str) -> None:
    with pytest.raises(InputError, match="ALPHA above 0 and below 1"):
        CaptureSpec(sites="resid_post.0", reduce=reduce)
