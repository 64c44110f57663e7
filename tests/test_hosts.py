"""Runs of several processes, here on one machine."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import faulty
import numpy as np
import pytest

from rad_jax.training import hosts, metrics

ROOT = faulty.ROOT
TWO = {"JAX_NUM_CPU_DEVICES": "2"}


def free_port():
  with socket.socket() as found:
    found.bind(("", 0))
    return found.getsockname()[1]


def start_two(workdir, *flags, **fields):
  port = free_port()
  return [
    faulty.start(
      faulty.command(
        workdir,
        f"--coordinator=localhost:{port}",
        "--num_processes=2",
        f"--process_id={i}",
        "--heartbeat_s=10",
        *flags,
        **fields,
      ),
      **TWO,
    )
    for i in range(2)
  ]


def finished(processes):
  printed = [process.communicate(timeout=200)[0] for process in processes]
  return [process.returncode for process in processes], printed


def wait_for_rows(workdir):
  end = time.monotonic() + 120
  while not metrics.read(workdir):
    assert time.monotonic() < end
    time.sleep(0.05)


def losses(workdir):
  return [row["train/loss"] for row in metrics.read(workdir)]


# ---- Together ----


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on(tmp_path):
  """Two processes of two devices; SIGTERM to one; one process of one device."""
  processes = start_two(
    tmp_path, train__num_steps=10**6, train__sample_every_steps=20
  )
  wait_for_rows(tmp_path)
  processes[1].send_signal(signal.SIGTERM)
  codes, printed = finished(processes)
  assert codes == [faulty.INTERRUPTED] * 2, printed
  saved = {re.search(r"stop: step (\d+) of", text)[1] for text in printed}
  (step,) = map(int, saved)  # the same on both
  for i, text in enumerate(printed):
    assert len(re.findall(rf"process {i} of 2 on .*: .*,.*", text)) == 1
  assert "parameters, 4 device(s) in 2 process(es)" in printed[0]
  assert "parameters" not in printed[1]  # the main log is of the first alone
  steps = [row["step"] for row in metrics.read(tmp_path)]
  assert steps == sorted(set(steps)), "two processes wrote"
  assert "sample/training_spread" in metrics.read(tmp_path)[0]
  assert (tmp_path / "samples" / "progress" / "step_20.png").exists()
  code, text = faulty.run(faulty.command(tmp_path, train__num_steps=step + 20))
  assert code == 0, text
  assert f"1 device(s) in 1 process(es), step {step} of" in text


@pytest.mark.slow
def test_death_of_one_ends_the_other(tmp_path):
  processes = start_two(tmp_path, train__num_steps=10**6)
  wait_for_rows(tmp_path)
  processes[1].kill()
  started = time.monotonic()
  codes, printed = finished(processes)
  assert time.monotonic() - started < 60
  assert codes[0] not in (0, faulty.INTERRUPTED)
  assert "another task died" in printed[0], printed[0]


@pytest.mark.slow
def test_error_of_one_ends_the_other(tmp_path):
  """As where a folder is missing on one host."""
  port = free_port()
  common = (f"--coordinator=localhost:{port}", "--num_processes=2")
  good, bad = (
    faulty.start(
      faulty.command(
        tmp_path, *common, f"--process_id={i}", "--heartbeat_s=10", *wrong
      ),
      **TWO,
    )
    for i, wrong in enumerate([(), ("--config.seed=-1",)])
  )
  codes, printed = finished([good, bad])
  assert codes[1] == 1
  assert "rad_jax: error: config.seed=-1" in printed[1]
  assert codes[0] not in (0, faulty.INTERRUPTED)


@pytest.mark.slow
@pytest.mark.parametrize(
  "field, told",
  [
    ("--config.seed=1", "seed: 0 -> 1"),
    ("--config.train.num_steps=61", "train.num_steps: 60 -> 61"),
    ("--config.data.num_examples=65", "data.num_examples: 64 -> 65"),
  ],
)
def test_processes_of_other_flags_are_refused(field, told, tmp_path):
  port = free_port()
  common = (f"--coordinator=localhost:{port}", "--num_processes=2")
  processes = [
    faulty.start(
      faulty.command(
        tmp_path, *common, f"--process_id={i}", "--heartbeat_s=10", *other
      ),
      **TWO,
    )
    for i, other in enumerate([(), (field,)])
  ]
  codes, printed = finished(processes)
  assert codes == [1, 1], printed
  for text in printed:
    assert "process 1 was not started as process 0 was" in text
    assert "Traceback" not in text
  assert told in printed[1]
  assert not list((tmp_path / "checkpoints").iterdir())
  assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_only_training_is_spread_over_processes(tmp_path):
  codes, printed = finished(start_two(tmp_path, "--mode=sample"))
  assert 1 in codes
  assert any("--mode=sample runs in one process" in text for text in printed)


# ---- The same result ----

# SGD, for Adam turns rounding noise in a zero gradient into a step.
STEP = """
import json, sys

import jax
import numpy as np
import optax

