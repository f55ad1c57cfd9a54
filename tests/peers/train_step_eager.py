"""The training step of tests/bench/train_step.cpp in PyTorch eager, in turn with it.

    python train_step_eager.py build/bin/train_step resnet20.pt train.bin [--pairs 20] [--steps 4] [--modes bf16]

Blocks of steps of the two programs alternate, the order drawn by chance, so that drift of the machine cancels in each pair.
A step is: batch of 128, forward, cross entropy, backward, SGD with Nesterov momentum. Coppice's step also fetches and
prepares the batch; here the batches are ready. Wall time and CPU time of all threads are both shown: on a machine with
other work only the second can be trusted (with OMP_WAIT_POLICY=passive, so that waiting threads do not spin).
Needs torch and numpy.
"""

import argparse
import random
import statistics
import subprocess
import time

import numpy
import torch
import torch.nn.functional as F
from torch import nn

BATCH = 128


class Block(nn.Module):
    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.grows = stride != 1
        self.pad = channels // 4

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        # Option A of arXiv 1512.03385: every other pixel, new channels are zero.
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.grows else x
        return F.relu(y + short)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages, channels = [], 16
        for width in (16, 32, 64):
            blocks = []
            for i in range(3):
                blocks.append(Block(channels, width, 2 if i == 0 and width > 16 else 1))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size(3))
        return self.linear(x.flatten(1))


class Eager:
    def __init__(self, scripted, data):
        weights = torch.jit.load(scripted).state_dict()
        records = numpy.fromfile(data, numpy.uint8, 3073 * BATCH * 8).reshape(-1, 3073)
        pixels = torch.from_numpy(records[:, 1:].copy()).reshape(-1, 3, 32, 32).float() / 255
        mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
        images, labels = (pixels - mean) / std, torch.from_numpy(records[:, 0].copy()).long()
        reference = torch.jit.load(scripted).eval()
        self.models = {}
        for mode in ("contiguous", "channels_last", "bf16"):
            model = ResNet20()
            model.load_state_dict(weights, strict=False)
            with torch.no_grad():
                difference = (model.eval()(images[:8]) - reference(images[:8])).abs().max().item()
            assert difference < 1e-4, f"this is another network than {scripted}: outputs differ by {difference}"
            order = torch.contiguous_format if mode == "contiguous" else torch.channels_last
            model = model.to(memory_format=order).train()
            optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9, weight_decay=5e-4, nesterov=True)
            batches = [
                (images[i : i + BATCH].contiguous(memory_format=order), labels[i : i + BATCH])
                for i in range(0, len(images), BATCH)
            ]
            self.models[mode] = (model, optimizer, batches)

    def block(self, mode, steps):
        model, optimizer, batches = self.models[mode]
        times = []
        for step in range(steps + 1):
            start, cpu = time.perf_counter(), time.process_time()
            images, labels = batches[step % len(batches)]
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
                output = model(images)
            loss = F.cross_entropy(output.float(), labels)
            loss.backward()
            optimizer.step()
            loss.item()
            times.append((1000 * (time.perf_counter() - start), 1000 * (time.process_time() - cpu)))
        return times[1:]


class Coppice:
    def __init__(self, program, scripted, data):
        command = [program, scripted, data, "--serve"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def block(self, mode, steps):
        self.process.stdin.write(f"{mode} {steps}\n")
        self.process.stdin.flush()
        numbers = [float(text) for text in self.process.stdout.readline().split()]
        return list(zip(numbers[::2], numbers[1::2]))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--modes", nargs="+", default=["contiguous", "channels_last", "bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    sides = {
        "eager": Eager(arguments.model, arguments.data),
        "coppice": Coppice(arguments.program, arguments.model, arguments.data),
    }
    cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    print(f"{cpu}, 2 threads, PyTorch {torch.__version__}, batch {BATCH}, {arguments.pairs} pairs of {arguments.steps} steps")
    draw = random.Random(0)
    for mode in arguments.modes:
        times = {name: [] for name in sides}
        for side in sides.values():
            side.block(mode, 1)
        for _ in range(arguments.pairs):
            for name in draw.sample(sorted(sides), 2):
                times[name].append(sides[name].block(mode, arguments.steps))
        for clock, what in enumerate(("wall", "CPU")):
            medians = {name: [statistics.median(step[clock] for step in block) for block in times[name]] for name in sides}
            ratios = [c / e for c, e in zip(medians["coppice"], medians["eager"])]
            resampled = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
            print(
                f"{mode:14s} {what:4s} eager {statistics.median(medians['eager']):8.1f} ms   "
                f"coppice {statistics.median(medians['coppice']):8.1f} ms   "
                f"coppice / eager {statistics.median(ratios):.3f}  [95 %: {resampled[50]:.3f}, {resampled[1949]:.3f}]",
                flush=True,
            )


if __name__ == "__main__":
    main()
