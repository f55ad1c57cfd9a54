"""int8 models of Coppice, OpenVINO (NNCF) and ONNX Runtime from the same TorchScript files, side by side.

Needs a Python environment with torch 2.15, openvino, nncf, onnx and onnxruntime; nothing of Coppice needs this script.

usage: [PRELOAD=LIBRARY] [TIMES=no] quantize_peers.py COPPICE DATA WORK [THREADS [NAME ...]]
       COPPICE the program, DATA the folder of the development data, WORK a folder for the models (kept: a second run only
       measures), NAME one or several of resnet18 resnet50 mobilenet_v2 resnet20 minilm. LIBRARY a memory allocator (tcmalloc,
       jemalloc) for the processes of LibTorch and ONNX Runtime; OpenVINO brings its own and does not run with another. TIMES=no
       measures quality alone

Coppice: quantize.static (convolutional networks), merged query, key and value and quantize.auto (the encoder),
then deploy, a file for each batch size, on which forms and kernels are timed; the file is loaded by torch.jit.load and run as it is. OpenVINO: nncf.quantize of the converted file, latency hint. ONNX Runtime: the exported file, QDQ with per-channel
int8 weights (convolutional networks), dynamic int8 (the encoder), all graph optimisations. Every runtime gets THREADS threads
(2). Calibration: the same examples for all, 512 of CIFAR-10, 256 random images for the zoo, 256 sentence pairs.

Times: each runtime lives in a process of its own, a new one for each batch size: NNCF changes torch where it is imported, OpenVINO compiles
for a shape, and LibTorch's oneDNN convolutions lay their int8 weights out for the shape of the first call. Rounds in which each has one block of
calls, in random order, with a pause and unmeasured calls before, so that nobody's threads still spin while another is measured; a figure is the median over rounds, a ratio the median of the rounds'
ratios. Quality: top-1 of the 10,000 CIFAR-10 test images, Spearman of the 750 pairs of STS-B. Differences of two models' quality with their 95 %
intervals: bootstrap over examples, both models on the same ones, as `coppice eval` has it (block_bootstrap in eval/metrics/statistics.cpp).
"""
import functools
import importlib.metadata as metadata
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
import warnings

import numpy as np
import torch

warnings.filterwarnings("ignore")
ROUNDS, PAUSE_S, BLOCK_S = 15, 0.05, 0.25
ZOO = {"resnet18": "tv_resnet18.script.pt", "resnet50": "tv_resnet50.script.pt", "mobilenet_v2": "tv_mobilenet_v2.script.pt"}
# What the program subtracts and divides by where a recipe says nothing.
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


class Workload:
    """File, examples for calibration (a list of tuples of arrays), names of inputs, and how quality is judged."""

    def __init__(self, name, file, calibration, recipe, dynamic):
        self.name, self.file, self.calibration, self.recipe, self.dynamic = name, file, calibration, recipe, dynamic
        self.judged = name in ("resnet20", "minilm")  # the zoo's weights mean nothing

    def inputs(self, batch):
        rng = np.random.default_rng(1)
        if self.name == "minilm":
            return rng.integers(100, 2000, (batch, 128)), np.ones((batch, 128), np.int64)
        one = self.calibration[0][0]
        return (np.concatenate([self.calibration[i % len(self.calibration)][0] for i in range(batch)])[:batch].astype(one.dtype),)

    def quality(self, run, data):
        """A figure of each example, and what they are held against: see score()."""
        if self.name == "resnet20":
            images, labels = cifar(data / "cifar10/test.bin")
            return np.concatenate([run((images[i:i + 100],)).argmax(1) for i in range(0, len(images), 100)]), labels
        if self.name == "minilm":
            held = torch.load(data / "stsb/test.pt")
            ids = held["ids"].long().numpy()
            similarity = []
            for i in range(0, len(ids), 50):
                part = ids[i:i + 50].reshape(-1, ids.shape[2])
                vectors = run((part, (part > 0).astype(np.int64))).reshape(-1, 2, 384)
                similarity += list((vectors[:, 0] * vectors[:, 1]).sum(1))
            return np.array(similarity), held["score"].numpy()
        raise ValueError(f"{self.name} has no labels")

    def score(self, figures, target):
        return spearman(figures, target) if self.dynamic else 100 * np.mean(figures == target)

    def text(self, value):
        return f"{value:.4f}" if self.dynamic else f"{value:.2f} %"


