"""Adapt a model to other cameras with unlabelled tracks: embed, match, train, in rounds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import nn

from reid.config import Config, ModelConfig, Settings, load_settings, save_settings, shipped_configs
from reid.core.atomic import atomic_file, write_json
from reid.core.console import console, warn
from reid.core.distributed import DistributedContext, pick_device
from reid.core.errors import ConfigError, DataError
from reid.core.locks import exclusive
from reid.core.memory import keep_memory
from reid.core.reading import read_json
from reid.data.pixels import Pixels, TrainingData, open_pixels
from reid.embedding.embedder import Embedder
from reid.evaluation.track_separation import FEWEST_TRACKS, TrackSeparation, gain_interval, separate_tracks
from reid.losses.centroids import CentroidMemory
from reid.models import ReIDModel, build_model
from reid.models.checkpoints import checkpoint_in, load_checkpoint, load_model, save_checkpoint
from reid.mtmc.confidence import mean_p_same
from reid.mtmc.constraints import Constraints, read_constraints
from reid.mtmc.matching import MIN_TRACKLETS, Matches, match
from reid.pipelines.adapt_data import target_crops
from reid.pipelines.settings import AdaptKeys, AdaptSettings
from reid.pipelines.tracked_crops import tracklets_of
from reid.report.adaptation_page import write_adaptation
from reid.training import run_folder
from reid.training.batchnorm import reestimate_batchnorm
from reid.training.environment import environment
from reid.training.run_folder import BEST, LAST, SETTINGS
from reid.training.trainer import Trainer
from reid.training.validation import embed_pixels

ROUNDS, ADAPTATION, START, LABELS, CROPS = "rounds.json", "adapt.yaml", "start.pt", "labels.parquet", "crops"
PAGE = "adaptation.html"
_SHOWN = 8  # identities, and crops of each
_UNCHECKED = "The guard was switched off."
_SHARPNESS = 16.0
"""Logit of a crop at the centroid of its identity, at the start of a round."""


class _Stored(Settings):
    """Content of adapt.yaml: what an adaptation was started with."""

    model: str
    settings: AdaptSettings
    overrides: list[str]


@dataclass(frozen=True)
class Adapted:
    """Result of `adapt`.

    Attributes:
        model: the checkpoint: the adapted model, or the given one if the guard did not accept it.
        accepted: whether `model` is the adapted one.
        rounds: content of rounds.json.
    """

    model: Path
    accepted: bool
    rounds: dict[str, Any]


def adapt(
    model: str | Path, out: str | Path, settings: AdaptSettings, overrides: Sequence[str] = (), *, resume: bool = False
) -> Adapted:
    """Adapt a model to the cameras of unlabelled tracks, and keep it if it separates held-out tracks better.

    1. The tracks that begin last in each camera are held out.
    2. BatchNorm statistics are re-estimated on the crops of the others (`reestimate_batchnorm`).
    3. Each round embeds these crops, matches their tracklets (`reid.mtmc.match`: simultaneous tracks of one camera are
       never one person, and no threshold is given) and trains with the identities found as labels.
    4. The guard compares the given and the adapted model on the held-out tracks (`separate_tracks`). The adapted one
       is kept if the 90 % interval of its gain is above 0.

    Args:
        model: checkpoint, run folder, or a backbone with `settings.weights`.
        out: folder of the adaptation; new or empty unless `resume`. It contains best.pt (the result), rounds.json,
            adaptation.html, start.pt (after step 2), and for each round a run folder with the labels that it was
            trained with.
        settings: the tracks, the number of rounds, the guard.
        overrides: `key=value` settings of training, which replace those of configs/adapt.yaml.
        resume: continue the adaptation in `out`, with its settings.

    Raises:
        ReidError: the model, the tracks or a setting cannot be used.
        Interrupted: SIGINT or SIGTERM was received during training; the adaptation can be resumed.
    """
    out = Path(out)
    if not resume and run_folder.is_used(out):
        raise ConfigError(f"{out} exists and is not empty. Continue it with --resume {out}, or use another --out.")
    given = _Stored(model=str(model), settings=settings, overrides=list(overrides))
    if resume:
        if not (out / ADAPTATION).is_file():
            raise ConfigError(f"{out} has no {ADAPTATION}, so there is no adaptation to resume. Start one with --out.")
        given = load_settings(_Stored, out / ADAPTATION)
    with exclusive(out):
        return _Adaptation(given, out).run()


class _Adaptation:
    """One adaptation: given model, crops, and the state in its folder."""

    def __init__(self, given: _Stored, out: Path) -> None:
        settings = given.settings
        self.out, self.settings, self.source = out, settings, given.model
        self.given, keys = _given_model(given.model, settings, given.overrides)
        self.matching, self.config = keys.matching, keys.training()
        self.distributed = DistributedContext(0, 1, pick_device(settings.device))
        if self.config.keep_memory and self.distributed.device.type == "cpu":
            keep_memory()
        self.given.to(self.distributed.device)
        crops = target_crops(settings, out / CROPS)
        if not (out / ADAPTATION).is_file():  # nothing is left in the folder if the model or the data cannot be used
            save_settings(given, out / ADAPTATION)
        left_out: list[str] = []
        size = (self.config.model.height, self.config.model.width)
        (self.pixels,) = open_pixels(self.config.data, [crops], size, left_out, of=crops)
        self.left_out = tuple(left_out)
        self.tracked = tracklets_of(self.pixels.crops)
        held = self.tracked.held_out(settings.held_out)
        self.held_rows, self.rows = (np.flatnonzero(mask[self.tracked.crops.tracks]) for mask in (held, ~held))
        self.held_out, self.learned = self.tracked.take(held), self.tracked.take(~held)
        if len(self.learned) < MIN_TRACKLETS:
            raise DataError(
                f"There are {len(self.learned)} tracklets to learn from, but at least {MIN_TRACKLETS} are needed. Pass "
                "more tracks."
            )
        self.constraints = self._constraints()
        self.state = read_json(out / ROUNDS) if (out / ROUNDS).is_file() else self._new_state()

    def _constraints(self) -> Constraints | None:
        """Return a person's answers on the tracks to learn from."""
        if self.settings.constraints is None:
            return None
        constraints, left_out = self.learned.constraints(read_constraints(self.settings.constraints))
        if left_out:
            warn(f"{self.settings.constraints}: {left_out} pairs left out: a track is held out or unknown.")
        return constraints

    def _new_state(self) -> dict[str, Any]:
        crops, pairs = self.tracked.crops, self.learned.simultaneous()
        answers = self.constraints or Constraints()
        return {
            "source": f"{Path(self.source).name} ({Embedder(self.given).describe()['model']})",
            "data": {
                "sources": list(crops.source_names),
                "crops": len(crops),
                "tracklets": len(self.tracked),
                "cameras": len(np.unique(crops.camids[crops.camids >= 0])),
                "held_out_tracklets": len(self.held_out),
                "certain_negatives": len(pairs),
                "left_out": len(self.left_out),
                "answers": len(answers.must_link) + len(answers.cannot_link),
            },
            "seconds": 0.0,
            "given": None,
            "batchnorm": None,
            "rounds": [],
            "verdict": None,
        }

    def run(self) -> Adapted:
        """Do what the folder lacks."""
        data = self.state["data"]
        console.print(
            f"{data['crops']:,} crops in {data['tracklets']:,} tracklets of {data['cameras']} cameras; "
            f"{data['held_out_tracklets']:,} tracklets are held out; {data['certain_negatives']:,} pairs of the others "
            "are simultaneous in one camera"
        )
        before = self._separation(self.given)
        self.state["given"] = before.as_dict()
        console.print(f"given model: {_figures(self.state['given'])}")
        teacher, found = self._start(), self.state["batchnorm"]
        rounds = 0 if self.settings.bn_only else self.settings.rounds
        after = None if found and rounds else self._separation(teacher)  # a resumed adaptation has these figures
        if after is not None:
            found = self.state["batchnorm"] = after.as_dict()
            self._write()
        console.print(f"BatchNorm statistics of the new crops: {_figures(found)}")
        if rounds and self.settings.guard and not _better(self.state["given"], found):
            console.print("These statistics are not better: the first round starts from the given model")
            teacher = self.given
        for number in range(1, rounds + 1):
            teacher = self._round(number, rounds, teacher)
            entry = self.state["rounds"][number - 1]
            after = None if "held_out" in entry and number < rounds else self._separation(teacher)
            if after is not None:
                entry["held_out"] = after.as_dict()
                self._write()
            console.print(f"round {number}: {_figures(entry['held_out'])}")
        assert after is not None  # the last one is always computed
        return self._finish(teacher, before, after)

    def _start(self) -> ReIDModel:
        """Return the model with re-estimated statistics."""
        path = self.out / START
        if path.is_file():
            return load_model(path, self.distributed.device)
        adapted = deepcopy(self.given)
        store = self.pixels.store.take(self.rows)
        if not reestimate_batchnorm(adapted, store, batch_size=self.config.eval.batch_size, seed=self.config.seed):
            if self.settings.bn_only:
                raise ConfigError(f"{self.source} has no BatchNorm layer. Leave out --bn-only.")
            warn("The model has no BatchNorm layer, so no statistics were re-estimated.")
        save_checkpoint(path, adapted)
        return adapted

    def _round(self, number: int, rounds: int, teacher: ReIDModel) -> ReIDModel:
        """Match, train and return the moving average; what the folder contains is not done again."""
        folder, done = self.out / f"round-{number}", len(self.state["rounds"]) >= number
        if done:
            return load_model(folder / LAST, self.distributed.device)
        began = time.monotonic()
        features = self._embed(teacher, self.rows)
        pids, confidence, entry = self._labels(folder / LABELS, features)
        kept = np.flatnonzero(pids >= 0)
        crops = replace(self.learned.crops.take(kept), pids=pids[kept])
        data = TrainingData(Pixels(crops, self.pixels.store.take(self.rows[kept])), (), self.left_out)
        console.print(
            f"round {number} of {rounds}: {entry['identities']:,} identities, {entry['in_several_tracklets']:,} of "
            f"them of several tracklets; {entry['left_out']:,} uncertain tracklets left out; silhouette "
            f"{entry['silhouette']:.3f}"
        )
        training = folder / "run"
        if (training / SETTINGS).is_file():
            trainer = Trainer(run_folder.run_settings(training), training, self.distributed, data)
        else:
            config = self._round_config(number, rounds, began, entry["identities"])
            trainer = Trainer(config, training, self.distributed, data)
        if (training / LAST).is_file():
            progress = trainer.resume()
        else:
            _continue_from(trainer, teacher, features[kept], confidence[kept])
            progress = trainer.fit(overwrite=True)
        entry |= {"steps": progress.step, "training_seconds": round(progress.seconds, 1)}
        self.state["rounds"].append(entry)
        self.state["seconds"] += time.monotonic() - began
        save_checkpoint(folder / LAST, trainer.eval_model)
        self._write()
        return deepcopy(trainer.eval_model)

    def _round_config(self, number: int, rounds: int, began: float, identities: int) -> Config:
        """Return the settings of a round: its part of the time and of the falling learning rate.

        Batches become smaller if there are fewer identities than they contain.
        """
        config, left = self.config.model_copy(deep=True), 1 - (number - 1) / rounds
        sampler = config.sampler
        if identities < 2:
            raise DataError(
                f"The tracks of {self.source} were matched to {identities} identities, and training needs two. Pass "
                "more tracks, or a lower --confidence."
            )
        if identities * sampler.crops_per_id < sampler.batch_size:
            sampler.batch_size = identities * sampler.crops_per_id
            console.print(f"batches of {sampler.batch_size} crops, since there are only {identities} identities")
        config.optim.lr *= left
        config.schedule.final = (1 - number / rounds) / left
        config.seed += number
        if self.settings.minutes:
            spent = self.state["seconds"] + time.monotonic() - began
            remaining = 60 * self.settings.minutes - spent
            config.schedule.minutes = max(remaining / (rounds - number + 1) / 60, 0.01)
        return config

    def _labels(
        self, path: Path, features: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[str, Any]]:
        """Return an identity for each crop, −1: left out, its confidence, and a description.

        They are matched once and then read from `path`.
        """
        if path.is_file():
            table = pq.read_table(path)
            return table["pid"].to_numpy(), table["confidence"].to_numpy(), read_json(path.with_suffix(".json"))
        tracklets = self.learned.tracklets(features)
        matches = match(tracklets, settings=self.matching, constraints=self.constraints)
        answered = [key[1] for pair in (self.constraints or Constraints()).must_link for key in pair]
        certain = np.isin(tracklets.track, answered)
        label, weight, description = pseudo_identities(
            matches, self.settings.confidence, self.settings.uncertain, certain
        )
        of_crop, confident = np.full(len(self.learned), -1), np.zeros(len(self.learned), np.float32)
        of_crop[tracklets.track], confident[tracklets.track] = label, weight
        pids, confidence = of_crop[self.learned.crops.tracks], confident[self.learned.crops.tracks]
        description["crops"] = int((pids >= 0).sum())
        pairs = self.learned.simultaneous()
        one = (of_crop[pairs[:, 0]] >= 0) & (of_crop[pairs[:, 0]] == of_crop[pairs[:, 1]])
        description["violated_certain_negatives"] = int(one.sum())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path.with_suffix(".json"), description)
        names = [Path(name).name for name in self.learned.crops.paths]
        with atomic_file(path) as temporary:
            columns = {"path": names, "tracklet": self.learned.crops.tracks, "pid": pids, "confidence": confidence}
            pq.write_table(pa.table(columns), temporary)
        return pids, confidence, description

    def _finish(self, adapted: ReIDModel, before: TrackSeparation, after: TrackSeparation) -> Adapted:
        """Compare, and write the result."""
        interval = gain_interval(before, after)
        accepted = not self.settings.guard or (interval is not None and interval[0] > 0)
        outcome, reason = _verdict(interval, len(before.tracks)) if self.settings.guard else ("unchecked", _UNCHECKED)
        self.state["verdict"] = {
            "accepted": accepted,
            "outcome": outcome,
            "reason": reason,
            "gain_interval": None if interval is None else [round(value, 4) for value in interval],
            "given": before.as_dict(),
            "adapted": after.as_dict(),
        }
        self._write()
        self.config.data.train = [] if self.settings.data is None else [self.settings.data]
        save_settings(self.config, self.out / SETTINGS)
        write_json(self.out / "environment.json", environment(self.distributed))
        save_checkpoint(self.out / BEST, adapted if accepted else self.given, **self._origin())
        write_adaptation(self.out / PAGE, self.state, self._sample())
        console.print(reason)
        if not accepted:
            last = f"round-{len(self.state['rounds'])}/{LAST}" if self.state["rounds"] else START
            warn(f"{self.out / BEST} is the given model, unchanged. The adapted one is {self.out / last}.")
        return Adapted(self.out / BEST, accepted, self.state)

    def _sample(self) -> dict[str, list[tuple[str, str]]]:
        """Return crops of some identities of several tracklets of the last round, one of each tracklet."""
        if not self.state["rounds"]:
            return {}
        table = pq.read_table(self.out / f"round-{len(self.state['rounds'])}" / LABELS)
        crops, pids = self.learned.crops, table["pid"].to_numpy()
        first = np.unique(crops.tracks, return_index=True)[1]
        first = first[pids[first] >= 0]
        several = np.flatnonzero(np.bincount(pids[first]) > 1)
        rng, camids = np.random.default_rng(0), crops.camids.tolist()
        groups = {}
        for pid in np.sort(rng.permutation(several)[:_SHOWN]).tolist():
            rows = first[pids[first] == pid]
            shown = [
                (crops.paths[row], "unknown camera" if camids[row] < 0 else f"camera {crops.camera_name(camids[row])}")
                for row in rows[:_SHOWN].tolist()
            ]
            groups[f"identity {pid}: {len(rows)} tracklets"] = shown
        return groups

    def _origin(self) -> dict[str, Any]:
        """Return the origin of the model for the checkpoint, without local paths."""
        checkpoint = checkpoint_in(Path(self.source))
        content = load_checkpoint(checkpoint) if checkpoint.is_file() else {}
        kept = {key: content[key] for key in ("source", "config") if content.get(key)}
        return {**kept, "adaptation": self.state}

    def _separation(self, model: ReIDModel) -> TrackSeparation:
        held = self.held_out
        features = self._embed(model, self.held_rows)
        return separate_tracks(features, held.crops.tracks, held.seconds, held.simultaneous())

    def _embed(self, model: ReIDModel, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        pixels = Pixels(self.pixels.crops.take(rows), self.pixels.store.take(rows))
        return embed_pixels(model, pixels, self.distributed, self.config, "Embedding", flip=False)

    def _write(self) -> None:
        write_json(self.out / ROUNDS, self.state)


def pseudo_identities(
    matches: Matches, confidence: float, uncertain: str, certain: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[str, Any]]:
    """Return labels of the matched tracklets `[T]`, −1: left out, the confidence of the labels, and a description.

    The confidence of a label is the mean of its tracklets' mean p(same).

    Args:
        matches: result of the matcher.
        confidence: least mean p(same) of a tracklet with its identity (`confidence.mean_p_same`).
        uncertain: what happens to tracklets below it: "leave_out", or "instance" (each becomes a separate identity).
        certain: `[T]` tracklets that are kept with any confidence: a person joined them with another.
    """
    labels, p_same = matches.identity.copy(), mean_p_same(matches.identity, matches.links)
    doubtful = ((p_same < confidence) & ~certain) | ~matches.tracklets.has_feature
    labels[doubtful] = -1
    if uncertain == "instance":
        alone = doubtful & matches.tracklets.has_feature
        labels[alone] = matches.identity.max(initial=0) + 1 + np.arange(int(alone.sum()))
    kept = labels >= 0
    sizes = np.bincount(labels[kept])
    mean = np.bincount(labels[kept], p_same[kept]) / np.maximum(sizes, 1)
    weight = np.where(kept, mean[labels], 0.0).astype(np.float32) if len(mean) else np.zeros(len(labels), np.float32)
    description = {
        "tracklets": len(labels),
        "identities": int((sizes > 0).sum()),
        "in_several_tracklets": int((sizes > 1).sum()),
        "left_out": int((labels < 0).sum()),
        "threshold": round(float(matches.threshold), 4),
        "silhouette": matches.protocol["silhouette"],
        "certain_negatives_within_threshold": None if matches.fmr is None else round(matches.fmr, 5),
    }
    return labels, weight, description


def _given_model(model: str, settings: AdaptSettings, overrides: Sequence[str]) -> tuple[ReIDModel, AdaptKeys]:
    """Return the model in evaluation mode, and the settings of a round, whose network is that of the model."""
    keys = load_settings(AdaptKeys, shipped_configs()["adapt.yaml"], overrides)
    if settings.weights is not None:
        keys.model.backbone, keys.model.weights = model, settings.weights
        network = build_model(keys.model, seed=keys.seed).eval()
    else:
        changed = [text for text in overrides if text.startswith("model.")]
        if changed:
            raise ConfigError(f"{changed[0]} would change the network of {model}. Remove it, or name a backbone.")
        network = Embedder(model, device="cpu").model.eval()
    spec = {key: value for key, value in network.spec.items() if key not in ("num_classes", "seed")}
    keys.model = ModelConfig(**spec)
    return network, keys


def _continue_from(
    trainer: Trainer, teacher: ReIDModel, features: NDArray[np.float32], confidence: NDArray[np.float32]
) -> None:
    """Start a round with the weights of the teacher; a memory of centroids, and each identity's classifier, with them.

    With centroid c and mean length |e| of the embeddings, the weights of the classifier are `16 c / |e|`.
    """
    crops = trainer.data.train.crops
    labels, pid_of_label = crops.labels()
    weights_of_labels = np.zeros(len(pid_of_label), np.float32)
    weights_of_labels[labels] = confidence  # equal for all crops of an identity
    for loss in trainer.objective.extra.values():
        if isinstance(loss, CentroidMemory):
            columns = (features, labels, crops.camids, weights_of_labels)
            loss.start(*(torch.from_numpy(column) for column in columns))
    weights = {name: value for name, value in teacher.state_dict().items() if not name.startswith("classifier.")}
    classifier = trainer.model.classifier
    if isinstance(classifier, nn.Linear):
        centroids = np.zeros((classifier.out_features, features.shape[1]), np.float32)
        np.add.at(centroids, labels, features)
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
        images = torch.from_numpy(trainer.data.train.store.read(np.arange(min(64, len(labels)))))
        with torch.no_grad():
            device = next(teacher.parameters()).device
            length = teacher(teacher.preprocessing(images.to(device))).embeddings.norm(dim=1).mean()
        weights["classifier.weight"] = _SHARPNESS * torch.from_numpy(centroids).to(device) / length
    for model in (trainer.model, trainer.eval_model):
        model.load_state_dict(weights, strict=False)


def _figures(found: dict[str, Any]) -> str:
    if not found["tracks"]:
        return "held-out tracks: not enough data"
    distinct = "undefined" if found["d_prime"] is None else f"{found['d_prime']:.2f}"
    return (
        f"held-out tracks: d' {distinct}, AUC {100 * found['auc']:.2f}, re-associated {100 * found['rank1']:.2f} % "
        f"({found['tracks']} tracks)"
    )


def _verdict(interval: tuple[float, float] | None, tracks: int) -> tuple[str, str]:
    """Return "better", "worse" or "undecided", and a sentence that explains it."""
    more = "Pass more tracks or raise --held-out, or keep the adapted model without a check: --no-guard."
    if interval is None:
        return "undecided", (
            f"Undecided whether the adapted model is better: {tracks} held-out tracks are simultaneous with another "
            f"in their camera, at least {FEWEST_TRACKS} are needed. {more}"
        )
    low, high = interval
    gain = f"d' of {tracks} held-out tracks changes by {low:+.2f} to {high:+.2f} (90 % interval)"
    if low > 0:
        return "better", f"The adapted model separates held-out tracks better: {gain}."
    if high < 0:
        return "worse", f"The adapted model separates held-out tracks worse: {gain}."
    return "undecided", f"Undecided whether the adapted model is better: {gain}. {more}"


def _better(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return None not in (before["d_prime"], after["d_prime"]) and after["d_prime"] > before["d_prime"]
