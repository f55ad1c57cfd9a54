"""The same model, weights and ratio pruned by Coppice and by Torch-Pruning: do the same channels go, and is the accuracy the same?

Needs a Python environment with torch, torchvision, torch-pruning and numpy, and the development data; nothing of Coppice needs this script.

usage: torch_pruning_indices.py COPPICE DATA      COPPICE the program, DATA the folder of the development data

Magnitude (L2, biases and batch norms counted, sums over coupled layers), a share of every group, no rounding. Torch-Pruning gets the module whose
state_dict the TorchScript file holds. For every group that Coppice cuts, the indices removed from its first layer are compared with those that
Torch-Pruning removes from the outputs of that layer. ResNet-20 is judged on all test images, before any fine-tuning.
"""
import json
import os
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

warnings.filterwarnings("ignore")
import torch_pruning as tp  # noqa: E402


class Block(nn.Module):
    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.extra = stride, (planes - inputs) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.extra:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(y + x)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths, layers = [16, 16, 32, 64], []
        for i in range(3):
            first = Block(widths[i], widths[i + 1], 1 if i == 0 else 2)
            layers.append(nn.Sequential(first, *[Block(widths[i + 1], widths[i + 1], 1) for _ in range(2)]))
        self.layer1, self.layer2, self.layer3 = layers
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def cifar(path):
    rows = np.fromfile(path, np.uint8).reshape(-1, 3073)
    images = torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (images - mean) / std, torch.from_numpy(rows[:, 0].astype(np.int64))


@torch.no_grad()
def accuracy(model, data):
    images, labels = data
    hits = sum((model(x).argmax(1) == y).sum().item() for x, y in zip(images.split(500), labels.split(500)))
    return 100 * hits / len(labels)


def quality(model, data):
    try:
        return f"{accuracy(model, data):.2f} %"
    except RuntimeError as error:
        return "does not run: " + str(error).split("\n")[0]


def own(program, path, shape, ratio, ignore, folder):
    """What Coppice removes: {first layer of the group: indices}, and the file it writes."""
    recipe = os.path.join(folder, "recipe.yaml")
    with open(recipe, "w") as file:
        json.dump({
            "model": {"path": path, "input": shape},
            "stages": [{"prune.channel": {"criterion": "magnitude", "scope": "uniform", "ratio": ratio, "round_to": 1, "ignore": ignore}}],
            "deploy": "off", "measure": {"profile": "off"}, "report": {"formats": ["json"]},
        }, file)
    run = os.path.join(folder, "run")
    subprocess.run([program, "compress", recipe, "--out", run, "--quiet"], check=True, capture_output=True)
    removed = json.load(open(os.path.join(run, "01-prune.channel", "stage.json")))["facts"]["removed"]
    return {layer: indices(ranges) for layer, ranges in removed.items()}, os.path.join(run, "model.pt")


def indices(text):
    result = set()
    for part in str(text).replace(" ", "").split(","):
        first, _, last = part.partition("-")
        result |= set(range(int(first), int(last or first) + 1))
    return result


class AllWeights(tp.importance.GroupMagnitudeImportance):
    """Torch-Pruning leaves depthwise convolutions and parameters used bare (layer scale) out of its sums; here they count."""

    def __call__(self, group):
        total = super().__call__(group)
        for i, (dep, idxs) in enumerate(group):
            weights = []
            if dep.pruning_fn == tp.function.prune_depthwise_conv_out_channels:
                weights = [dep.layer.weight] + ([dep.layer.bias] if dep.layer.bias is not None else [])
            elif isinstance(dep.layer, nn.Parameter):
                weights = [dep.layer.flatten()]  # one dimension is longer than 1
            for weight in weights:
                powers = weight.data.flatten(1).square().sum(1) if weight.dim() > 1 else weight.data.square()
                total.scatter_add_(0, torch.tensor(group[i].root_idxs), powers[idxs])
        return total


