#!/usr/bin/env python3
"""Noise of changed sentence encoders' outputs: a Markdown table.

  output_noise.py FLOAT.pt STSB.pt MODEL.pt [MODEL.pt ...]     needs torch; STSB.pt: stsb/test.pt of the development data

SQNR of the embeddings of all sentences (10 log10 of the float model's energy over that of the difference), the mean
absolute change of a pair's similarity, and Spearman's correlation with the scores.
"""
import os
import sys

import torch

torch.set_num_threads(1)


def ranks(x):
    """Ranks from 0, ties get their mean."""
    values, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() + 1) / 2)[inverse]


def embeddings(path, ids):
    model = torch.jit.load(path).eval()
    with torch.no_grad():
        return torch.cat([model(part, (part > 0).long()) for part in ids.split(50)]).double()


def main():
    exact_path, data_path, *paths = sys.argv[1:]
    data = torch.load(data_path)
    ids, score = data["ids"].long(), data["score"].double()
    pairs = ids.shape[0]
    flat = ids.reshape(2 * pairs, -1)
    exact = embeddings(exact_path, flat)
    print("| model | SQNR of embeddings, dB | mean change of a similarity | Spearman |\n|---|---|---|---|")
    similarity = lambda e: (e.reshape(pairs, 2, -1)[:, 0] * e.reshape(pairs, 2, -1)[:, 1]).sum(1)
    for path in [exact_path, *paths]:
        e = embeddings(path, flat)
        noise = (e - exact).square().sum()
        sqnr = f"{10 * torch.log10(exact.square().sum() / noise):.2f}" if noise > 0 else "equal"
        change = (similarity(e) - similarity(exact)).abs().mean()
        spearman = torch.corrcoef(torch.stack([ranks(similarity(e)), ranks(score)]))[0, 1]
        name = os.path.basename(os.path.dirname(path) or path)
        print(f"| {name} | {sqnr} | {change:.5f} | {spearman:.4f} |", flush=True)


if __name__ == "__main__":
    main()
