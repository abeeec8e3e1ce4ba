"""Strangers at the doors: every port on which something of Ray's listens is asked, without a token, to list jobs.

Whoever may list jobs may submit them, and a job is any command. The dashboard is not the only door: the agent of every
node takes jobs too, on an address that the network reaches.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Sequence

from launch.doctor.findings import Finding
from launch.token import answer_to_strangers

JOBS = ("/api/jobs/", "/api/job_agent/jobs/")
TIMEOUT_S = 3.0


def ask_dashboard(url: str) -> list[Finding]:
    """The dashboard at this URL."""
    try:
        status = answer_to_strangers(f"{url}{JOBS[0]}")
    except OSError as error:
        todo = "is the cluster up, and the tunnel to its dashboard (`ray dashboard FILE`, kubectl port-forward)?"
        return [Finding("Ray", "fail", f"no dashboard at {url} ({error})", todo)]
    return [_judge(f"dashboard {url}", status, "")]


def ask_ports(node: str, address: str, listening: Sequence[tuple[str, int, str]]) -> Iterator[Finding]:
    """Every listening port of a node, as others in its network see it."""
    refused, silent, metrics = [], [], []
    for host, port, process in listening:
        if host.startswith("127."):
            continue
        at = f"{process} {address}:{port}"
        statuses = {path: _status(f"http://{address}:{port}{path}") for path in JOBS}
        if 200 in statuses.values():
            yield _judge(at, 200, node)
        elif statuses[JOBS[0]] in (401, 403) or statuses[JOBS[1]] in (401, 403):
            refused.append(at)
        elif _status(f"http://{address}:{port}/metrics") == 200:
            metrics.append(at)
        else:
            silent.append(at)
    if refused:
        yield Finding("strangers", "ok", f"refused by {', '.join(refused)}", node=node)
    if silent:
        yield Finding("strangers", "ok", f"{len(silent)} other ports take no jobs over HTTP", node=node)
    if metrics:
        todo = "no jobs, but a firewall belongs around the cluster's network: a token does not cover them"
        yield Finding("strangers", "warn", f"metrics are open on {', '.join(metrics)}", todo, node)


def _judge(at: str, status: int, node: str) -> Finding:
    if status == 200:
        todo = "stop this Ray and start it with RAY_AUTH_MODE=token on every machine (docs/security.md)"
        return Finding("strangers", "fail", f"{at} takes jobs from anybody who reaches it", todo, node)
    if status in (401, 403):
        return Finding("strangers", "ok", f"refused by {at}", node=node)
    return Finding("strangers", "warn", f"{at} answers {status}, which is neither yes nor no", "is that Ray?", node)


def _status(url: str) -> int | None:
    """HTTP status, or None for what speaks no HTTP."""
    try:
        return answer_to_strangers(url, TIMEOUT_S)
    except (OSError, http.client.HTTPException):
        return None
