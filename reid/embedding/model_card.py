"""The model card of a run: network, training data, settings, scores, intended use and limits, in Markdown."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reid.config import Config
from reid.core.errors import ModelError
from reid.core.reading import read_json
from reid.embedding.embedder import Embedder
from reid.models.checkpoints import checkpoint_in, load_checkpoint

TERMS = {
    "market1501": "research use only, by the terms of its authors",
    "dukemtmc": "withdrawn by its authors in 2019, because the people in it did not consent",
    "msmt17": "research use only, under a signed agreement",
    "cuhk03": "research use only, by the terms of its authors",
    "synthetic": "rendered pedestrians; no restriction",
}
"""By data set. They apply to the model too, because its weights depend on the training data."""

PURPOSE = """## Intended use

The model turns a crop of one person into a vector. Crops of the same person from several cameras give similar vectors.
It is meant for research, and for matching tracks of people who are already in the same system of cameras.

It does not identify people by name. Do not use it to find people across unrelated systems, to decide about a person
without a human who looks at the images, or to infer sex, origin, health or anything else about a person.

**Consent.** The model sees images of people, and it was trained on images of people. Have a legal basis and inform the
people in view. Embeddings are personal data: keep them no longer than the images, and never publish them.

## Limits

- It compares clothes and shape. It confuses people with similar clothes, and does not recognise a person in other
  clothes.
- Scores are valid for the cameras and people that they were measured on. Expect lower scores on other cameras, and
  measure them before use (`reid test --data LAYOUT:ROOT`).
