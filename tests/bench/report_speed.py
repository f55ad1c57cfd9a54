#!/usr/bin/env python3
"""How long `coppice report` takes for many models.

    tests/bench/report_speed.py COPPICE [MODELS]

Writes a run directory of MODELS (default 1000) side by side, as `coppice eval --out` does, with two latencies
and 60 layers each, then times the program over it: five runs, wall clock and CPU time of the process. Needs nothing but Python.
"""
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time


def figure(value, unit, provenance, spread=0.0):
    return {"value": value, "unit": unit, "provenance": provenance, "method": "made for the benchmark",
            "interval": [value * (1 - spread), value * (1 + spread)] if spread else None}


def write(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(value, file)


def write_run(folder, models):
    draw = random.Random(1)
    write(os.path.join(folder, "manifest.json"),
          {"format": "coppice-run", "version": 1, "kind": "eval", "coppice": "0.1.0", "model": {"path": "net.pt"}})
    for i in range(models):
        name = "baseline" if i == 0 else f"variant-{i}"
        size = 1.0 if i == 0 else draw.uniform(0.05, 1.0)
        quality = 0.9 - 0.3 * (1 - size) ** 3 + draw.gauss(0, 0.004)
        share = figure(quality, "ratio", "measured", 0.007)
        measurement = {
            "format": "coppice-measurement", "version": 1, "stage": name,
            "quality": {"metric": "top1", "value": quality, "points": 100 * quality, "higher_is_better": True, "figure": share,
                        "split": "test", "data": "ten thousand images", "examples": 10000},
            "metrics": {"top1": share},
            "figures": {"file_bytes": figure(1e6 * size, "B", "measured"), "parameters": figure(3e5 * size, "1", "derived"),
                        "macs": figure(4e7 * size, "1", "derived"),
                        "energy_per_inference_j": figure(0.02 * size, "J", "modelled", 0.02),
                        "energy_ratio_to_baseline": figure(size, "ratio", "modelled", 0.02),
                        "carbon_per_inference_g": figure(2e-6 * size, "g", "assumed", 0.02)},
            "latency": [{"batch": batch, "threads": 2, "p50_s": figure(0.003 * batch ** 0.8 * size, "s", "measured", 0.02),
                         "ratio_to_baseline": figure(size, "1", "measured", 0.02), "steady": True} for batch in (1, 128)],
            "environment": {"cpu": "a CPU", "threads": 2}}
        changes = [{"layer": f"layer{k // 20}.{k % 20}.conv", "action": "pruned", "before": "64 channels",
                    "after": f"{draw.randint(8, 64)} channels"} for k in range(60)]
        stage = {"format": "coppice-stage", "version": 1, "stage": name, "kept": True, "changes": changes, "warnings": []}
        write(os.path.join(folder, f"{i:02d}-{name}", "measurement.json"), measurement)
        write(os.path.join(folder, f"{i:02d}-{name}", "stage.json"), stage)


def main():
    program, models = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    with tempfile.TemporaryDirectory() as folder:
        run = os.path.join(folder, "run")
        write_run(run, models)
        for formats in ("html", "html,json,csv,md,svg"):
            wall, cpu = [], []
            for _ in range(5):
                before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
                subprocess.run([program, "report", run, "--format", formats], check=True, stdout=subprocess.DEVNULL)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                wall.append(time.monotonic() - start)
                cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            print(f"{models} models, {formats}: wall clock median {sorted(wall)[2]:.2f} s, least {min(wall):.2f} s; "
                  f"CPU median {sorted(cpu)[2]:.2f} s, least {min(cpu):.2f} s")
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run([program, "--version"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"of which starting the program: wall clock {time.monotonic() - start:.2f} s, "
              f"CPU {after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.2f} s")
        for name in sorted(os.listdir(run)):
            if name.startswith("report."):
                print(f"{name}: {os.path.getsize(os.path.join(run, name))} bytes")


if __name__ == "__main__":
    main()
