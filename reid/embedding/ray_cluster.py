"""Embed on several machines with Ray Data, which schedules, restarts and resumes."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from reid.core.console import console
from reid.core.errors import ConfigError, DataError, ModelError, ReidError, last_line
from reid.core.version import __version__
from reid.core.workers import available_cores
from reid.embedding.stream import Unit

RESERVED_CPUS = 2
"""CPUs that workers must leave: one for Ray's filter of finished units, one for its readers and writers.

Ray Data waits without end and without an error, if actors take all CPUs.
"""
_LIGHT = 0.25
"""CPUs of a task that only passes a unit on or writes a shard."""
_OBJECT_STORE_BYTES = 500_000_000


@dataclass(frozen=True)
class RayCluster:
    """Workers of a Ray cluster, each with an `Embedder` or another object that has its method `describe`.

    Ray connects to the cluster of the environment variable RAY_ADDRESS or of `ray start` on this machine; without one
    it starts processes on this machine, which end with this one.

    Args:
        open_embedder: opens the model, or that object, on a worker.
        workers: most workers; 0 for as many as the CPUs and GPUs allow. Ray starts them as work arrives.
        gpus: of one worker; a fraction lets several use one GPU.

    Raises:
        ConfigError: Ray is not installed.
    """

    open_embedder: Callable[[], Any]
    workers: int = 0
    gpus: float = 0.0

    def run(
        self, work: Callable[[Any, Unit], pa.Table], units: Sequence[Unit], folder: Path, meta: Mapping[str, Any]
    ) -> None:
        """See `reid.embedding.stream.Cluster`.

        Raises:
            ConfigError: the cluster has too few CPUs or GPUs.
            ReidError: a worker failed; names the machine, the process and the file.
        """
        with _connected() as ray:
            workers = self._count_workers(ray.cluster_resources(), len(units))
            console.print(f"Ray: {len(units)} units of work, up to {workers} at a time")
            self._run(work, units, folder.absolute(), dict(meta), workers)

    def _count_workers(self, resources: Mapping[str, float], units: int) -> int:
        """Return how many workers may run, and leave CPUs to the rest of the job."""
        cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
        most = int(cpus) - RESERVED_CPUS
        if self.gpus:
            most = min(most, int(gpus / self.gpus + 1e-9))
        has = f"The Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs"
        if most < 1:
            raise ConfigError(
                f"{has}; one worker needs 1 CPU and {self.gpus:g} GPUs, and {RESERVED_CPUS} CPUs must be left for "
                "reading and writing. Add machines, or start Ray with a larger --num-cpus."
            )
        if self.workers > most:
            raise ConfigError(
                f"{has}: {most} workers are possible, because {RESERVED_CPUS} CPUs must be left for reading and "
                f"writing. Pass --workers {most} or fewer, or add machines."
            )
        return max(1, min(self.workers or most, units))

    def _run(
        self, work: Callable[[Any, Unit], pa.Table], units: Sequence[Unit], folder: Path, meta: Any, workers: int
    ) -> None:
        from ray.data import ActorPoolStrategy, DataContext, SaveMode, read_datasource
        from ray.data.checkpoint import CheckpointConfig

        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = CheckpointConfig(
            id_column="id", checkpoint_path=str(folder / "finished"), delete_checkpoint_on_success=False
        )
        checkpoint.checkpoint_actor_pool_max_size = 1
        checkpoint.checkpoint_actor_memory_bytes = 2**28
        context = DataContext.get_current().copy()
        context.checkpoint_config = checkpoint
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        with DataContext.current(context), _worker_errors(folder):
            rows = read_datasource(_source(units), override_num_blocks=len(units), num_cpus=_LIGHT)
            shards = rows.map_batches(
                Worker,
                fn_constructor_args=(self.open_embedder, work, __version__, meta),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=1,
                num_gpus=self.gpus or None,
                compute=ActorPoolStrategy(min_size=1, max_size=workers),
            )
            shards.write_parquet(str(folder), ray_remote_args={"num_cpus": _LIGHT}, mode=SaveMode.APPEND)


class Worker:
    """An actor: one process with an `Embedder`. A problem while it starts is raised with the first unit.

    Args:
        open_embedder, work: see `RayCluster`.
        version: of this package in the process that started the job.
        meta: `Embedder.describe()` there.
    """

    def __init__(
        self,
        open_embedder: Callable[[], Any],
        work: Callable[[Any, Unit], pa.Table],
        version: str,
        meta: Mapping[str, Any],
    ) -> None:
        self.name = f"Worker {platform.node()}, process {os.getpid()}"
        self._work = work
        self._problem: Exception | None = None
        try:
            if __version__ != version:
                raise ModelError(f"has reid {__version__}, but the job has {version}. Install the same version.")
            self._embedder = open_embedder()
            differences = [key for key, value in self._embedder.describe().items() if value != meta.get(key)]
            if differences:
                key = differences[0]
                raise ModelError(
                    f"opened another model: {key} is {self._embedder.describe()[key]!r}, but {meta.get(key)!r} in the "
                    "process that started the job. Copy the same file to all machines."
                )
        except Exception as error:  # an exception here would make Ray start the actor again and again
            self._problem = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the rows of a shard for a table with one unit, with the unit's id."""
        unit = table.to_pylist()[0]
        try:
            if self._problem is not None:
                raise self._problem
            shard = self._work(self._embedder, unit)
        except ReidError as error:
            kind = next((kind for kind in (ConfigError, ModelError) if isinstance(error, kind)), DataError)
            raise kind(f"{self.name}: {error}") from None
        except Exception as error:
            raise ModelError(f"{self.name}: {type(error).__name__}: {last_line(error)}") from error
        return shard.append_column("id", pa.array([unit["id"]] * len(shard), pa.string()))


