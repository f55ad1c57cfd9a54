"""4-bit weights of MiniLM by AWQ, GPTQ and HQQ written anew in PyTorch, with second moments of all rows of the calibration data and of those that are no
padding. Says what quantize.weight_only loses by counting padding, and whether HQQ is farther from the float model than rounding to the nearest.

Needs a Python environment with torch 2.15; nothing of Coppice needs this script.

usage: padding_moments.py DATA [GROUP]     DATA the folder of the development data, GROUP weights that share a scale (128)

Prints for each rounding: correlation of the test pairs' similarities with the float model's, Spearman, signal to noise of the embeddings, and of the layers'
outputs (mean over 36 layers, each by itself, on test sentences without padding), and of the weights. Calibration: the first 64 pairs of the training file.
"""
import pathlib
import sys
import warnings

import numpy as np
import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
torch.set_grad_enabled(False)
HEADS, WIDTH, LEVELS = 12, 384, 15


class Encoder:
    def __init__(self, file):
        self.parameters = {name: p.detach() for name, p in torch.jit.load(file).eval().named_parameters()}
        self.weights = {name[:-7]: w for name, w in self.parameters.items() if name.startswith("layers") and w.dim() == 2}

    def norm(self, x, name):
        return torch.nn.functional.layer_norm(x, (WIDTH,), self.parameters[name + ".weight"], self.parameters[name + ".bias"], 1e-12)

    def __call__(self, ids, weights, tap=None):
        """Sentence embeddings [N, 384]; `tap` is called with a layer's name, its input and the mask."""
        p, mask = self.parameters, (ids > 0).float()

        def linear(x, name):
            if tap:
                tap(name, x, mask)
            return torch.nn.functional.linear(x, weights[name], p[name + ".bias"])

        def heads(y):
            return y.view(*y.shape[:2], HEADS, -1).transpose(1, 2)

        x = self.norm(p["word.weight"][ids] + p["position.weight"][:ids.shape[1]] + p["segment"], "norm")
        bias = (1 - mask)[:, None, None, :] * -10000.0
        for i in range(6):
            at = f"layers.{i}."
            q, k, v = [heads(linear(x, at + "attention." + part)) for part in ("query", "key", "value")]
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(x.shape)
            x = self.norm(x + linear(attended, at + "attention.out"), at + "norm1")
            x = self.norm(x + linear(torch.nn.functional.gelu(linear(x, at + "up")), at + "down"), at + "norm2")
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean, dim=1)

    def moments(self, ids, padding):
        """E[x x^T] and E|x| of every layer's input, with or without the rows of padding."""
        sums = {}

        def tap(name, x, mask):
            rows = x.reshape(-1, x.shape[-1])
            rows = (rows if padding else rows[mask.reshape(-1) > 0]).double()
            second, magnitude, count = sums.get(name, (0, 0, 0))
            sums[name] = second + rows.T @ rows, magnitude + rows.abs().sum(0), count + len(rows)

        for i in range(0, len(ids), 64):
            self(ids[i:i + 64], self.weights, tap)
        return {name: (second / count, magnitude / count) for name, (second, magnitude, count) in sums.items()}


def half(values):
    return values.half().float()


def grid(w, group):
    grouped = w.view(w.shape[0], -1, group)
    low, high = grouped.amin(2), grouped.amax(2)
    return half(((high - low) / LEVELS).clamp_min(6.2e-5)), half(low)


def steps(w, scale, offset, group):
    return ((w.view(w.shape[0], -1, group) - offset[..., None]) / scale[..., None]).round().clamp(0, LEVELS)


def nearest(w, group):
    scale, offset = grid(w, group)
    return (steps(w, scale, offset, group) * scale[..., None] + offset[..., None]).reshape(w.shape)


def awq(w, group, moments):
    second, magnitude = moments
    magnitude = magnitude.clamp_min(1e-4 * magnitude.mean())
    relative, second, best = magnitude / magnitude.log().mean().exp(), second.float(), None
    for i in range(0, 20, 2):
        factor = relative.pow(i / 19).float()
        values = nearest(w * factor, group) / factor
        off = w - values
        error = ((off @ second) * off).sum().item()
        if best is None or error < best[0]:
            best = error, values
    return best[1]


