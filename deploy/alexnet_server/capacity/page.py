"""``deploy/CAPACITY.md``: the text around the tables. Pure."""

from __future__ import annotations

from alexnet_server.capacity.costs import Host, Inputs
from alexnet_server.capacity.curves import DEAD_S, DETECTION_S, offered
from alexnet_server.capacity.fleet import Fleet
from alexnet_server.capacity.tables import (
    about,
    comparison_table,
    fc_mb,
    first_of,
    gpu_table,
    input_table,
    latency_table,
    loss_table,
    parts_table,
    plan_table,
    plans,
)

NEAR = 0.6
"""Of the capacity, for which the page says how busy an instance is."""
TEXT = """\
<!-- Made by `make capacity` of deploy/capacity.json and alexnet_server/capacity: change those. -->
# Capacity on paper

How many servers, client processes, bytes and how much money 1,000, 100,000 and 10 million images a second take, from costs
that were measured on single machines of two cores: those of the bench without AVX512-VNNI, those of README with it, which
makes int8 faster. It is arithmetic, and no fleet of this size was ever run. The GPU's figures are **a calculated bound: no GPU
was measured**. Two significant digits are more than the inputs deserve.

## In short
{summary}

## The formula
A batch of n images takes `a + b n` seconds, so a server with batches of at most n takes `n / (a + b n)` images a second: its
*capacity*. Everything else that an image passes has a capacity too: cores over seconds of a core an image, the line's bytes a
second over bytes an image. An image costs a core

    request / k + image + byte x bytes

seconds, with k images in a request; three measurements give the three constants (one image alone, 32 in a request, 32
through shared memory, which saves the wire).

    replicas  = the largest of  demand / (capacity x limit)  over all that an image passes, rounded up
    spares    = the fewest with which more are down than spare for {short} of the time (binomial, each down {down}); 1 at least
    processes = demand x client's seconds an image / limit, rounded up
    money     = servers x price + processes x price + bytes x price

The *limit* of the batches is the largest load whose simulated p99 keeps the objective ({objective} ms, less the time in
which a client's request fills up), at most {most}. All else may be {busy} full. Of requests with 1, 8 and 32 images, those that
make the cheapest fleet are taken: larger ones cost less of a core and wait longer (32 images alone keep a CPU server busy for
{large} ms). *Load* always is what comes as a share of the capacity. It is not the share of time in which an instance runs,
which is near 1 at {near} of the capacity already ({near_busy}): batches grow only when they must.

## Inputs
As of {date}. "Measured" names the row of README or of the bench (`python tests/benchmarks --only capacity`); the rest are
assumptions.

{inputs}

## What one of each can do
Images a second when it is full: ready pixels in requests of 1 and of 32 images, and image files in requests of 32. A client
process is one core.

{parts}

## The three scales
{scales}

"First" is what breaks first when the demand grows and the fleet does not: the part with the largest share of its limit, and
whatever comes within 5 % of it. Behind it, how full it is when all but the spares are up. Money is in whatever the prices are in.
The cores of a CPU server do messages and batches; what messages take of them is part of a and b.

## A GPU by the batch
Calculated, not measured: images a second that each part allows at most, by images in a batch (= in a request, for the cores).
"FC" is the share of the GPU's time that goes to the fully connected layers, whose {fc_mb} MB of fp16 weights are read once for
each batch. The last column is the smallest: what would break first if batches stayed that small. They do not when more comes:
a batch takes what waited.

{gpu_batches}

## Latency by load
Simulated: single images as Poisson arrivals at servers of {a} + {b} n ms; p50 / p99 in ms, and images in a batch. Planning takes
the first row.

{latencies}

Two choices by clients who each know only their own requests are worse than by one who knows all, and both are better than
chance, which is the first row. Round robin by several clients is about as good here: servers are alike, and so are requests.

## When a server dies
Simulated: one of the fleet is dead for {dead} s, which the clients notice after {detection} s; what it owed is sent to the others.
Latencies in ms.

{losses}

The spare is there for the third row: four servers that are 90 % full are three that are overloaded. A bounded queue (fourth
row) turns the wait into refusals. With one server, whatever comes while it is known to be dead is lost.

## Foretold and measured
One server, single-image requests, open loop, Poisson. In each round the bench measures a, b and the rest, then runs three
loads, and simulates the same arrivals.

{comparison}

## What this leaves out
- The same two cores ran client and server when the inputs were measured; servers with clients elsewhere are somewhat faster.
  The comparison above suffers most: at constant intervals a lone image takes what a and b say (10.1 ms at 55 a second), at
  random ones 12.0, for arrivals take processor time from the batch that runs. The simulation knows nothing of that, and
  foretells too short latencies.
- Costs of 32-image requests are lines through two points; beyond 32 images nothing is known. a and b are of single-image
  requests; with larger ones b is smaller, so that those plans are somewhat too large.
- A fleet's replicas are alike, and fail independently of each other. A zone that fails takes its share of them all at once: add
  that share.
- The load is Poisson at one rate. What a day does to it is for the reader: plan for the highest minute.
- Connections: with thousands of clients and servers not every client can talk to every server; each needs a subset.
- Load balancers, observers (Prometheus), storage and people are not in the money.

## Your own numbers
1. `make bench`, or its part alone: `.venv/bin/python tests/benchmarks --checkpoint build/digits/checkpoint --output build/bench
   --only capacity` (a quiet machine, 6 minutes).
2. `make capacity BENCH=build/bench/bench.json` puts what it found into `deploy/capacity.json`, with the comparison, and writes
   this page.
3. In `deploy/capacity.json`, put in your prices, lines, cores, objective and scales; `make capacity` writes the page again.
   On a GPU, measure a and b there too (the bench runs with `ACCELERATOR=gpu`), and set `gpu_share` so that the table by the
   batch agrees.

In Python, `simulate` of `alexnet_server.capacity.simulate` takes any arrivals, sizes of requests, fleets and failures, and
`plan` of `alexnet_server.capacity.plan` any demand.
"""