def paired_interval(score, ours, theirs, target, resamples=1000):
    """95 % of score(ours) - score(theirs), as block_bootstrap() with blocks of one example and Spearman::paired()."""
    rng, count = np.random.default_rng(0), len(target)
    drawn = []
    for _ in range(resamples):
        rows = rng.integers(count, size=count)
        drawn.append(score(ours[rows], target[rows]) - score(theirs[rows], target[rows]))
    z = statistics.NormalDist().inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * (count - 1))  # Student's, of so many degrees of freedom
    tail = statistics.NormalDist().cdf(-t * (count / (count - 1)) ** 0.5)
    return np.quantile(drawn, [tail, 1 - tail])


def ranks(values):
    """Mean ranks of ties."""
    values = np.asarray(values)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(a, b):
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def cifar(path):
    raw = np.fromfile(path, np.uint8).reshape(-1, 3073)
    images = raw[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255
    return (images - MEAN[:, None, None]) / STD[:, None, None], raw[:, 0].astype(np.int64)



def workload(name, data, work):
    if name == "resnet20":
        images, _ = cifar(data / "cifar10/train.bin")
        calibration = [(images[i:i + 1],) for i in range(512)]
        recipe = (f"data: {{format: cifar10, train: {data}/cifar10/train.bin, test: {data}/cifar10/test.bin, calibration: 512}}\n"
                  "task: {type: classification, metric: top1}\nstages:\n  - quantize.static: {}\n")
        return Workload(name, data / "cifar10/resnet20.pt", calibration, recipe, False)
    if name == "minilm":
        ids = torch.load(data / "stsb/train.pt")["ids"].long().numpy()[:256]
        calibration = [(part.copy(), (part > 0).astype(np.int64)) for part in ids]
        recipe = (f"data: {{format: tensors, inputs: ids, mask: ids, pairs: true, target: score, train: {data}/stsb/train.pt, "
                  f"test: {data}/stsb/test.pt, calibration: 256}}\ntask: {{type: similarity, metric: spearman}}\n"
                  "stages:\n  - deploy: {form: merged}\n  - quantize.auto: {}\n")
        return Workload(name, data / "stsb/minilm_l6.pt", calibration, recipe, True)
    torch.manual_seed(0)
    small = torch.rand(256, 3, 14, 14)
    images = torch.nn.functional.interpolate(small, size=224, mode="bicubic").sub_(0.5).mul_(4)
    file = work / "images.pt"
    if not file.exists():
        torch.save({"x": images, "y": torch.zeros(256, dtype=torch.int64)}, file)
    recipe = (f"data: {{format: tensors, inputs: x, target: y, train: {file}, test: {file}, calibration: 256}}\n"
              "task: {type: classification, metric: top1}\nstages:\n  - quantize.static: {batches: 16, batch_size: 16}\n")
    return Workload(name, data / "zoo" / ZOO[name], [(row[None].numpy(),) for row in images], recipe, False)


def float32(load, work, threads):
    """The file itself."""
    model = torch.jit.load(load.file).eval()

    def call(inputs):
        with torch.inference_mode():
            return model(*[torch.from_numpy(array) for array in inputs]).numpy()

    return call, 0


def coppice(program, load, work, threads):
    run = work / f"coppice-{load.name}-{load.batch}"
    if not (run / "model.pt").exists():
        subprocess.run(["rm", "-rf", run], check=True)
        recipe = work / f"{load.name}-{load.batch}.yaml"
        example = ["int64<2309:{},128", "int64<2:{},128"] if load.dynamic else ["{},3,32,32" if load.name == "resnet20" else "{},3,224,224"]
        shapes = [shape.format(load.batch) for shape in example]
        recipe.write_text(f"model: {{path: {load.file}, input: {shapes}}}\nthreads: {threads}\n{load.recipe}measure: {{profile: off}}\n")
        subprocess.run([program, "compress", recipe, "--out", run, "--quiet"], check=True)
    stage = json.loads(sorted(run.glob("*-quantize.*/stage.json"))[0].read_text())
    model = torch.jit.load(run / "model.pt")
    model.eval()

    def call(inputs):
        with torch.inference_mode():
            return model(*[torch.from_numpy(array) for array in inputs]).numpy()

    return call, stage["seconds"]


def exported(load, work):
    """The file as ONNX, with free batch and sequence, and the names of its inputs."""
    names = ["ids", "mask"] if load.dynamic else ["x"]
    file = work / f"{load.name}.onnx"
    if not file.exists():
        axes = {name: {0: "n", 1: "t"} if load.dynamic else {0: "n"} for name in names}
        example = tuple(torch.from_numpy(array) for array in load.calibration[0])
        torch.onnx.export(torch.jit.freeze(torch.jit.load(load.file).eval()), example, file, input_names=names, output_names=["y"],
                          dynamic_axes=axes, dynamo=False, opset_version=17)
    return file, names


def openvino(load, work, threads):
    import nncf
    import openvino as ov

    file, seconds_file = work / f"{load.name}.xml", work / f"{load.name}.nncf_seconds"
    if not file.exists():
        if load.dynamic:  # its TorchScript holds operators that OpenVINO does not convert
            model = ov.convert_model(exported(load, work)[0])
        else:
            example = tuple(torch.from_numpy(array) for array in load.calibration[0])
            traced = torch.jit.trace(torch.jit.load(load.file).eval(), example, check_trace=False)
            model = ov.convert_model(traced, example_input=example)
        names = [port.any_name for port in model.inputs]
        examples = [dict(zip(names, item)) for item in load.calibration]
        start = time.perf_counter()
        kind = nncf.ModelType.TRANSFORMER if load.dynamic else None
        quantized = nncf.quantize(model, nncf.Dataset(examples), subset_size=len(examples), model_type=kind)
        seconds_file.write_text(str(time.perf_counter() - start))
        ov.save_model(quantized, file, compress_to_fp16=False)
    compiled = ov.Core().compile_model(file, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads})
    request = compiled.create_infer_request()

    def call(inputs):
        return request.infer(list(inputs), share_inputs=True)[0]

    return call, float(seconds_file.read_text())


