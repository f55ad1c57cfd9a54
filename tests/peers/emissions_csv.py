#!/usr/bin/env python3
"""Does what reads CodeCarbon's emissions.csv read Coppice's?

    coppice track --csv emissions.csv -- true && python tests/peers/emissions_csv.py emissions.csv

Needs codecarbon (3 or later) and pandas. Compares the columns with those of the installed CodeCarbon and reads the file as
its dashboard does: by pandas, numbers as numbers, sums over a project.
"""
import sys
from dataclasses import fields

import pandas
from codecarbon.output_methods.emissions_data import EmissionsData

theirs = [field.name for field in fields(EmissionsData)]
table = pandas.read_csv(sys.argv[1])
ours = list(table.columns)
assert ours[: len(theirs)] == theirs, [pair for pair in zip(ours, theirs) if pair[0] != pair[1]]
for column in ("duration", "emissions", "emissions_rate", "energy_consumed", "pue"):
    assert pandas.api.types.is_numeric_dtype(table[column]), column
assert pandas.to_datetime(table["timestamp"]).notna().all()
total = table.groupby("project_name")[["duration", "energy_consumed", "emissions"]].sum()
print(f"{len(theirs)} columns are CodeCarbon's, {len(ours) - len(theirs)} are Coppice's own:", *ours[len(theirs) :])
print(total)
