"""The model card of a run: network, training data, settings, scores, intended use and limits, in Markdown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from reid.config import Config
from reid.core.errors import ModelError
from reid.core.reading import flatten, read_json
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

SCORE_COLUMNS = ("mAP", "mINP", "rank-1", "rank-5")
_TEMPLATES = Environment(
    loader=PackageLoader("reid.embedding", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters["file_name"] = lambda path: Path(path).name


def render_card(template: str, **values: Any) -> str:
    """Return the text of a card from a template of this package."""
    return _TEMPLATES.get_template(template).render(values).rstrip("\n") + "\n"


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
    folder, model, values = checkpoint.parent, embedder.describe()["model"], embedder.preprocessing
    mean, std = (", ".join(f"{value:g}" for value in numbers) for numbers in (values.mean, values.std))
    config, data = content.get("config", {}), _read_json(folder / "data.json") or {}
    trained = config.get("data", {}).get("train", [])
    names = data.get("train", {}).get("sources") or map(_data_set_name, trained)
    adaptation = content.get("adaptation")
    if adaptation is not None and adaptation["verdict"]["accepted"]:
        names = [*names, *adaptation["data"]["sources"]]
    scores, protocols = _scores(folder, model, content)
    return render_card(
        "model_card.md.jinja",
        model=model,
        spec=content["spec"],
        counts=embedder.model.count(),
        dimension=embedder.dimension,
        height=values.size[0],
        width=values.size[1],
        mean=mean,
        std=std,
        channel_order=values.channel_order,
        file=checkpoint.name,
        megabytes=checkpoint.stat().st_size / 1e6,
        source=content.get("source"),
        adaptation=adaptation,
        splits={name: split for name, split in data.items() if isinstance(split, Mapping)},
        left_out=data.get("left_out"),
        names=list(dict.fromkeys(names)),
        terms=TERMS,
        trained=trained,
        weights=config.get("model", {}).get("weights", "none"),
        settings=_settings(config) if config else None,
        progress=content.get("progress"),
        scores=scores,
        score_columns=SCORE_COLUMNS,
        protocols=protocols,
        environment=_read_json(folder / "environment.json") or {"unknown": "there is no environment.json"},
    )


def _read_json(path: Path) -> Any:
    return read_json(path, "Restore or remove it.") if path.is_file() else None


def _data_set_name(text: str) -> str:
    layout, _, root = text.partition("?")[0].partition(":")
    return "synthetic" if (Path(root) / "made.json").is_file() else layout


def _settings(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the settings that differ from their defaults; of absolute paths only the name."""
    defaults = dict(flatten(Config().as_dict()))
    return [
        (key, Path(value).name if isinstance(value, str) and os.path.isabs(value) else value)
        for key, value in flatten(config)
        if value != defaults.get(key) and not key.startswith("data.")
    ]


def _scores(folder: Path, model: str, content: Mapping[str, Any]) -> tuple[list[tuple[str, str, Any]], list[str]]:
    """Return (set, ranking, numbers) of each score that was measured, and the protocols."""
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
    return rows, list(dict.fromkeys(protocols))
