"""Settings tried on real servers, and the best one written as a named configuration. The shell around ``tuning``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf import text_format

from alexnet_client import BatchOptions
from alexnet_client.errors import BadInput, ClientError
from alexnet_load.atomic import check_writable, write_atomically
from alexnet_load.conduct import Progress
from alexnet_load.options import NO_BATCHING
from alexnet_load.run import Plan
from alexnet_load.slo import Found, Objective, search
from alexnet_load.trial_server import Config, changed, read_config, serving
from alexnet_load.trials import Trials
from alexnet_load.tuning import Setting, Tuned, changes, describe, tune

PRECISIONS = (0.2, 0.1, 0.05)
"""How near a search comes, by rung; a duel has the last one's. Its rounds are what repeats a trial."""
SEEDS = 1000
"""Between two measurements: more than a search has trials, so that none sees another one's arrivals."""
THREADS = "intra_op_thread_count"
OnProgress = Callable[[Progress], None]
OnStep = Callable[[str], None]


def default_setting(repository: Path, model: str, batching: BatchOptions | None = None) -> Setting:
    """What a repository and a client are now.

    Raises:
        BadInput: there is no such model, or its configuration says nothing of what is tuned.
    """
    config, batching = read_config(repository, model), batching or BatchOptions()
    if not config.HasField("dynamic_batching") or len(config.instance_group) != 1:
        raise BadInput(f"{model}: only a model with dynamic batching and one instance group can be tuned")
    return Setting(
        instances=config.instance_group[0].count,
        threads=int(config.parameters[THREADS].string_value or 0) if THREADS in config.parameters else 0,
        max_batch=config.max_batch_size,
        queue_delay_us=config.dynamic_batching.max_queue_delay_microseconds,
        client_batch=batching.max_batch,
        client_delay_ms=1000 * batching.max_delay_s,
    )


def apply(setting: Setting, config: Config) -> None:
    """Make a configuration say what a setting says of the server."""
    config.max_batch_size = setting.max_batch
    config.instance_group[0].count = setting.instances
    config.dynamic_batching.max_queue_delay_microseconds = setting.queue_delay_us
    if setting.threads:
        config.parameters[THREADS].string_value = str(setting.threads)
    elif THREADS in config.parameters:
        del config.parameters[THREADS]
    for each in config.model_warmup:  # Triton refuses a warm-up larger than the largest batch
        each.batch_size = min(each.batch_size, setting.max_batch)


def client_options(setting: Setting) -> dict[str, float]:
    """What a setting says of the client, as fields of ``BatchOptions``."""
    if setting.client_batch == 1:
        return dict(NO_BATCHING)
    return {"max_batch": setting.client_batch, "max_delay_s": setting.client_delay_ms / 1000}


def tune_repository(
    repository: Path,
    plan: Plan,
    objective: Objective,
    *,
    count: int,
    start_rate: float,
    on_step: OnStep = lambda text: None,
    on_progress: OnProgress = lambda progress: None,
) -> Tuned:
    """Try settings of a model on servers of its own, by the rate at which they keep an objective.

    Args:
        repository: its own files are not touched.
        plan: a trial; its target is set here.
        objective: to be kept.
        count: settings to try at first.
        start_rate: for the first search, requests a second.
        on_step: told what is tried and what it was worth.
        on_progress: told how a trial goes.

    Raises:
        ClientError: the default cannot be served, or a plan makes no sense.
    """
    default = default_setting(repository, plan.model)
    rates: dict[Setting, float] = {}
    scores = itertools.count()
    with TemporaryDirectory(prefix="alexnet-tune-") as scratch:

        def score(setting: Setting, rung: int) -> float:
            begin = rates.get(setting) or rates.get(default) or start_rate
            precision = PRECISIONS[min(rung, len(PRECISIONS) - 1)]
            fresh = replace(plan, seed=plan.seed + SEEDS * next(scores))
            how = partial(search, start_rate=begin, precision=precision, repeats=1)
            try:
                rate = measure(
                    repository, Path(scratch), setting, fresh, objective, search=how, on_progress=on_progress
                )
            except ClientError as error:
                if setting == default:
                    raise
                on_step(f"{describe(setting, default)}: cannot be served ({error})")
                return 0.0
            rates[setting] = rate
            on_step(f"{describe(setting, default)}: {rate:.0f} requests/s")
            return rate

        processors, least = len(os.sched_getaffinity(0)), _least_batch(repository, plan.model)
        values = changes(default, processors=processors, least_batch=least)
        return tune(default, score, values=values, count=count, seed=plan.seed)


def measure(
    repository: Path,
    scratch: Path,
    setting: Setting,
    plan: Plan,
    objective: Objective,
    *,
    search: Callable[[Trials, Objective], Found],
    on_progress: OnProgress = lambda progress: None,
) -> float:
    """The highest rate at which a setting keeps an objective, on a server of its own, requests a second.

    Args:
        repository: with the model; not touched.
        scratch: a directory for a copy of it.
        setting: to be tried.
        plan: a trial; its target and its batching are set here.
        objective: to be kept.
        search: finds the rate.
        on_progress: told how a trial goes.

    Raises:
        ClientError: the setting cannot be served, or a plan makes no sense.
    """
    with TemporaryDirectory(dir=scratch) as directory:
        copy = Path(directory, "repository")
        changed(repository, copy, lambda config: apply(setting, config), model=plan.model, alone=True)
        with serving(copy, log=Path(directory, "triton.log")) as server:
            there = replace(plan, target=server.target, batching=client_options(setting))
            return search(Trials(there, objective, on_progress=on_progress), objective).rate


def _least_batch(repository: Path, model: str) -> int:
    """Triton refuses an ensemble that takes more images at once than a model in it."""
    configs = [read_config(repository, path.parent.name) for path in repository.glob("*/config.pbtxt")]
    around = [each for each in configs if any(step.model_name == model for step in each.ensemble_scheduling.step)]
    return max((each.max_batch_size for each in around), default=1)


def configuration_path(repository: Path, model: str, name: str) -> Path:
    """Where a named configuration goes.

    Raises:
        BadInput: the name is none for a file, there is no such model, or nothing can be written there.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise BadInput(f"{name!r} is no name of a configuration; letters, digits, - and _ are")
    read_config(repository, model)
    path = repository / model / "configs" / f"{name}.pbtxt"
    check_writable(path)
    return path


def write_configuration(repository: Path, model: str, tuned: Tuned, name: str, objective: Objective) -> Path:
    """Write the winner as ``configs/<name>.pbtxt``, for ``alexnet-server serve --config-name``; an old one is replaced.

    Args:
        repository: where the model is.
        model: its name.
        tuned: what came of the tuning.
        name: of the configuration.
        objective: that was kept, for the reader of the file.

    Raises:
        BadInput: the name is none for a file, or the disk refuses.
    """
    path, config = configuration_path(repository, model, name), read_config(repository, model)
    apply(tuned.best, config)
    options = ", ".join(f"{field}={value:g}" for field, value in client_options(tuned.best).items())
    gain = f"{tuned.gain} the rate of config.pbtxt at {objective}"
    text = "\n".join(
        (
            "# Written by `alexnet-load tune` from config.pbtxt, whose comments say what the rest is for.",
            f"# Changed: {describe(tuned.best, tuned.default)}. Measured: {gain}.",
            f"# Clients go with it as BatchOptions({options}).",
            text_format.MessageToString(config),
        )
    )
    try:
        write_atomically(path, text)
    except OSError as error:
        raise BadInput(f"{path}: {(error.strerror or str(error)).lower()}") from None
    return path
