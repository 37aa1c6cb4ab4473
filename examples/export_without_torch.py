"""Export a model and run it without torch: python examples/export_without_torch.py [MODEL [FOLDER]]

Without arguments, an untrained network is exported. The folder's run.py needs NumPy and ONNX Runtime only.
"""

import subprocess
import sys
from pathlib import Path

from reid.config import ModelConfig
from reid.embedding.export import export_bundle
from reid.models import build_model
from reid.models.checkpoints import load_model

folder = Path(sys.argv[2] if len(sys.argv) > 2 else "exported")
if len(sys.argv) > 1:
    model = load_model(sys.argv[1])
else:
    model = build_model(ModelConfig(backbone="light14", height=128, width=64))
export_bundle(model, folder, to="onnx", model_id="example")

program = f"""
import sys
import numpy as np
sys.path.insert(0, {str(folder)!r})
import run
height, width = {tuple(model.preprocessing.size)!r}
crops = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)  # RGB
features = run.Bundle({str(folder)!r}).embed(crops)
print(features.shape, "torch imported:", "torch" in sys.modules)
"""
subprocess.run([sys.executable, "-c", program], check=True)
