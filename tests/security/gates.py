"""The gates: words that must not stand in the product's code. Run by `make lint`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("store", "harvest", "analysis", "cluster", "examples", "bench")
FORBIDDEN = {
    r"\btorch\.load\(": "weights come from safetensors or GGUF",
    r"\b(import|from) (pickle|cloudpickle|dill|joblib|shelve|marshal)\b": "nothing pickled is persisted or loaded",
    r"allow_pickle\s*=\s*True": "nothing pickled is persisted or loaded",
    r"trust_remote_code\s*=\s*True": "a model's own code is never run",
    r"\byaml\.(load|unsafe_load|full_load)\(": "YAML is read with safe_load",
    r"shell\s*=\s*True": "commands are lists of words",
    r"(?<![.\w])(eval|exec)\(": "text is never run as code",
}


def offences() -> list[str]:
    """Every forbidden word in the product, as `file:line: why`."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                found += [
                    f"{path.relative_to(ROOT)}:{number}: {why}"
                    for pattern, why in FORBIDDEN.items()
                    if re.search(pattern, line)
                ]
    return found


if __name__ == "__main__":
    problems = offences()
    print("\n".join(problems) or "security gates: nothing forbidden")
    sys.exit(1 if problems else 0)