def onnxruntime(load, work, threads):
    import onnxruntime as ort
    from onnxruntime import quantization as q

    file, seconds_file = work / f"{load.name}.int8.onnx", work / f"{load.name}.ort_seconds"
    if not file.exists():
        plain, names = exported(load, work)
        ready = work / f"{load.name}.ready.onnx"
        start = time.perf_counter()
        q.shape_inference.quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        if load.dynamic:
            q.quantize_dynamic(ready, file, weight_type=q.QuantType.QInt8, per_channel=True)
        else:
            class Reader(q.CalibrationDataReader):
                def __init__(self):
                    self.rows = iter(load.calibration)

                def get_next(self):
                    row = next(self.rows, None)
                    return None if row is None else dict(zip(names, row))

            q.quantize_static(ready, file, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
                              activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8)
        seconds_file.write_text(str(time.perf_counter() - start))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def call(inputs):
        return session.run(None, dict(zip(names, inputs)))[0]

    return call, float(seconds_file.read_text())


def block(call, inputs):
    """Seconds a call, over a block of calls after a pause and some that do not count."""
    time.sleep(PAUSE_S)
    for _ in range(3):
        call(inputs)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < BLOCK_S or calls < 3:
        call(inputs)
        calls += 1
    return (time.perf_counter() - start) / calls


def serve(pipe, make, name, data, work, threads, batch):
    """Answers ("made",), ("quality",) and ("block", batch) until the other end closes."""
    torch.set_num_threads(threads)
    load = workload(name, data, work)
    load.batch = batch
    call, seconds = make(load, work, threads)
    answers = {"made": lambda: seconds, "quality": lambda: load.quality(call, data)}
    while True:
        try:
            what, *rest = pipe.recv()
        except EOFError:
            return
        pipe.send(answers[what]() if what in answers else block(call, load.inputs(*rest)))


