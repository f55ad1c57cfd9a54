"""Time for finding groups and cutting half of all channels, side by side with Torch-Pruning in one run.

Needs a Python environment with torch, torchvision and torch-pruning; nothing of Coppice needs this script.

usage: torch_pruning_speed.py PRUNE_GROUPS ZOO [REPEATS]     PRUNE_GROUPS the benchmark program, ZOO the folder of the models

Torch-Pruning: `BasePruner` (which traces the model by a forward and backward pass and builds its groups) and `step()`, magnitude
importance, ratio 0.5, outputs of the classifier ignored. Coppice: shape facts (one forward pass), groups, uniform allocation by magnitude
and cut. Runs alternate; the figures are medians. Both are warm: Torch-Pruning from its second repeat on, Coppice, a process per repeat,
reports the median of three. Weights differ (structure decides the time).
"""
import gc
import json
import statistics
import subprocess
import sys
import time

import torch
import torch_pruning as tp
import torchvision

MODELS = [
    ("resnet50", "tv_resnet50.script.pt", "fc"),
    ("densenet121", "tv_densenet121.script.pt", "classifier"),
    ("mobilenet_v2", "tv_mobilenet_v2.script.pt", "classifier.1"),
    ("convnext_tiny", "tv_convnext_tiny.script.pt", "classifier.2"),
]


def peer_seconds(name, head):
    model = torchvision.models.get_model(name, weights=None).eval()
    example = torch.randn(1, 3, 224, 224)
    ignored = [module for path, module in model.named_modules() if path == head]
    start = time.perf_counter()
    pruner = tp.pruner.BasePruner(model, example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=ignored)
    built = time.perf_counter()
    pruner.step()
    return built - start, time.perf_counter() - built


def own_seconds(program, path):
    row = json.loads(subprocess.run([program, "3", path, "1,3,224,224"], check=True, capture_output=True, text=True).stdout)
    return row["facts_s"] + row["groups_s"], row["scores_s"] + row["cut_s"]


def main():
    program, zoo = sys.argv[1:3]
    repeats = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    torch.set_num_threads(2)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, torch-pruning {tp.__version__}, {repeats} repeats\n")
    print("| model | Torch-Pruning: groups | score and cut | Coppice: groups | score and cut | Coppice / Torch-Pruning |")
    print("|---|---|---|---|---|---|")
    product = 1.0
    for name, file, head in MODELS:
        peer, own = [], []
        for _ in range(repeats):
            peer.append(peer_seconds(name, head))
            gc.collect()
            own.append(own_seconds(program, f"{zoo}/{file}"))
        columns = [statistics.median(column) for pairs in (peer, own) for column in zip(*pairs)]
        ratio = statistics.median(sum(o) / sum(p) for o, p in zip(own, peer))
        product *= ratio
        print(f"| {name} | " + " | ".join(f"{1000 * value:.0f} ms" for value in columns) + f" | {ratio:.3f} |", flush=True)
    print(f"\nGeometric mean of the ratios: {product ** (1 / len(MODELS)):.3f}")


if __name__ == "__main__":
    main()
