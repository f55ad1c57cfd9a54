"""What glibc's malloc costs a TorchScript model: it gives the memory of large activations back after a run, and takes it anew, page by page.

Needs a Python environment with torch 2.15; nothing of Coppice needs this script.

usage: malloc_speed.py FILE SHAPE [FILE SHAPE ...]     SHAPE 8,3,224,224 for images; 1,128 for token ids and a mask

Each file in processes of its own, with the defaults and with MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824, in turns, five
times; medians of the milliseconds of a call (50 calls, two threads) and of its page faults.
"""
import os
import resource
import statistics
import subprocess
import sys
import time

KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


def one(file, shape):
    import torch

    torch.set_num_threads(2)
    model = torch.jit.load(file).eval()
    tokens = len(shape) == 2
    inputs = (torch.randint(100, 2000, shape), torch.ones(shape, dtype=torch.long)) if tokens else (torch.rand(shape),)
    with torch.inference_mode():
        for _ in range(20):
            model(*inputs)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(50):
            model(*inputs)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    print(seconds / 50 * 1e3, (after.ru_minflt - before.ru_minflt) / 50)


def main():
    if sys.argv[1] == "one":
        one(sys.argv[2], [int(size) for size in sys.argv[3].split(",")])
        return
    print("| file | shape | default: ms | page faults | kept: ms | page faults |\n|---|---|---|---|---|---|")
    for file, shape in zip(sys.argv[1::2], sys.argv[2::2]):
        rows = [[], []]
        for _ in range(5):
            for i, settings in enumerate(({}, KEPT)):
                environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | settings
                answer = subprocess.run([sys.executable, __file__, "one", file, shape], env=environment, check=True,
                                        capture_output=True, text=True).stdout.split()
                rows[i].append([float(value) for value in answer])
        cells = [f"{statistics.median(column):.4g}" for row in rows for column in zip(*row)]
        print(f"| {os.path.basename(os.path.dirname(file))} | {shape} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