def peer(model, shape, ratio, ignore, all_weights):
    """What Torch-Pruning removes, {layer: output indices}; the model is cut."""
    ignored = [module for name, module in model.named_modules() if name in ignore]
    make = AllWeights if all_weights else tp.importance.GroupMagnitudeImportance
    importance = make(p=2, group_reduction="sum", normalizer=None, bias=True)
    pruner = tp.pruner.BasePruner(model, torch.randn(shape), importance=importance, pruning_ratio=ratio, ignored_layers=ignored)
    names = {module: name for name, module in model.named_modules()}
    removed = {}
    for group in pruner.step(interactive=True):
        for item in group.items if hasattr(group, "items") else group:
            dep, gone = (item.dep, item.idxs) if hasattr(item, "dep") else item
            layer = dep.target.module
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and "out" in dep.handler.__name__:
                removed[names[layer]] = set(int(i) for i in gone)
        group.prune()
    return removed


def main():
    program, data = sys.argv[1:3]
    test = cifar(f"{data}/cifar10/test.bin")
    torchvision_model = lambda name: torchvision.models.get_model(name, weights=None)
    inner = [f"layer{i}.{j}.conv2" for i in (1, 2, 3) for j in (0, 1, 2)]
    cases = [
        ("ResNet-20", ResNet20, f"{data}/cifar10/resnet20.pt", [1, 3, 32, 32], ["linear"], [0.5]),
        ("ResNet-20, inside blocks", ResNet20, f"{data}/cifar10/resnet20.pt", [1, 3, 32, 32], ["linear", "conv1", *inner], [0.25, 0.5, 0.75]),
        ("ResNet-50", lambda: torchvision_model("resnet50"), f"{data}/zoo/tv_resnet50.script.pt", [1, 3, 224, 224], ["fc"], [0.5]),
        ("DenseNet-121", lambda: torchvision_model("densenet121"), f"{data}/zoo/tv_densenet121.script.pt", [1, 3, 224, 224], ["classifier"], [0.5]),
        ("MobileNetV2", lambda: torchvision_model("mobilenet_v2"), f"{data}/zoo/tv_mobilenet_v2.script.pt", [1, 3, 224, 224], ["classifier.1"], [0.5]),
        ("ConvNeXt-T", lambda: torchvision_model("convnext_tiny"), f"{data}/zoo/tv_convnext_tiny.script.pt", [1, 3, 224, 224], ["classifier.2"], [0.5]),
    ]
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, torch-pruning {tp.__version__}\n")
    print("| model | ratio | groups of Coppice | same indices | depthwise and bare weights counted, too | groups that still differ, share of indices | top-1: Coppice | Torch-Pruning |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, make, path, shape, ignore, ratios in cases:
        for ratio in ratios:
            with tempfile.TemporaryDirectory() as folder:
                ours, file = own(program, path, shape, ratio, ["^" + layer.replace(".", "\\.") + "$" for layer in ignore], folder)
                same, hits = [], ["", ""]
                for all_weights in (False, True):
                    model = make().eval()
                    model.load_state_dict(torch.jit.load(path).state_dict())
                    theirs = peer(model, shape, ratio, ignore, all_weights)
                    differ = {layer: gone ^ theirs.get(layer, set()) for layer, gone in ours.items() if theirs.get(layer, set()) != gone}
                    same.append(len(ours) - len(differ))
                    if name.startswith("ResNet-20") and not all_weights:
                        hits = [quality(m, test) for m in (torch.jit.load(file), model)]
            shown = ", ".join(f"{layer} {len(odd) / 2 / len(ours[layer]):.3f}" for layer, odd in differ.items())
            print(f"| {name} | {ratio:.2f} | {len(ours)} | {same[0]} | {same[1]} | {shown} | {hits[0]} | {hits[1]} |", flush=True)


if __name__ == "__main__":
    main()
