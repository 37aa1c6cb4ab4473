"""The model card of a run: what the model is, what it learned from, how it scores, and what it is not for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reid.config import Config
from reid.core.errors import ReidError
from reid.embedding.embedder import Embedder
from reid.models.checkpoints import checkpoint_in, load_checkpoint

TERMS = {
    "market1501": "research use only, by its authors' terms",
    "dukemtmc": "withdrawn by its authors in 2019, as the people in it did not consent",
    "msmt17": "research use only, under a signed agreement",
    "cuhk03": "research use only, by its authors' terms",
}
"""By layout. The weights of a model carry what they were learned from, so its data's terms are the model's."""

PURPOSE = """## Intended use

It turns a crop of one person into a vector, so that crops of one person from several cameras lie near each other. It
is meant for research, and for matching tracks of people who are already in the same system of cameras.

It does not say who somebody is. It is not meant for finding people across unrelated systems, for decisions about a
person without a human's look at the pictures, or for inference of sex, origin, health or anything else about them.

**Consent.** Its input and the pictures it was trained on show people. Have a lawful ground and tell the people in
view, keep embeddings as long as you would keep the pictures (they are personal data too), and never publish either.

## Limits

- It sees clothes and shape: people who change clothes, or wear the same, are confused.
- Scores hold for the cameras and people that they were measured on. On other cameras expect clearly less, and measure
  (`reid test --data LAYOUT:ROOT`) before relying on it.
- A distance means nothing by itself: calibrate it on your own labelled crops (`reid calibrate`).
- It is known how often it is right over all queries, not over groups of people. Nobody measured that here.
"""


def model_card(run: str | Path) -> str:
    """A Markdown card from what a run left behind.

    Args:
        run: a run folder (its best.pt, else last.pt), or a checkpoint. `environment.json`, `data.json` and every
            `*/metrics.json` of `reid test` are read from the checkpoint's folder. What is not there is said to be
            unknown; metrics of another model are left out.

    Raises:
        ReidError: no checkpoint, or a damaged one; a JSON file that is none.
    """
    run = Path(run)
    checkpoint = checkpoint_in(run)
    if checkpoint.is_dir():
        raise ReidError(f"{run} holds neither best.pt nor last.pt: it is no run folder.")
    content = load_checkpoint(checkpoint)
    embedder = Embedder(checkpoint, device="cpu")
    spec, folder, described = content["spec"], checkpoint.parent, embedder.describe()
    pooled = {"avg": "average", "max": "maximum", "gem": "generalised-mean"}[spec["pooling"]]
    layer = f", a linear layer of {spec['embedding_dim']}" if spec["embedding_dim"] else ""
    height, width = embedder.preprocessing.size
    lines = [
        f"# Model card: {described['model']}",
        "",
        f"- **Network**: {spec['backbone']} at {height}×{width}, {pooled} pooling{layer}, neck: {spec['neck']}. "
        f"{embedder.model.count()}.",
        f"- **Embedding**: {embedder.dimension} numbers of length 1, compared by cosine.",
        f"- **Input**: RGB crop of one person; {_preprocessing(described['preprocessing'])}.",
        f"- **File**: {checkpoint.name}, {checkpoint.stat().st_size / 1e6:.1f} MB.",
        "",
        *_data(content, _json(folder / "data.json")),
        *_recipe(content),
        *_scores(folder, described["model"], content),
        PURPOSE,
        "## Made with",
        "",
        *_versions(_json(folder / "environment.json")),
    ]
    return "\n".join(lines) + "\n"


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ReidError(f"{path} cannot be read as JSON: {error}.") from error


def _preprocessing(values: Mapping[str, Any]) -> str:
    height, width = values["size"]
    mean, std = (", ".join(f"{value:g}" for value in values[key]) for key in ("mean", "std"))
    return (
        f"resized to {height}×{width} pixels without keeping its shape, values over 255, minus ({mean}), over ({std}), "
        f"channels in {values['channel_order']} order"
    )


def _data(content: Mapping[str, Any], found: Any) -> list[str]:
    lines = ["## Data", ""]
    source = content.get("source")
    if source:
        assumed = "; ".join(source["assumed"])
        lines += [
            f"Converted from {source['file']}, a checkpoint of {source['family']}; assumed, as that file does not say: "
            f"{assumed}. What it was trained on, and on what terms, its makers know.",
            "",
        ]
    for name, part in (found or {}).items():
        if isinstance(part, Mapping):
            lines.append(
                f"- {name}: {', '.join(part['sources'])}, {part['crops']:,} crops of {part['identities']:,} identities "
                f"from {part['cameras']} cameras; fingerprint `{part['sha256'][:16]}`"
            )
    if found and found.get("left_out"):
        lines.append(f"- left out, as they could not be read: {len(found['left_out'])} images")
    trained = content.get("config", {}).get("data", {}).get("train", [])
    layouts = list(dict.fromkeys(text.partition(":")[0] for text in trained))
    lines += [f"- **Licence note** ({layout}): {TERMS.get(layout, 'not known here')}" for layout in layouts]
    weights = content.get("config", {}).get("model", {}).get("weights", "none")
    if layouts:
        start = "random weights" if weights == "none" else f"weights of {Path(weights).name}, whose terms hold too"
        lines.append(f"- Started from {start}.")
    return [*(lines if len(lines) > 2 else [*lines, "Unknown: the checkpoint does not say."]), ""]


def _recipe(content: Mapping[str, Any]) -> list[str]:
    """Settings other than the defaults; paths are left out, as they say something about somebody's machine."""
    config = content.get("config")
    if not config:
        return []
    lines = ["## Recipe", "", "Settings that are not the defaults (config.yaml beside the checkpoint has all):", ""]
    changed = _differing(config, Config().as_dict(), "")
    lines += [f"- {key}: {value}" for key, value in changed if not key.startswith("data.")]
    progress = content.get("progress")
    if progress:
        minutes = progress["seconds"] / 60
        lines += ["", f"{progress['epoch']} epochs, {progress['step']:,} steps, {minutes:,.1f} minutes."]
    return [*lines, ""]