def _source(units: Sequence[Unit]) -> Any:
    """Return a data source with one block per unit. Ray would join small units that come from a file."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    tables = [pa.Table.from_pylist([dict(unit)]) for unit in units]

    def read(table: pa.Table) -> Callable[[], list[pa.Table]]:
        return lambda: [table]

    class Units(Datasource):
        def estimate_inmemory_data_size(self) -> int:
            return sum(table.nbytes for table in tables)

        def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
            return [
                ReadTask(read(table), BlockMetadata(1, table.nbytes, exec_stats=None, input_files=None))
                for table in tables
            ]

    return Units()


@contextmanager
def _connected() -> Iterator[Any]:
    """Yield the package `ray`, connected to a cluster or to processes that are started here."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray. Run: pip install 'reid-toolkit[ray]'") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"logging_level": "critical", "log_to_driver": False, "configure_logging": False}
    try:
        try:
            ray.init(address="auto", **options)
        except ConnectionError:
            ray.init(
                address="local",
                num_cpus=available_cores() + RESERVED_CPUS,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                **options,
            )
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _worker_errors(folder: Path) -> Iterator[None]:
    """Turn an exception of a worker into an error that says where it happened."""
    try:
        yield
    except Exception as error:
        chain: list[Any] = []
        current = cast(Any, error)
        while current is not None and current not in chain:
            chain.append(current)
            current = getattr(current, "cause", None) or current.__cause__
        for found in reversed(chain):  # the outer ones have Ray's traceback in their text
            if isinstance(found, ReidError):
                raise found.with_traceback(None) from None
        origin = re.search(r"pid=(\d+), ip=([^,)]+)", str(error))
        place = f"Worker {origin[2]}, process {origin[1]}" if origin else "A worker"
        cause = next((found for found in reversed(chain) if isinstance(found, OSError)), chain[-1])
        free = shutil.disk_usage(folder).free / 1e9
        raise DataError(
            f"{place} failed: {last_line(cause)}. Shards are written to {folder} ({free:.1f} GB "
            "free here). Correct the problem and run the command again: finished units are kept."
        ) from error
