#!/usr/bin/env python3
"""Does the Hugging Face library read Coppice's model card as one?

    coppice report RUN --format card && python tests/peers/model_card.py RUN/model-card.md

Needs huggingface_hub. Offline: the card is parsed as on upload, without asking the hub.
"""
import sys

from huggingface_hub import ModelCard

card = ModelCard.load(sys.argv[1])
data = card.data
assert data.library_name == "pytorch" and "torchscript" in data.tags
for result in data.eval_results:
    assert result.task_type and result.dataset_type and result.dataset_name
    print(f"{result.metric_type} ({result.metric_name}): {result.metric_value} on {result.dataset_name}, split {result.dataset_split}")
emissions = data.to_dict().get("co2_eq_emissions")
print("co2_eq_emissions:", emissions)
assert emissions is None or (emissions["emissions"] >= 0 and emissions["source"])
assert len(card.text.strip()) > 500