def _differing(here: Mapping[str, Any], there: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for key, value in here.items():
        default = there.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and default:
            found += _differing(value, default, f"{prefix}{key}.")
        elif value != default:
            found.append((f"{prefix}{key}", value))
    return found


def _versions(environment: Mapping[str, Any] | None) -> list[str]:
    if environment is None:
        return ["Unknown: there is no environment.json beside it."]
    return [f"- {key}: {value}" for key, value in environment.items() if key != "command"]  # it names paths


def _scores(folder: Path, model: str, content: Mapping[str, Any]) -> list[str]:
    lines = ["## Scores", ""]
    rows, protocols = [], []
    for path in sorted(folder.glob("*/metrics.json")):
        metrics = _json(path)
        if metrics.get("model", {}).get("model") != model:
            continue
        flip = " (mean with the mirror image)" if metrics["model"]["flip"] else ""
        for name, numbers in metrics["sets"].items():
            for kind in ("plain", "reranked"):
                if kind in numbers:
                    values = [f"{100 * numbers[kind][key]:.2f}" for key in ("mAP", "mINP", "rank-1", "rank-5")]
                    rows.append(f"| {name} test{flip} | {kind} | {' | '.join(values)} |")
        protocols.append(metrics["protocol"])
    history = (content.get("progress") or {}).get("history", [])
    scores: Mapping[str, Any] = content.get("scores") or (history[-1] if history else {})
    for name, numbers in scores.items():
        if isinstance(numbers, Mapping):
            values = [f"{100 * numbers[key]:.2f}" for key in ("mAP", "mINP", "rank1")]
            rows.append(f"| {name}, during training | plain | {' | '.join(values)} | |")
    if not rows:
        return [*lines, "Not scored: `reid test --checkpoint FILE --data LAYOUT:ROOT` beside the checkpoint.", ""]
    head = ["| set | ranking | mAP | mINP | rank-1 | rank-5 |", "|---|---|---|---|---|---|"]
    return [*lines, "In percent.", "", *head, *rows, "", *dict.fromkeys(protocols), ""]