def gptq(w, group, moments, damping=0.01):
    second = moments[0].clone()
    second.diagonal().add_(damping * second.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(second)), upper=True)
    w, rounded = w.double().clone(), torch.zeros(w.shape, dtype=torch.float64)
    for j in range(w.shape[1]):
        if j % group == 0:
            scale, offset = (part[:, 0].double() for part in grid(w[:, j:j + group].float(), group))
        column = w[:, j]
        rounded[:, j] = ((column - offset) / scale).round().clamp(0, LEVELS) * scale + offset
        w[:, j + 1:] -= ((column - rounded[:, j]) / upper[j, j])[:, None] * upper[j, j + 1:]
    return rounded.float()


def hqq(w, group):
    scale, offset = grid(w, group)
    grouped, current, best, beta = w.view(w.shape[0], -1, group), offset.clone(), offset.clone(), 10.0

    def error(o):
        return (grouped - (steps(w, scale, o, group) * scale[..., None] + o[..., None])).abs().mean(2)

    least = error(offset)
    for _ in range(20):
        levels = steps(w, scale, current, group) * scale[..., None]
        x = (grouped - levels - current[..., None]) / scale[..., None]
        shrunk = x.sign() * (x.abs() - x.abs().clamp_min(1e-8).pow(-0.3) / beta).clamp_min(0) * scale[..., None]
        current = half((grouped - shrunk - levels).mean(2))
        now = error(current)
        better = now < least
        if not better.any():
            break
        best, least, beta = torch.where(better, current, best), torch.where(better, now, least), 1.01 * beta
    return (steps(w, scale, best, group) * scale[..., None] + best[..., None]).reshape(w.shape)


def ranks(values):
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def decibel(signal, noise):
    return 10 * np.log10((signal / noise).item())


def main():
    data, group = pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 128
    encoder = Encoder(data / "stsb/minilm_l6.pt")
    test, calibration = torch.load(data / "stsb/test.pt"), torch.load(data / "stsb/train.pt")["ids"].long()[:64].reshape(-1, 33)
    ids, score = test["ids"].long().reshape(-1, 33), test["score"].numpy()
    print(f"torch {torch.__version__}, groups of {group}, {100 * (calibration == 0).double().mean():.0f} % of the calibration rows are padding")
    everything, real, held_out = encoder.moments(calibration, True), encoder.moments(calibration, False), encoder.moments(ids[:300], False)

    def embeddings(weights):
        return torch.cat([encoder(ids[i:i + 100], weights) for i in range(0, len(ids), 100)]).view(-1, 2, WIDTH)

    exact = embeddings(encoder.weights)
    print("| rounding | correlation with float | Spearman | embeddings, dB | layers, dB | weights, dB |\n|---|---|---|---|---|---|")

    def row(name, rounding):
        weights = {layer: rounding(w, layer) for layer, w in encoder.weights.items()}
        layers, plain = [], []
        for layer, w in encoder.weights.items():
            w, off, second = w.double(), (w - weights[layer]).double(), held_out[layer][0]
            layers.append(decibel(((w @ second) * w).sum(), ((off @ second) * off).sum()))
            plain.append(decibel(w.square().sum(), off.square().sum()))
        found = embeddings(weights)
        similar, expected = (found[:, 0] * found[:, 1]).sum(1), (exact[:, 0] * exact[:, 1]).sum(1)
        print(f"| {name} | {np.corrcoef(similar, expected)[0, 1]:.5f} | {np.corrcoef(ranks(similar), ranks(score))[0, 1]:.4f} | "
              f"{decibel(exact.square().sum(), (exact - found).square().sum()):.2f} | {np.mean(layers):.2f} | {np.mean(plain):.2f} |", flush=True)

    row("nearest", lambda w, layer: nearest(w, group))
    row("hqq", lambda w, layer: hqq(w, group))
    for what, moments in (("all rows", everything), ("rows without padding", real)):
        row(f"awq, {what}", lambda w, layer: awq(w, group, moments[layer]))
    for what, moments in (("all rows", everything), ("rows without padding", real)):
        row(f"gptq, {what}", lambda w, layer: gptq(w, group, moments[layer]))


if __name__ == "__main__":
    main()
