"""Has the network learned anything? The study of untrained.md.

    python docs/protocols/untrained.py    # minutes; goes on where it was stopped

Shares go to docs/results/data/trust_map/untrained_more.csv.
"""

from __future__ import annotations

import pandas as pd
import torch
from trust import DATA

from neuronym.measurements import measure
from neuronym.models.targets import load_target
from neuronym.trust.untrained import standing_out, untrained

SEEN = ["torchvision:shufflenet_v2_x0_5@random:0"]
NEW = [f"torchvision:shufflenet_v2_x0_5@random:{seed}" for seed in range(2, 7)]
NEW += [f"torchvision:mobilenet_v3_small@random:{seed}" for seed in range(1, 4)]
NEW += [f"torchvision:mnasnet0_5@random:{seed}" for seed in range(3)]
TRAINED = ["microworld:marked"]


def main() -> None:
    file = DATA / "untrained_more.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    for name in [*SEEN, *TRAINED, *NEW]:
        if any(row["network"] == name for row in rows):
            continue
        target = load_target(name)
        data = measure(target, list(target.layers), "microworld:500", "microworld", "microworld", pool="auto")
        shares = standing_out(data)
        most = max(shares, key=shares.get)
        known = {"network": name, "seen_before": name in SEEN, "layer": most, "stand_out": shares[most]}
        rows.append(known | {"untrained": bool(untrained(shares))})
        pd.DataFrame(rows).to_csv(file, index=False, float_format="%.4g")
        print(rows[-1], flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
