"""Export a model and run it without torch: python examples/export_without_torch.py [MODEL [FOLDER]]

Without arguments, an untrained network is exported. The folder's run.py needs NumPy and ONNX Runtime only.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from reid.config import ModelConfig
from reid.embedding.export import export_bundle
from reid.models import build_model
from reid.models.checkpoints import load_model

folder = Path(sys.argv[2] if len(sys.argv) > 2 else "exported")
if len(sys.argv) > 1:
    model = load_model(sys.argv[1])
else:
    model = build_model(ModelConfig(backbone="light14", height=128, width=64))
export_bundle(model, folder, to="onnx")

image = folder.parent / "crop.png"
Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)).save(image)
program = f"""
import sys
sys.path.insert(0, {str(folder)!r})
import run
features = run.Bundle({str(folder)!r}).embed([{str(image)!r}])
print(features.shape, "torch imported:", "torch" in sys.modules)
"""
subprocess.run([sys.executable, "-c", program], check=True)
