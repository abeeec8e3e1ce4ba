"""`cluster check`: every shipped file is accepted, every way to break one that we know of is refused by its name."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib

import pytest
import yaml

from launch.cluster_files.kuberay import field_problems, published_fields
from launch.cluster_files.lints import find_problems
from launch.cluster_files.read import read_cluster_file
from launch.versions import locked_version
from tests.launch.commands import ROOT, python
from trainer.config.recipe import load_recipe

AWS, ONPREM, SLURM = "ray_cluster.yaml", "deploy/onprem.yaml", "deploy/slurm.sh"
CLUSTER, JOB = "deploy/kuberay_cluster.yaml", "deploy/kuberay_job.yaml"
SHIPPED = (AWS, ONPREM, SLURM, CLUSTER, JOB)

# file, what is replaced, by what, what must be said
BROKEN = [
    (AWS, "max_workers: 2\n    node_config: &gpu", "max_worker: 2\n    node_config: &gpu", "Ray refuses .*max_worker"),
    (AWS, "head_node_type: head", "head_node_type: hed", "must be one of `available_node_types`"),
    (AWS, "idle_timeout_minutes: 15", "idle_timeout_minutes: ten", "Ray refuses idle_timeout_minutes: 'ten'"),
    (AWS, "max_workers: 4", "max_workers: 3", "max_workers is 3, and the node types add up to 4"),
    (AWS, "ulimit -n 65536; RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 NCCL", "NCCL", "without a token"),
    (AWS, "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard listens on 0.0.0.0"),
    (AWS, "resources: { CPU: 0 }", "resources: {}", "head takes training workers"),
    (AWS, "RAY_JOB_STOP_WAIT_TIME_S=120", "", "killed after 3 s"),
    (AWS, "use_internal_ips: true", "use_internal_ips: false", "nodes get public addresses"),
    (
        AWS,
        "GroupName: fleximoe-ray",
        "GroupName: fleximoe-ray\n    IpPermissions: [{FromPort: 8265, IpRanges: [{CidrIp: 0.0.0.0/0}]}]",
        "opens port 8265 to the whole internet",
    ),
    (AWS, "~/.ray/auth_token: ~/.ray/auth_token", "~/a: ~/a", "token does not reach the nodes"),
    (AWS, "chmod 600 ~/.ray/auth_token", 'pip install "ray[default]==2.59.0"', "Ray 2.59.0, and constraints.txt has"),
    (
        AWS,
        "<<: *gpu_node # the same machine: expert-parallel groups need nodes of one size",
        "InstanceType: g5.12xlarge",
        r"different numbers of GPUs \(gpu 8, gpu_spot 4\)",
    ),
    (ONPREM, "max_workers: 3", "max_workers: 2", "max_workers is 2, and worker_ips has 3"),
    (ONPREM, "10.0.0.13", "10.0.0.12", "holds 10.0.0.12 twice"),
    (ONPREM, "10.0.0.13", "10.0.0.10", "head_ip 10.0.0.10 is also among worker_ips"),
    (ONPREM, " --num-gpus=8", "", "does not say how many GPUs"),
    (ONPREM, "--num-cpus=0 ", "", "add --num-cpus=0"),
    (
        ONPREM,
        "auth:",
        "available_node_types: {x: {resources: {GPU: 4}, node_config: {}}}\nauth:",
        "has no meaning with",
    ),
    (SLURM, "export RAY_AUTH_MODE=token", "export NOTHING=1", "start command without a token"),
    (SLURM, "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard listens on 0.0.0.0"),
    (CLUSTER, "mode: token", "mode: disabled", "open to every pod"),
    (CLUSTER, "authOptions", "authOption", "authOption is no field of RayClusterSpec .*did you mean authOptions"),
    (CLUSTER, "ClusterIP", "LoadBalancer", "serviceType LoadBalancer opens the head"),
    (CLUSTER, 'num-cpus: "0"', "num-cpus: 0", 'is the int 0; Kubernetes takes text here: write "0"'),
    (CLUSTER, "maxReplicas: 2", "maxReplicas: two", "maxReplicas is 'two', and must be of type integer"),
    (CLUSTER, "replicas: 0", "replicas: 5", "replicas 5 is not between 0 and 2"),
    (CLUSTER, '"2.60.0"', '"2.9.0"', "rayVersion is Ray 2.9.0"),
    (CLUSTER, "{ name: shm, mountPath: /dev/shm }", "{ name: shm, mountPath: /shm }", "mount an emptyDir at /dev/shm"),
    (AWS, "available_node_types:", "available_node_types: []\nnode_types:", "Ray refuses"),
    (CLUSTER, "workerGroupSpecs:\n    - groupName: gpu", "workerGroupSpecs:\n      groupName: gpu", "must be a list"),
    (JOB, " name=icu-1", "", "backoffLimit starts the run anew"),
    (JOB, "K8sJobMode", "BatchMode", "submissionMode is 'BatchMode', and must be one of K8sJobMode"),
    (JOB, "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "ttlSecondsAfterFinished needs"),
    (JOB, "ray.io/v1", "ray.io/v1alpha1", "and KubeRay's is ray.io/v1"),
    (JOB, "image: registry.example.com/fleximoe:0.1.0", "image: rayproject/ray:2.54.0-gpu", "is Ray 2.54.0"),
]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_accepted_alone_and_with_a_recipe_that_fits(name):
    file = read_cluster_file(str(ROOT / name))
    config = load_recipe("icu_physionet2012", ["parallel.workers=16", "parallel.expert_parallel=8"])
    assert find_problems(file) == find_problems(file, config) == []
    assert {group.gpus for group in file.groups} == {8} and file.versions == (
        [("rayVersion", locked_version("ray"))] if "kuberay" in name else []
    )


@pytest.mark.parametrize(("name", "old", "new", "sentence"), BROKEN)
def test_a_broken_file_is_refused_by_its_name(name, old, new, sentence, tmp_path, capfd):
    text = (ROOT / name).read_text()
    assert old in text, f"{name} no longer holds {old!r}"
    path = tmp_path / "broken"
    path.write_text(text.replace(old, new))
    problems = find_problems(read_cluster_file(str(path)))
    assert any(re.search(sentence, problem) for problem in problems), problems


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["parallel.workers=12", "parallel.expert_parallel=6", "model.moe.experts=12"], r"one of \[1, 2, 4, 8\]"),
        (["parallel.workers=64", "parallel.expert_parallel=8"], "parallel.workers=64 need a GPU each, .* 32 at most"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(overrides, sentence):
    file = read_cluster_file(str(ROOT / AWS))
    (problem,) = find_problems(file, load_recipe("icu_physionet2012", overrides))
    assert re.search(sentence, problem), problem
    across = load_recipe("icu_physionet2012", [*overrides, "parallel.experts_across_nodes=true"])
    assert len(find_problems(file, across)) == ("64" in str(overrides))


def test_every_field_of_the_manifests_is_published(capsys):
    for name in (CLUSTER, JOB):
        checked = []
        assert field_problems(yaml.safe_load((ROOT / name).read_text()), checked) == []
        print(f"{name}: {len(checked)} fields are in KubeRay {published_fields()['version']}:")
        print("\n".join(f"  {field}" for field in checked))
        assert len(checked) > 30
    assert "RayJob.spec.rayClusterSpec.authOptions.mode" in capsys.readouterr().out


TWICE = ("provider: {}\nmax_workers: 2\nmax_workers: 9\n", "key max_workers is given twice, in line 2 and in line 3")


def test_what_is_no_cluster_file_is_said(tmp_path):
    path = tmp_path / "x.yaml"
    for text, sentence in (("a: 1", "no cluster file"), ("a: [", "not valid YAML"), ("", "no cluster file"), TWICE):
        path.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_cluster_file(str(path))
    with pytest.raises(ValueError, match="cannot be read"):
        read_cluster_file(str(tmp_path / "none.yaml"))


def test_the_command_leaves_with_2_for_a_broken_file(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text((ROOT / AWS).read_text().replace("127.0.0.1 --auto", "0.0.0.0 --auto"))
    done = python("-m", "launch", "cluster", "check", str(path))
    assert done.returncode == 2 and "the dashboard listens on 0.0.0.0" in done.stderr
    assert len(json.loads(done.stdout)["problems"]) == 1


def test_the_image_holds_what_the_project_needs():
    text = (ROOT / "deploy/Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert all((ROOT / source).exists() for source in sources)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {name.rstrip("*") for name in packages["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert rooms <= set(sources) and "-c constraints.txt" in text
    extras = set(re.search(r"'\.\[([\w,]+)\]'", text)[1].split(","))
    assert extras <= set(packages["project"]["optional-dependencies"])


def test_the_batch_script_is_valid_shell():
    done = subprocess.run(["bash", "-n", str(ROOT / SLURM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
