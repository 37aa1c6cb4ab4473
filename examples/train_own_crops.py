"""Train on one folder of crops per person: python examples/train_own_crops.py [CROPS [RUN [KEY=VALUE...]]]

Without arguments, synthetic crops are generated first.
"""

import sys
from pathlib import Path

import reid

crops = sys.argv[1] if len(sys.argv) > 1 else "synthetic-crops"
run = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/own-crops")

if len(sys.argv) < 2 and not Path(crops).exists():
    from reid.synthetic import SyntheticSettings, synthesize

    source = f"market1501:{synthesize(crops, SyntheticSettings(ids=40, cameras=3))}"
else:
    source = f"folders:{crops}"

settings = [f"data.train={source}", "model.backbone=light14", "model.height=64", "model.width=32", "schedule.epochs=3"]
reid.train(None, run, overrides=[*settings, *sys.argv[3:]])

results = reid.test(run / "best.pt", [source])
for result in results:
    print(f"{result.name}: mAP {result.ranking.mAP:.1%}, rank-1 {result.ranking.rank(1):.1%}")
