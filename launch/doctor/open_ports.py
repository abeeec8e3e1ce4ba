"""Strangers at the doors: every port on which something of Ray's listens is asked, without a token, to list jobs.

Whoever may list jobs may submit them, and a job is any command. The dashboard is not the only door: the agent of every
node takes jobs too, on an address that the network reaches.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Sequence

from launch.cluster.token import Answer, answer_to_strangers
from launch.doctor.findings import Finding

AGENT = "/api/job_agent/jobs/"
JOBS = ("/api/jobs/", AGENT)
REFUSED = (401, 403)
TIMEOUT_S = 3.0


def ask_dashboard(url: str) -> list[Finding]:
    """The dashboard at this URL."""
    try:
        answer = answer_to_strangers(f"{url}{JOBS[0]}")
    except (OSError, http.client.HTTPException) as error:
        todo = "is the cluster up, and the tunnel to its dashboard (`ray dashboard FILE`, kubectl port-forward)?"
        return [Finding("Ray", "fail", f"no dashboard at {url} ({error})", todo)]
    if answer.lists_jobs:
        return [_open(f"dashboard {url}", "")]
    if answer.status in REFUSED:
        return [Finding("strangers", "ok", f"refused by dashboard {url}")]
    return [Finding("strangers", "warn", f"{url} answers {answer.status}, neither yes nor no", "is that Ray?")]


def ask_ports(node: str, address: str, listening: Sequence[tuple[str, int, str]]) -> Iterator[Finding]:
    """Every listening port of a node, as others in its network see it."""
    kinds: dict[str, list[str]] = {"refused": [], "metrics": [], "silent": []}
    for host, port, process in listening:
        if host.startswith("127."):
            continue
        at = f"{process} {address}:{port}"
        kind = _knock(f"http://{address}:{port}")
        if kind == "open":
            yield _open(at, node)
        else:
            kinds[kind].append(at)
    if kinds["refused"]:
        yield Finding("strangers", "ok", f"refused by {', '.join(kinds['refused'])}", node=node)
    if kinds["silent"]:
        yield Finding("strangers", "ok", f"{len(kinds['silent'])} other ports take no jobs over HTTP", node=node)
    if kinds["metrics"]:
        todo = "they take no jobs, but no token covers them: put a firewall around the cluster's network"
        yield Finding("strangers", "warn", f"metrics are open on {', '.join(kinds['metrics'])}", todo, node)


def _knock(url: str) -> str:
    asked = {path: answer for path in JOBS if (answer := _answer(f"{url}{path}"))}
    answers = list(asked.values())
    # An agent only takes jobs, so to be asked for a list it answers 405: but it answers.
    agent = asked.get(AGENT)
    if any(answer.lists_jobs for answer in answers) or (agent and agent.status == 405):
        return "open"
    if any(answer.status in REFUSED for answer in answers):
        return "refused"
    return "metrics" if any(answer.start.startswith("# HELP") for answer in answers) else "silent"


def _open(at: str, node: str) -> Finding:
    todo = "stop this Ray and start it with RAY_AUTH_MODE=token on every machine (docs/security.md)"
    return Finding("strangers", "fail", f"{at} takes jobs from anybody who reaches it", todo, node)


def _answer(url: str) -> Answer | None:
    """None from what speaks no HTTP."""
    try:
        return answer_to_strangers(url, TIMEOUT_S)
    except (OSError, http.client.HTTPException):
        return None
