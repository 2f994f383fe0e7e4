"""A run folder with the JSON of every command, made up but of the right shape, with hostile prompts in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    '"><img src=x onerror="window.pwned = 1">',
    "</style><style>body { display: none }</style>{{ 7 * 7 }}",
    "red \x1b[31malert\x1b[0m and \x00 null",
    "user\u202egnp.exe\u2066 and zero\u200bwidth",
    "{% raw %} &lt;b&gt; \ud83d\ude00",
    "line one\nline two\r\n\ttabbed",
)
SITES = [0, 4, 8, 12, 16, 20, 24, 28]


def estimate(value: float, spread: float = 0.02, **more: Any) -> dict[str, Any]:
    low, high = max(0.0, value - spread), min(1.0, value + spread)
    return {"value": value, "low": low, "high": high, "level": 0.95, "units": 514, "noun": "cities", **more}


def probe(kind: str, peak: float) -> dict[str, Any]:
    sites = [
        {
            "site": f"resid_post.{layer}",
            "kind": kind,
            "n": 1028,
            "auroc": estimate(peak - 0.0012 * (layer - 18) ** 2 if layer else 0.5),
            "recall_at_fpr": {"0.01": estimate(0.6, 0.1, realised_fpr=0.012)},
            "threshold": 1.0,
            "shuffled_auroc": 0.503,
        }
        for layer in SITES
    ]
    return {
        "site": "resid_post.16",
        "kind": kind,
        "n": 1028,
        "label": "label",
        "auroc": estimate(peak),
        "recall_at_fpr": {
            "0.01": {"value": None, "reason": "40 control groups, 100 needed"},
            "0.05": estimate(0.8, 0.05, realised_fpr=0.04),
        },
        "threshold": 1.0,
        "chosen": "resid_post.16",
        "sites": sites,
        "baselines": {"length": estimate(0.51), "bag_of_words": estimate(0.47), "embedding": estimate(0.5)},
    }


def write_run(folder: Path) -> Path:
    """Writes all parts into `folder`."""
    rng = np.random.default_rng(0)
    names = ["cities", "neg_cities", "larger_than"]
    values = [[0.95, 0.09, 0.55], [0.11, 0.95, 0.5], [0.62, 0.44, 0.91]]
    matrices = [
        {
            "name": f"model.layers.{layer}.{module}.weight",
            "shape": [576, 1536],
            "sigma": [float(v) for v in np.sort(rng.random(8))[::-1] * (1 + layer / 10)],
            "stable_rank": 2.1,
            "energy": 0.99,
            "significant": 5,
            "side": side,
            "role": role,
            "layer": layer,
            "notes": [],
        }
        for role, module, side in (
            ("attn_out", "self_attn.o_proj", "left"),
            ("mlp_out", "mlp.down_proj", "left"),
            ("query", "self_attn.q_proj", "right"),
        )
        for layer in range(8, 24)
    ]

    def scores(mean: float, n: int) -> list[dict[str, Any]]:
        drawn = rng.normal(mean, 1.0, n)
        return [
            {
                "prompt_id": f"{HOSTILE[i % len(HOSTILE)]}-{i}",
                "flagged": bool(s > 4),
                "score": float(s),
                "direction": "d",
            }
            for i, s in enumerate(drawn)
        ]

    def scored(mean: float, n: int) -> dict[str, Any]:
        prompts = scores(mean, n)
        flagged = sum(prompt["flagged"] for prompt in prompts)
        return {"flagged": flagged, "n": n, "rate": estimate(flagged / n, 0.03), "prompts": prompts}

    parts: dict[str, Any] = {
        "info.json": {
            "store": "run/store",
            "digest": "ab" * 32,
            "complete": True,
            "models": [{"id": "smollm2-0123456789ab", "name": HOSTILE[0], "adapter": None, "digest": "cd" * 32}],
            "columns": [{"name": "resid_post.16", "key": "ef" * 32, "shape": [1028, 576], "dtype": "bfloat16"}],
            "prompts": 1028,
            "tokens": 12345,
            "bytes": 4_500_000,
        },
        "harvest.json": {
            "store": "run/store", "digest": "ab" * 32, "complete": True, "prompts": 1028, "tokens": 12345,
            "tokens_per_second": 2000.0, "quarantined": [],
            "certificate": {
                "ok": True,
                "prompts": ["a", "b", "c", "d"],
                "sites": {
                    "resid_post.16": {"rows": 4, "largest": 0.02, "median": 0.01, "bound_largest": 0.5,
                                      "bound_median": 0.1, "ok": True},
                },
            },
        },
        "cities.logistic.json": probe("logistic", 0.95),
        "cities.mass-mean.json": probe("mass-mean", 0.9),
        "larger_than.logistic.json": probe("logistic", 0.85),
        "transfer.json": {
            "cells": [
                {"fitted_on": a, "measured_on": b, "auroc": estimate(values[i][j], 0.05),
                 "inverted": values[i][j] < 0.5}
                for i, a in enumerate(names)
                for j, b in enumerate(names)
            ]
        },
        "delta/delta.json": {"matrices": matrices, "notes": [], "seconds": 1.5, "peak_rss_bytes": 800_000_000},
        "triggered.score.json": scored(9.0, 120),
        "clean.score.json": scored(0.0, 200),
        "monitor.json": {
            "monitor": "monitor-ab", "threshold": 4.0, "calibration": {"fpr": 0.01}, "directions": 128, "sites": []
        },
        "audit.json": {
            "monitor": "monitor-ab",
            "directions": [
                {
                    "direction": "model.layers.12.mlp.down_proj.weight.left.0",
                    "site": "resid_post.12",
                    "top": [],
                    "bottom": [
                        {"prompt_id": f"p{i}", "score": -3.0 + i / 10, "standardised": 9.0 - i, "position": 1,
                         "tokens": ["<s>", "Hello ", text, " end"], "scores": [90.0, 0.1, -3.0 + i / 10, 1.0]}
                        for i, text in enumerate(HOSTILE)
                    ],
                }
            ],
        },
        "behaviour.json": {
            "description": "A sentence as trigger.",
            "behaviour": [
                {"name": "triggered", "n": 40, "triggered": True, "rate": estimate(0.95, 0.05),
                 "example": {"prompt": HOSTILE[0], "answer": HOSTILE[3]}},
                {"name": "plain", "n": 40, "triggered": False, "rate": estimate(0.0, 0.05),
                 "example": {"prompt": "Hello.", "answer": "Hello!"}},
            ],
        },
    }  # fmt: skip
    for name, record in parts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record), encoding="utf-8")
    (folder / "commands.txt").write_text(
        "thresher harvest model prompts --out store\n" + HOSTILE[0] + "\n", encoding="utf-8"
    )
    return folder