def main():
    program, data, work = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    threads = int(sys.argv[4]) if len(sys.argv) > 4 else 2
    allocator = os.environ.get("PRELOAD")
    names = sys.argv[5:] or ["resnet18", "resnet50", "mobilenet_v2", "resnet20", "minilm"]
    work.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    spawn = multiprocessing.get_context("spawn")
    print(", ".join(f"{package} {metadata.version(package)}" for package in ("torch", "openvino", "nncf", "onnxruntime")) +
          f", {threads} threads, {ROUNDS} rounds, allocator of LibTorch and ONNX Runtime: {allocator or 'of the C library'}\n")
    print("| model | batch | Coppice | OpenVINO | ONNX Runtime | Coppice / OpenVINO | Coppice / ONNX Runtime | quality: Coppice, OpenVINO, "
          "ONNX Runtime | quantizing: Coppice, NNCF, ONNX Runtime |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    timed, differences = os.environ.get("TIMES") != "no", []
    ratios = {"convolutional / OpenVINO": [], "encoder / OpenVINO": [], "all / ONNX Runtime": []}
    for name in names:
        workload(name, data, work)  # writes what the program reads
        makers = (functools.partial(coppice, program), openvino, onnxruntime)

        def started(makers=makers, batch=1):
            """A process for each runtime, one after the other: making models is timed as well."""
            pipes = []
            for make in makers:
                near, far = spawn.Pipe()
                process = spawn.Process(target=serve, args=(far, make, name, data, work, threads, batch), daemon=True)
                if allocator and make is not openvino:
                    os.environ["LD_PRELOAD"] = allocator
                process.start()
                os.environ.pop("LD_PRELOAD", None)
                far.close()
                pipes.append(near)
                ask(near, "made")
            return pipes

        pipes = started()
        took = ", ".join(f"{ask(pipe, 'made'):.1f} s" for pipe in pipes)
        quality, load = "", workload(name, data, work)
        if load.judged:
            reference = started([float32])
            figures = {}
            for who, pipe in zip(("Coppice", "OpenVINO", "ONNX Runtime", "float"), pipes + reference):
                figures[who], target = ask(pipe, "quality")
            reference[0].close()
            quality = ", ".join(load.text(load.score(figures[who], target)) for who in list(figures)[:3])
            for ours, theirs in itertools.combinations(figures, 2):
                low, high = paired_interval(load.score, figures[ours], figures[theirs], target)
                differences.append(f"| {name} | {ours} - {theirs} | "
                                   f"{load.score(figures[ours], target) - load.score(figures[theirs], target):+.4f} | "
                                   f"{low:+.4f} to {high:+.4f} |")
        if not timed:
            print(f"| {name} | | | | | | | {quality} | {took} |", flush=True)
        for batch in (1, 8) if timed else ():
            for pipe in pipes:
                pipe.close()
            pipes = started(batch=batch)
            times = [[] for _ in pipes]
            for _ in range(ROUNDS):
                for i in random.sample(range(len(pipes)), len(pipes)):
                    times[i].append(ask(pipes[i], "block", batch))
            against = [statistics.median(a / b for a, b in zip(times[0], times[k])) for k in (1, 2)]
            ratios["encoder / OpenVINO" if name == "minilm" else "convolutional / OpenVINO"].append(against[0])
            ratios["all / ONNX Runtime"].append(against[1])
            cells = " | ".join(f"{1000 * statistics.median(of):.3g} ms" for of in times)
            print(f"| {name} | {batch} | {cells} | {against[0]:.2f} | {against[1]:.2f} | {quality if batch == 1 else ''} | "
                  f"{took if batch == 1 else ''} |", flush=True)
        for pipe in pipes:
            pipe.close()
    if differences:
        print("\n| model | difference of quality | value | 95 % interval, paired |\n|---|---|---|---|", *differences, sep="\n")
    print()
    for title, of in ratios.items():
        if of:
            print(f"Geometric mean, {title}: {statistics.geometric_mean(of):.3f}")


def ask(pipe, *question):
    pipe.send(question)
    return pipe.recv()


if __name__ == "__main__":
    main()
