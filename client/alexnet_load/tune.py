"""Tune Triton's instances, threads, queue delay and preferred batch size for an SLO, with trials on real servers.

The search varies one dimension after the other: instances x threads, queue delay, preferred batch size. After each, it keeps
the setting with the highest rate that meets the SLO. At the end the best setting and the default are measured alternately
``ROUNDS`` times; the default stays unless the best setting is faster each time.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from alexnet_client.cpus import usable_cpus
from alexnet_client.errors import BadInput, ClientError
from alexnet_client.files import check_writable, reason, write_text
from alexnet_load.run import Plan
from alexnet_load.runner import OnProgress
from alexnet_load.slo import Slo
from alexnet_load.slo_search import search
from alexnet_load.trial_server import serving
from alexnet_load.trials import Trials

Config: TypeAlias = model_config_pb2.ModelConfig
Changes: TypeAlias = dict[str, list[dict[str, Any]]]
ROUNDS = 3
"""Comparisons of the best setting with the default."""
PRECISION = 0.1
START_RATE = 20.0
"""Rate of the first trial, requests per second."""
SEEDS_PER_MEASUREMENT = 1000
"""More than a search has trials, so that no two measurements use the same arrivals."""
THREADS = "intra_op_thread_count"


@dataclass(frozen=True)
class Setting:
    """The tuned part of a model configuration.

    Attributes:
        instances: instances of the model.
        threads: threads of each instance; 0 for one per CPU.
        queue_delay_us: maximum time for which Triton delays a batch to fill it, microseconds.
        preferred_batch: preferred batch size; 0 for none.
    """

    instances: int
    threads: int
    queue_delay_us: int
    preferred_batch: int

    def describe(self, default: Setting) -> str:
        """Return the differences from the default."""
        ours, theirs = asdict(self), asdict(default)
        words = [f"{name.replace('_', ' ')} {value}" for name, value in ours.items() if value != theirs[name]]
        return ", ".join(words) or "default"


@dataclass(frozen=True)
class Tuned:
    """Result of tuning.

    Attributes:
        best: best setting; the default if no setting is clearly better.
        default: setting of the existing configuration.
        speedup, low, high: rate of the best setting divided by that of the default: median, minimum and maximum.
        tried: all settings and their highest rate that meets the SLO, requests per second, best first; 0 if none does.
    """

    best: Setting
    default: Setting
    speedup: float
    low: float
    high: float
    tried: tuple[tuple[Setting, float], ...]

    @property
    def slo_met(self) -> bool:
        """Whether any setting meets the SLO at any rate."""
        return any(rate for _, rate in self.tried)

    def __str__(self) -> str:
        if self.speedup == math.inf:
            return "the default violates the SLO at all rates"
        return f"speed-up {self.speedup:.2f} ({self.low:.2f} - {self.high:.2f}) over the default"


def changes(*, cpus: int, max_batch: int) -> Changes:
    """Return the values to try, by dimension, for a server with ``cpus`` CPUs and a maximum batch size."""
    split = [(2**power, cpus // 2**power) for power in range(1, cpus.bit_length()) if 2**power <= cpus]
    shapes = dict.fromkeys([(1, 0), (2, 0), *split, (cpus, 1)])
    return {
        "instances x threads": [{"instances": instances, "threads": threads} for instances, threads in shapes],
        "queue delay": [{"queue_delay_us": delay} for delay in (0, 500, 2000, 5000)],
        "preferred batch size": [{"preferred_batch": size} for size in (0, 8, 16, 32, 64) if size <= max_batch],
    }


def tune(default: Setting, measure: Callable[[Setting], float], values: Changes) -> Tuned:
    """Find the best setting, starting with the default.

    ``measure`` returns the highest rate that meets the SLO, requests per second; 0 if none does.
    """
    rates = {default: measure(default)}
    best = default
    for dimension in values.values():
        for setting in [replace(best, **change) for change in dimension]:
            if setting not in rates:
                rates[setting] = measure(setting)
        best = max(rates, key=lambda each: rates[each])
    ratios = [1.0] if best == default else [_ratio(measure(best), measure(default)) for _ in range(ROUNDS)]
    if min(ratios) <= 1:
        best, ratios = default, [1.0]
    tried = tuple(sorted(rates.items(), key=lambda item: -item[1]))
    return Tuned(best, default, statistics.median(ratios), min(ratios), max(ratios), tried)


def _ratio(rate: float, default_rate: float) -> float:
    return rate / default_rate if default_rate else math.inf if rate else 1.0


def tune_repository(
    repository: Path,
    plan: Plan,
    slo: Slo,
    *,
    on_step: Callable[[str], None],
    on_progress: OnProgress,
) -> Tuned:
    """Tune a model of a repository on servers that are started for this purpose; the repository is not changed.

    Args:
        repository: the repository.
        plan: plan of a trial; its target is replaced.
        slo: the SLO.
        on_step: called with the result of each measurement.
        on_progress: called several times per second during a trial.

    Raises:
        ClientError: the default configuration cannot be served, or the plan is invalid.
    """
    config = read_config(repository, plan.model)
    default = setting_of(config)
    rates = {default: START_RATE}
    measurements = itertools.count()

    def measure(setting: Setting) -> float:
        start = rates.get(setting) or rates[default] or START_RATE
        trial_plan = replace(plan, seed=plan.seed + SEEDS_PER_MEASUREMENT * next(measurements))
        try:
            rate = measure_setting(repository, setting, trial_plan, slo, start_rate=start, on_progress=on_progress)
        except ClientError as error:
            if setting == default:
                raise
            on_step(f"{setting.describe(default)}: cannot be served ({error})")
            return 0.0
        rates[setting] = rate
        on_step(f"{setting.describe(default)}: {rate:.0f} requests/s")
        return rate

    return tune(default, measure, changes(cpus=usable_cpus(), max_batch=config.max_batch_size))


def measure_setting(
    repository: Path,
    setting: Setting,
    plan: Plan,
    slo: Slo,
    *,
    start_rate: float,
    max_rate: float = math.inf,
    on_progress: OnProgress = lambda progress: None,
) -> float:
    """Return the highest rate at which a setting meets the SLO, requests per second; it is served for this purpose.

    The arguments are those of ``tune_repository`` and of ``search``.

    Raises:
        ClientError: the setting cannot be served, or the plan is invalid.
    """
    with TemporaryDirectory(prefix="alexnet-tune-") as scratch:
        copy = Path(scratch, "repository")
        copy_model(repository, copy, plan.model, setting)
        with serving(copy, log=Path(scratch, "triton.log")) as server:
            trials = Trials(replace(plan, target=server.target), slo, on_progress=on_progress)
            return search(trials, slo, start_rate=start_rate, max_rate=max_rate, precision=PRECISION, repeats=1).rate


def read_config(repository: Path, model: str) -> Config:
    """Read the ``config.pbtxt`` of a model.

    Raises:
        BadInput: it is missing or damaged, or the model cannot be tuned.
    """
    path = repository / model / "config.pbtxt"
    try:
        config = text_format.Parse(path.read_text(), Config())
    except OSError as error:
        raise BadInput(f"{path}: {reason(error)}; choose a Triton model repository and a model in it") from None
    except text_format.ParseError as error:
        raise BadInput(f"{path}: {error}") from None
    preferred = config.dynamic_batching.preferred_batch_size
    if not config.HasField("dynamic_batching") or len(config.instance_group) != 1 or len(preferred) > 1:
        raise BadInput(
            f"{path}: tuning supports only dynamic batching, one instance group and at most one preferred batch size"
        )
    return config


def setting_of(config: Config) -> Setting:
    """Return the tuned part of a configuration."""
    return Setting(
        instances=config.instance_group[0].count,
        threads=int(config.parameters[THREADS].string_value or 0) if THREADS in config.parameters else 0,
        queue_delay_us=config.dynamic_batching.max_queue_delay_microseconds,
        preferred_batch=next(iter(config.dynamic_batching.preferred_batch_size), 0),
    )


def apply(setting: Setting, config: Config) -> None:
    """Write a setting into a configuration."""
    config.instance_group[0].count = setting.instances
    config.dynamic_batching.max_queue_delay_microseconds = setting.queue_delay_us
    config.dynamic_batching.preferred_batch_size[:] = [setting.preferred_batch] if setting.preferred_batch else []
    if setting.threads:
        config.parameters[THREADS].string_value = str(setting.threads)
    elif THREADS in config.parameters:
        del config.parameters[THREADS]


def copy_model(repository: Path, target: Path, model: str, setting: Setting) -> None:
    """Copy one model of a repository, with another setting; its files are hard links if the file system allows it."""
    config = read_config(repository, model)
    apply(setting, config)
    shutil.copytree(repository / model, target / model, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
    path = target / model / "config.pbtxt"
    path.unlink()  # a hard link to the original
    path.write_text(text_format.MessageToString(config))


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)  # realpath, because a relative symbolic link would break
    except OSError:
        shutil.copy2(source, target)


def configuration_path(repository: Path, model: str, name: str) -> Path:
    """Return the path of a named configuration.

    Raises:
        BadInput: the name is invalid, the model cannot be tuned, or the file cannot be written.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise BadInput(f"invalid configuration name {name!r}; use letters, digits, - and _")
    read_config(repository, model)
    path = repository / model / "configs" / f"{name}.pbtxt"
    check_writable(path)
    return path


def write_configuration(repository: Path, model: str, tuned: Tuned, name: str, slo: Slo) -> Path:
    """Write the best setting as ``configs/<name>.pbtxt``, for ``alexnet-server serve --config-name``.

    An existing configuration of this name is replaced. A comment in the file states the SLO and the result.

    Raises:
        BadInput: the name is invalid, or the file cannot be written.
    """
    path, config = configuration_path(repository, model, name), read_config(repository, model)
    apply(tuned.best, config)
    lines = (
        "# Written by `alexnet-load tune` from config.pbtxt, which explains the other settings.",
        f"# Changed: {tuned.best.describe(tuned.default)}. Measured at {slo}: {tuned}.",
        text_format.MessageToString(config),
    )
    write_text(path, "\n".join(lines))
    return path
