"""Time of TorchScript files as torch.jit.load gives them, not frozen. Needs torch 2.15 (pip install torch).

    python tests/peers/unfrozen_speed.py SHAPE FILE [FILE ...]      SHAPE of one example: 1,28,28

Medians of 41 rounds in random order, one thread, batch 1 and 128, in milliseconds.
"""

import random
import sys
import time

import torch

CALLS, ROUNDS = 20, 41


def milliseconds(models, x):
    times = [[] for _ in models]
    with torch.no_grad():
        for model in models:
            for _ in range(5):
                model(x)
        for _ in range(ROUNDS):
            for i in random.sample(range(len(models)), len(models)):
                start = time.perf_counter()
                for _ in range(CALLS):
                    models[i](x)
                times[i].append((time.perf_counter() - start) / CALLS)
    return [sorted(of)[len(of) // 2] * 1e3 for of in times]


def main():
    torch.set_num_threads(1)
    random.seed(0)
    shape = [int(size) for size in sys.argv[1].split(",")]
    models = [torch.jit.load(path).eval() for path in sys.argv[2:]]
    for batch in (1, 128):
        row = milliseconds(models, torch.rand(batch, *shape))
        print(f"| {batch} | " + " | ".join(f"{value:.3f} ms" for value in row) + " |")


if __name__ == "__main__":
    main()
