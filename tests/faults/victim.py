"""A harvest without a model, to be killed: fills a store cell by cell. Usage: python -m tests.faults.victim URL"""

import sys

from store import Store
from tests.store.factory import fill, model_named, prompts_of

PROMPTS = 3000
MODELS = ("a", "b", "c")

if __name__ == "__main__":
    store = Store.create(sys.argv[1], prompts_of(PROMPTS))
    print("begun", flush=True)
    for name in MODELS:
        fill(store, model_named(name))
    print("done", flush=True)
