"""The tables of ``deploy/CAPACITY.md``, as Markdown. Pure; what is simulated comes from ``curves``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from alexnet_server.capacity.costs import GROUPS, Host, Inputs
from alexnet_server.capacity.curves import REQUESTS_EACH, SHARES, fleets, for_planning, losses, offered
from alexnet_server.capacity.fleet import Server
from alexnet_server.capacity.plan import Demand, Plan, cheapest
from alexnet_server.capacity.roofline import BYTES, LAYERS, connected_share, layers_s

SHOWN = tuple(share for share in SHARES if share != 0.85)
GPU_BATCHES = (1, 2, 4, 8, 16, 32, 64)


def about(value: float) -> str:
    """Two significant digits, for people: 1,234 is 1,200 and 0.0123 is 0.012."""
    if not math.isfinite(value):
        return "-"
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 or rounded == int(rounded) else f"{rounded:.2g}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def input_table(inputs: Inputs) -> str:
    """Each input with its source."""
    rows = []
    for group in GROUPS:
        for name, entry in inputs.raw[group].items():
            value = entry["value"]
            if isinstance(value, list):
                shown = f"{min(value):g} - {max(value):g}" if len(value) > 1 else f"{value[0]:g}"
            else:
                shown = f"{value:,.12g}"
            rows.append([f"`{name}`", shown, group, entry["source"]])
    return markdown(["input", "value", "kind", "source"], rows)


def parts_table(inputs: Inputs, hosts: Sequence[Host]) -> str:
    """Images a second that one of each thing can take."""
    pixels, files, answers = inputs["image_bytes"], inputs["file_bytes"], inputs["answer_bytes"]
    client = inputs.client
    rows = [["client process", *(about(1 / client.at(*each)) for each in ((1, pixels), (32, pixels), (32, files)))]]
    for host in hosts:
        messages = host.messages
        batches = about(host.server.capacity)
        cores = [
            about(host.cores / (messages.at(size, bytes_) + decode_s))
            for size, bytes_, decode_s in ((1, pixels, 0.0), (32, pixels, 0.0), (32, files, host.decode_s))
        ]
        line = about(host.network_bytes_s / pixels)
        link = about(host.link_bytes_s / pixels)
        rows += [
            [f"{host.name}: batches of {host.server.max_batch}", batches, batches, about(host.server_files.capacity)],
            [f"{host.name}: {host.cores} cores, messages{' and decoding' if host.decode_s else ''}", *cores],
            [f"{host.name}: network", line, line, about(host.network_bytes_s / files)],
        ]
        if math.isfinite(host.link_bytes_s):
            rows.append([f"{host.name}: PCIe", link, link, link])
    rows.append(
        ["bytes of an image there and back", about(pixels + answers), about(pixels + answers), about(files + answers)]
    )
    return markdown(["what", "pixels, 1", "pixels, 32", "files, 32"], rows)


def plans(inputs: Inputs, host: Host, *, files: bool) -> dict[int, Plan | None]:
    """The cheapest plan for each scale."""
    curves = for_planning(host, files=files)
    return {scale: cheapest(Demand(scale, files), host, inputs, curves) for scale in inputs.scales}


def first_of(plan: Plan) -> str:
    """What breaks first, with how full it is."""
    return ", ".join(f"{each.name} {100 * each.utilisation:.0f} %" for each in plan.first)


def plan_table(inputs: Inputs, host: Host, *, files: bool) -> str:
    """The three scales on one kind of server."""
    rows = []
    for scale, plan in plans(inputs, host, files=files).items():
        if plan is None:
            rows.append([f"{scale:,}", *["no fleet keeps the objective"], *[""] * 7])
            continue
        rows.append(
            [
                f"{scale:,}",
                f"{plan.replicas:,} + {plan.spares}",
                f"{plan.processes:,}",
                str(plan.images_per_request),
                about(plan.mean_batch),
                about(8e-9 * plan.network_bytes_s),
                first_of(plan),
                ", ".join(
                    f"{each.name} {100 * each.utilisation:.0f} %" for each in plan.parts if each not in plan.first
                ),
                f"{about(plan.servers_per_hour)} + {about(plan.clients_per_hour)} + {about(plan.network_per_hour)}",
            ]
        )
    head = ["images/s", "servers", "client processes", "images a request", "mean batch", "Gbit/s", "first", "the rest"]
    return markdown([*head, "money an hour: servers + clients + network"], rows)


def gpu_table(inputs: Inputs, host: Host) -> str:
    """What each part of a GPU host allows at most, by the batch."""
    gpu, image_bytes = inputs.gpu, inputs["image_bytes"]
    rows = []
    for images in GPU_BATCHES:
        batch_s = layers_s(gpu, images)
        share = connected_share(gpu, images)
        allowed = {
            f"GPU ({'FC weights' if share > 0.5 else 'convolutions'})": images / batch_s,
            "PCIe": host.link_bytes_s / image_bytes,
            "network": host.network_bytes_s / image_bytes,
            "cores (messages)": host.cores / host.messages.at(min(images, 32), image_bytes),
        }
        first = min(allowed, key=lambda name: allowed[name])
        rows.append([str(images), *map(about, allowed.values()), f"{100 * share:.0f} %", first])
    return markdown(["batch", "GPU, roofline", "PCIe", "network", "cores", "FC", "first"], rows)


def fc_mb() -> str:
    """Of the fully connected layers' weights in fp16."""
    return f"{BYTES * sum(each.weights for each in LAYERS if each.fully_connected) / 1e6:.0f}"


def latency_table(server: Server) -> str:
    """p50, p99 and mean batch by load for fleets of several shapes."""
    rows = []
    for name, fleet in fleets(server).items():
        cells = []
        for share in SHOWN:
            # As long a time for each, so that the larger fleets come to rest as well.
            found = offered(fleet, share, requests=REQUESTS_EACH * (2 if fleet.replicas > 1 else 1))
            p50, p99 = (1e3 * found.percentile_s(percent) for percent in (50, 99))
            cells.append(f"{about(p50)} / {about(p99)}, {found.mean_batch:.1f}")
        rows.append([name, *cells])
    return markdown(["fleet", *(f"{100 * share:.0f} %" for share in SHOWN)], rows)


def loss_table(server: Server) -> str:
    """What becomes of requests when a server dies."""
    rows = []
    for loss in losses(server):
        found = loss.outcome
        times = [about(1e3 * found.percentile_s(percent)) for percent in (50, 99, 99.9)]
        bound = "none" if loss.queue_requests is None else str(loss.queue_requests)
        counts = [f"{each:,}" for each in (found.answered, found.rejected, found.retried)]
        rows.append([str(loss.replicas), f"{100 * loss.share:.0f} %", bound, *counts, *times])
    return markdown(
        ["servers", "load", "queue bound", "answered", "rejected", "sent again", "p50", "p99", "p99.9"], rows
    )


def comparison_table(comparison: dict[str, Any] | None) -> str:
    """The bench's rows that compare."""
    if comparison is None:
        return "Not measured yet on a quiet machine: see the last section."
    rows = []
    for row in comparison["rows"]:
        goal = "" if row["goal"] is None else f"{row['goal']:g} at most, {row['verdict']}"
        found = f"{row['ratio']:.2f} ({row['low']:.2f} - {row['high']:.2f})"
        rows.append([row["name"].removeprefix("capacity: "), found, goal, row["figures"]])
    runs = comparison["rows"][0]["runs"]
    table = markdown(["what", "found (middle half)", "goal", "in the last round, foretold and measured"], rows)
    return f"{comparison['machine']}, {runs} rounds.\n\n{table}"