def page(inputs: Inputs) -> str:
    """The page of these inputs; takes some seconds of simulation."""
    cpu, gpu = hosts = inputs.cpu_host(), inputs.gpu_host()
    return TEXT.format(
        summary=_summary(inputs, hosts),
        short=f"{100 * inputs['short_of_spares']:g} %",
        down=f"{100 * inputs['down_share']:g} %",
        objective=f"{inputs['objective_p99_ms']:g}",
        most=f"{100 * inputs['most_of_capacity']:.0f} %",
        busy=f"{100 * inputs['most_busy']:.0f} %",
        date=inputs.raw["date"],
        inputs=input_table(inputs),
        parts=parts_table(inputs, hosts),
        scales="\n\n".join(_scales(inputs, host, files=files) for host in hosts for files in (False, True)),
        fc_mb=fc_mb(),
        gpu_batches=gpu_table(inputs, gpu),
        a=f"{1e3 * cpu.server.fixed_s:.1f}",
        b=f"{1e3 * cpu.server.per_image_s:.1f}",
        latencies=latency_table(cpu.server),
        large=about(1e3 * cpu.server.batch_s(32)),
        near=f"{100 * NEAR:.0f} %",
        near_busy=f"{100 * offered(Fleet(cpu.server), NEAR).busy:.0f} %",
        dead=f"{DEAD_S:g}",
        detection=f"{DETECTION_S:g}",
        losses=loss_table(cpu.server),
        comparison=comparison_table(inputs.raw["comparison"]),
    )


def _scales(inputs: Inputs, host: Host, *, files: bool) -> str:
    what = "image files, decoded by the server" if files else "ready pixels"
    kind = "from measured costs" if host.measured else "**calculated, not measured**"
    return f"**{host.name[0].upper()}{host.name[1:]}, {what}** ({kind})\n\n{plan_table(inputs, host, files=files)}"


def _summary(inputs: Inputs, hosts: tuple[Host, ...]) -> str:
    lines = []
    for host in hosts:
        kind = "" if host.measured else ", calculated"
        lines.append(f"Ready pixels, servers with {host.name}{kind}:")
        for scale, plan in plans(inputs, host, files=False).items():
            if plan is None:
                lines.append(f"- {scale:,} images a second: no fleet keeps the objective.")
                continue
            processes = f"{plan.processes:,} client process{'es' if plan.processes > 1 else ''}"
            servers = f"{plan.replicas:,} server{'s' if plan.replicas > 1 else ''} and {plan.spares:,} spare"
            lines.append(f"- {scale:,} images a second: {servers}, {processes}. First to break: {first_of(plan)}.")
        lines.append("")
    return "\n".join(lines).rstrip()