- A distance alone has no meaning. Calibrate it on your own labelled crops (`reid calibrate`).
- Scores are means over all queries. Differences between groups of people were not measured.
"""

_SCORE_COLUMNS = ("mAP", "mINP", "rank-1", "rank-5")


def model_card(run: str | Path) -> str:
    """Return a Markdown card from the files of a run.

    Args:
        run: a run folder (its best.pt, else last.pt), or a checkpoint. `environment.json`, `data.json` and each
            `*/metrics.json` of `reid test` are read from the folder of the checkpoint if they exist. Metrics of another
            model are ignored.

    Raises:
        ModelError: no checkpoint, or a damaged one.
        DataError: a JSON file that cannot be read.
    """
    run = Path(run)
    checkpoint = checkpoint_in(run)
    if checkpoint.is_dir():
        raise ModelError(f"{run} is not a run folder: it contains neither best.pt nor last.pt. Pass a checkpoint.")
    content = load_checkpoint(checkpoint)
    embedder = Embedder(checkpoint, device="cpu")
    spec, folder, model = content["spec"], checkpoint.parent, embedder.describe()["model"]
    pooling = {"avg": "average", "max": "maximum", "gem": "generalised-mean"}[spec["pooling"]]
    layer = f", a linear layer of {spec['embedding_dim']}" if spec["embedding_dim"] else ""
    values = embedder.preprocessing
    height, width = values.size
    mean, std = (", ".join(f"{value:g}" for value in numbers) for numbers in (values.mean, values.std))
    environment = _read_json(folder / "environment.json") or {"unknown": "there is no environment.json"}
    sections = [
        f"# Model card: {model}",
        f"- **Network**: {spec['backbone']} at {height}×{width}, {pooling} pooling{layer}, neck: {spec['neck']}. "
        f"{embedder.model.count()}.\n"
        f"- **Embedding**: {embedder.dimension} numbers, L2-normalised, compared by cosine.\n"
        f"- **Input**: RGB crop of one person, resized to {height}×{width} pixels (the aspect ratio changes), "
        f"divided by 255, minus ({mean}), divided by ({std}), channels in {values.channel_order} order.\n"
        f"- **File**: {checkpoint.name}, {checkpoint.stat().st_size / 1e6:.1f} MB.",
        "## Data",
        _data(content, _read_json(folder / "data.json") or {}),
        *_settings(content),
        "## Scores",
        *_scores(folder, model, content),
        PURPOSE.strip(),
        "## Made with",
        "\n".join(f"- {key}: {value}" for key, value in environment.items() if key != "command"),  # it contains paths
    ]
    return "\n\n".join(sections) + "\n"


def _read_json(path: Path) -> Any:
    return read_json(path, "Restore or remove it.") if path.is_file() else None


def _data(content: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    lines = []
    if source := content.get("source"):
        lines.append(
            f"Converted from {Path(source['file']).name}, a checkpoint of {source['family']}. Its training data and "
            f"terms are unknown. Assumed, because the file does not contain it: {'; '.join(source['assumed'])}.\n"
        )
    for name, split in found.items():
        if isinstance(split, Mapping):
            lines.append(
                f"- {name}: {', '.join(split['sources'])}, {split['crops']:,} crops of {split['identities']:,} "
                f"identities from {split['cameras']} cameras; fingerprint `{split['sha256'][:16]}`"
            )
    if found.get("left_out"):
        lines.append(f"- left out because they cannot be read: {len(found['left_out'])} images")
    config = content.get("config", {})
    trained = config.get("data", {}).get("train", [])
    names = found.get("train", {}).get("sources") or map(_data_set_name, trained)
    lines += [f"- **Licence note** ({name}): {TERMS.get(name, 'not known here')}" for name in dict.fromkeys(names)]
    weights = config.get("model", {}).get("weights", "none")
    if trained:
        start = "random weights" if weights == "none" else f"weights of {Path(weights).name}, whose terms apply too"
        lines.append(f"- Started from {start}.")
    return "\n".join(lines) or "Unknown: the checkpoint does not contain it."


def _data_set_name(text: str) -> str:
    layout, _, root = text.partition("?")[0].partition(":")
    return "synthetic" if (Path(root) / "made.json").is_file() else layout


def _settings(content: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ from their defaults; of absolute paths only the name."""
    config = content.get("config")
    if not config:
        return []
    defaults = dict(_flatten(Config().as_dict()))
    lines = [
        f"- {key}: {Path(value).name if isinstance(value, str) and os.path.isabs(value) else value}"
        for key, value in _flatten(config)
        if value != defaults.get(key) and not key.startswith("data.")
    ]
    sections = ["## Settings", "Settings that differ from their defaults (config.yaml has all):", "\n".join(lines)]
    if progress := content.get("progress"):
        minutes = progress["seconds"] / 60
        sections.append(f"{progress['epoch']} epochs, {progress['step']:,} steps, {minutes:,.1f} minutes.")
    return sections


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _scores(folder: Path, model: str, content: Mapping[str, Any]) -> list[str]:
    rows, protocols = [], []
    for path in sorted(folder.glob("*/metrics.json")):
        metrics = _read_json(path)
        if metrics.get("model", {}).get("model") != model:
            continue
        flip = " (mean with the mirrored image)" if metrics["model"]["flip"] else ""
        for name, numbers in metrics["sets"].items():
            rows += [(f"{name} test{flip}", kind, numbers[kind]) for kind in ("plain", "reranked") if kind in numbers]
        protocols.append(metrics["protocol"])
    history = (content.get("progress") or {}).get("history", [])
    for name, numbers in (content.get("scores") or (history[-1] if history else {})).items():
        if isinstance(numbers, Mapping):
            rows.append((f"{name}, during training", "plain", {**numbers, "rank-1": numbers["rank1"]}))
    if not rows:
        return [
            "Not measured. Run `reid test --model FILE --data LAYOUT:ROOT` with an output folder next to the model."
        ]
    table = [f"| set | ranking | {' | '.join(_SCORE_COLUMNS)} |", "|---|---|---|---|---|---|"]
    for name, kind, numbers in rows:
        cells = [f"{100 * numbers[key]:.2f}" if key in numbers else "" for key in _SCORE_COLUMNS]
        table.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    return ["In percent.", "\n".join(table), *dict.fromkeys(protocols)]