import tiny
from rad_jax import run as runs
from rad_jax.training import hosts, loop, sharding, step
from rad_jax.training.state import initial_state

name, fsdp, micro_batches, port, count, index = sys.argv[1:]
if int(count) > 1:
  hosts.connect(f"localhost:{port}", int(count), int(index))
config = tiny.plane(
  train__fsdp=int(fsdp),
  train__micro_batches=int(micro_batches),
  data__corruption__fraction=0.5,
)
run = runs.build(config)
optimizer = optax.sgd(0.01)
run = run._replace(
  initial_state=lambda: initial_state(
    run.network, optimizer, (3,), run.keys.init, run.keys.train
  ),
  train_step=lambda regularised: step.make_train_step(
    run.method,
    optimizer,
    config.optimizer.ema_decay,
    run.prepare,
    micro_batches=int(micro_batches),
  ),
)
mesh = sharding.device_mesh(config.train.fsdp)
like = jax.eval_shape(run.initial_state)
state = jax.jit(
  run.initial_state, out_shardings=sharding.of_state(mesh, like)
)()
batches = loop.training_batches(
  run, run.open_training_set(), 0, sharding.process_rows(16)
)
losses, step_fn = [], None
for _ in range(3):
  batch = sharding.place(next(batches), sharding.by_example(mesh))
  step_fn = step_fn or loop.compile_step(run, state, batch, mesh)
  state, measured = step_fn(state, batch)
  losses.append([float(measured[k]) for k in ("loss", "regulariser", "w_linf")])
whole = jax.jit(
  lambda x: x, out_shardings=sharding.replicated(mesh)
)(state.params)
leaves = jax.tree.leaves(state.params)
parts = [x.addressable_shards[0].data.size / x.size for x in leaves]
if hosts.is_first():
  leaves = [np.asarray(x).ravel() for x in jax.tree.leaves(whole)]
  np.savez(
    name, params=np.concatenate(leaves), losses=losses, part=min(parts),
    devices=jax.device_count(),
  )
"""


def step_on(folder, name, devices, processes=1, fsdp=1, micro_batches=1):
  path, port = folder / f"{name}.npz", free_port()
  environment = {
    "JAX_NUM_CPU_DEVICES": str(devices // processes),
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
  }
  arguments = [sys.executable, "-c", STEP, path, fsdp, micro_batches, port]
  started = [
    faulty.start([*map(str, [*arguments, processes, i])], **environment)
    for i in range(processes)
  ]
  codes, printed = finished(started)
  assert codes == [0] * processes, printed
  return np.load(path)


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
  return step_on(tmp_path_factory.mktemp("one"), "one", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
  "topology",
  [
    {"devices": 4},
    {"devices": 4, "processes": 2},
    {"devices": 4, "processes": 2, "fsdp": 4},
    {"devices": 2, "micro_batches": 4},
  ],
  ids=lambda found: "-".join(f"{k}{v}" for k, v in found.items()),
)
def test_loss_and_update_are_the_same_anywhere(
  topology, on_one_device, tmp_path
):
  found = step_on(tmp_path, "here", **topology)
  assert found["devices"] == topology["devices"]
  assert found["part"] == 1 / topology.get("fsdp", 1)
  assert on_one_device["losses"][:, 1].min() > 0
  np.testing.assert_allclose(
    found["losses"], on_one_device["losses"], rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    found["params"], on_one_device["params"], atol=1e-6
  )


# ---- Finding each other ----


@pytest.mark.parametrize(
  "given, message",
  [
    (("localhost:1", 2, -1), "--process_id belong together"),
    (("", 2, 0), "--coordinator=HOST:PORT, --num_processes"),
    (("localhost:1", 2, 2), r"--process_id=2 .* give 0 to 1"),
  ],
)
def test_half_of_an_address_is_refused(given, message):
  with pytest.raises(hosts.HostError, match=message):
    hosts.connect(*given)


@pytest.mark.slow
def test_the_others_do_not_come(tmp_path):
  code, printed = faulty.run(
    faulty.command(
      tmp_path,
      f"--coordinator=localhost:{free_port()}",
      "--num_processes=2",
      "--process_id=1",
      "--connect_timeout_s=3",
    )
  )
  assert code == 1
  assert "in 3 s: start all processes" in printed


@pytest.mark.slow
def test_slurm_script_starts_processes_that_find_each_other(tmp_path):
  """`srun` is a stand-in that starts two with SLURM's variables."""
  bin_folder = tmp_path / "bin"
  bin_folder.mkdir()
  (bin_folder / "srun").write_text(
    """#!/usr/bin/env bash
shift # --kill-on-bad-exit
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2
pids=()
for i in 0 1; do
  SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}"' TERM
code=0
for pid in "${pids[@]}"; do
  wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do code=0; wait "$pid" || code=$?; done
done
exit "$code"
"""
  )
  (bin_folder / "scontrol").write_text('#!/bin/sh\necho "scontrol $*"\n')
  for path in bin_folder.iterdir():
    path.chmod(0o755)
  workdir = tmp_path / "run"
  fields = {"train__num_steps": 10**6, "checkpoint__every_steps": 10**4}
  arguments = faulty.command(workdir, **fields)[3:]
  process = faulty.start(
    ["bash", "launch/slurm.sbatch", *arguments],
    PATH=f"{bin_folder}:{os.environ['PATH']}",
    PYTHON=sys.executable,
    SLURM_JOB_ID=str(free_port()),
    SLURM_SUBMIT_DIR=str(ROOT),
    **TWO,
  )
  wait_for_rows(workdir)
  process.send_signal(signal.SIGTERM)
  (code,), (printed,) = finished([process])
  assert code == faulty.INTERRUPTED, printed
  assert "4 device(s) in 2 process(es)" in printed
  assert "scontrol requeue" in printed


def launch(script, *arguments, **environment):
  return subprocess.run(
    ["bash", f"launch/{script}", *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=240,
  )


@pytest.mark.slow
def test_many_processes_of_one_machine(tmp_path):
  arguments = faulty.command(tmp_path, "--heartbeat_s=10")[3:]
  done = launch(
    "multi_process.sh", 2, "--devices=2", *arguments, PYTHON=sys.executable
  )
  assert done.returncode == 0, done.stderr
  assert f"trained: {tmp_path}" in done.stdout
  assert "4 device(s) in 2 process(es)" in done.stderr
  wrong = launch(
    "multi_process.sh", 2, *arguments, "--config.seed=-1", PYTHON=sys.executable
  )
  assert wrong.returncode == 1
  assert "the others are ended" in wrong.stderr
  assert launch("multi_process.sh", "two").returncode == 2


# ---- Clouds, whose commands are printed alone ----

POD = {"DRY_RUN": "1", "TPU": "rad", "ZONE": "us-central2-b", "BUCKET": "b"}


@pytest.mark.parametrize(
  "arguments, printed",
  [
    (["create", "v4-32"], r"tpu-vm create rad .*--accelerator-type=v4-32.*b"),
    (["install"], r"(?s)git archive .*tpu-vm scp .*--worker=all.*pip"),
    (
      ["run", "--config=configs/cifar10.py", "--workdir=/mnt/bucket/a b"],
      r"tpu-vm ssh rad .*--worker=all .*rad_jax.main.*cifar10.py.*a.*b",
    ),
    (["stop"], r"tpu-vm ssh rad .*pkill"),
    (["delete"], r"tpu-vm delete rad .*--quiet"),
  ],
)
def test_pod_commands(arguments, printed):
  done = launch("tpu_pod.sh", *arguments, **POD)
  assert done.returncode == 0, done.stderr
  assert re.search(printed, done.stdout)


def test_pod_run_survives_the_shells(tmp_path):
  """What `ssh --command` would be given, given to a shell."""
  gcloud = tmp_path / "gcloud"
  gcloud.write_text(
    """#!/bin/sh
for a; do case "$a" in --command=*) echo "${a#--command=}" ;; esac; done
"""
  )
  gcloud.chmod(0o755)
  flags = ["--config.sweep.objective=('ddpm', 'invariance')", "--workdir=/a b"]
  done = launch(
    "tpu_pod.sh",
    "run",
    *flags,
    TPU="rad",
    ZONE="z",
    PATH=f"{tmp_path}:{os.environ['PATH']}",
  )
  _, remote = done.stdout.split(" && ")
  script = f'set -- {remote.strip()}; for word; do echo "$word"; done'
  words = subprocess.run(
    ["bash", "-c", script], capture_output=True, text=True
  ).stdout.splitlines()
  assert words[3:] == flags


@pytest.mark.parametrize("arguments", [[], ["fly"], ["create"], ["run"]])
def test_pod_usage(arguments):
  done = launch("tpu_pod.sh", *arguments, **POD)
  assert done.returncode == 2
  assert "tpu_pod.sh install" in done.stderr


def test_job_set_is_whole():
  yaml = pytest.importorskip("yaml")
  found = yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())
  assert found["kind"] == "JobSet"
  (job,) = found["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  # Every host of the slice has its pod, and a lost one ends the attempt.
  assert spec["parallelism"] == spec["completions"]
  assert spec["backoffLimit"] == 0
  pod = spec["template"]["spec"]
  (container,) = pod["containers"]
  (mount,) = container["volumeMounts"]
  assert mount["name"] == pod["volumes"][0]["name"]
  workdir = container["args"][1].removeprefix("--workdir=")
  assert pathlib.Path(workdir).is_relative_to(mount["mountPath"])
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  chips = np.prod([int(n) for n in topology.split("x")])
  per_host = container["resources"]["limits"]["google.com/tpu"]
  assert spec["parallelism"] * per_host == chips


@pytest.mark.slow
def test_address_is_no_workdir(tmp_path):
  code, printed = faulty.run(
    faulty.command(pathlib.Path("x"), "--workdir=gs://bucket/run")
  )
  assert code == 1
  assert "gs://bucket/run is not a folder: mount it" in printed
