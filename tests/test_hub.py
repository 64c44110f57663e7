"""The Hugging Face Hub: its own client, against a server on this machine."""

import base64
import http.server
import json
import os
import pathlib
import socket
import sys
import threading
import traceback
import urllib.parse

import jax
import numpy as np
import pytest
import yaml
from begun import begin
from tiny import plane

from rad_jax import config as configs
from rad_jax import run as runs
from rad_jax.evaluation import sampling
from rad_jax.interop import card, hub, pretrained
from rad_jax.training import sharding, workdir

TOKEN = "hf_" + "s3cr3t" * 5
NAME = "someone/plane-robust"


class Server(http.server.BaseHTTPRequestHandler):
  """What huggingface_hub asks for one small repository after another.

  `repos` has their files, `private` what they were made as; a name that ends
  in -private is denied, one in -broken fails.
  """

  repos: dict[str, dict[str, bytes]]
  private: dict[str, bool]

  def log_message(self, *args):
    pass

  def answer(self, tree, status=200, **headers):
    content = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    self.send_response(status)
    for name, value in {"Content-Length": len(content), **headers}.items():
      self.send_header(name.replace("_", "-"), str(value))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def do_POST(self):
    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    if self.headers.get("Authorization") != f"Bearer {TOKEN}":
      return self.answer({"error": f"bad token {TOKEN}"}, 401)
    if self.path == "/api/validate-yaml":
      return self.answer({"warnings": [], "errors": []})
    lines = [json.loads(line) for line in body.splitlines() if line]
    if self.path == "/api/repos/create":
      made = lines[0]
      name = f"{made['organization']}/{made['name']}"
      if name.endswith("-broken"):
        return self.answer({"error": TOKEN}, 400)
      url = {"url": f"http://{self.headers['Host']}/{name}"}
      if name in self.repos:
        return self.answer(url, 409)
      # It was renamed in 2.x.
      private = made.get("private") or made.get("visibility") == "private"
      self.repos[name], self.private[name] = {}, private
      return self.answer(url)
    *_, owner, name, what, _ = self.path.split("/")
    files = self.repos[f"{owner}/{name}"]
    if what == "preupload":
      modes = {"uploadMode": "regular", "shouldIgnore": False}
      found = [{"path": file["path"]} | modes for file in lines[0]["files"]]
      return self.answer({"files": found})
    for line in lines:
      if line["key"] == "file":
        content = base64.b64decode(line["value"]["content"])
        files[line["value"]["path"]] = content
      elif line["key"] == "deletedFile":
        del files[line["value"]["path"]]
    url = f"http://{self.headers['Host']}/{owner}/{name}/commit/{'0' * 40}"
    return self.answer({"commitUrl": url, "commitOid": "0" * 40})

  def do_GET(self):
    parts = urllib.parse.unquote(self.path.partition("?")[0]).split("/")[1:]
    if parts[0] == "api":
      _, _, owner, name, *what = parts
    else:
      owner, name, *what = parts
    files = self.repos.get(f"{owner}/{name}")
    if files is None:
      code = {"X-Error-Code": "RepoNotFound"}
      status = 401 if name.endswith("-private") else 404
      return self.answer({"error": f"not with {TOKEN}"}, status, **code)
    if what[:1] == ["resolve"]:
      content = files["/".join(what[2:])]
      tag = f'"{hash(content):x}"'
      return self.answer(content, ETag=tag, X_Repo_Commit="0" * 40)
    if what[:1] == ["tree"]:
      listed = [
        {"type": "file", "path": path, "size": len(x), "oid": "0"}
        for path, x in files.items()
      ]
      return self.answer(listed)
    siblings = [{"rfilename": path} for path in files]
    repo = {"id": f"{owner}/{name}", "sha": "0" * 40, "siblings": siblings}
    return self.answer(repo)

  do_HEAD = do_GET


@pytest.fixture
def client(tmp_path, monkeypatch):
  """(address, token) -> huggingface_hub is imported anew, for that server."""
  pytest.importorskip("huggingface_hub")

  def use(address, token=TOKEN):
    environment = {
      "HF_ENDPOINT": address,
      "HF_HOME": str(tmp_path / "cache"),
      "HF_TOKEN": token,
      "HF_HUB_DISABLE_PROGRESS_BARS": "1",
      "HF_HUB_DISABLE_XET": "1",
      "HF_HUB_OFFLINE": "0",
      "NO_PROXY": "127.0.0.1",
    }
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    for name in [*sys.modules]:
      if name.split(".")[0] == "huggingface_hub":
        monkeypatch.delitem(sys.modules, name)

  return use


@pytest.fixture
def server(client):
  """The handler's class of a server that the client talks to."""
  handler = type("OfTest", (Server,), {"repos": {}, "private": {}})
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    client(f"http://127.0.0.1:{listening.server_port}")
    yield handler
    listening.shutdown()
    thread.join()


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def push(config, folder, name=NAME):
  model = sampling.newest_model(runs.build(config), folder)
  fields = configs.flatten(config.to_dict())
  staged = card.write(folder, model.params, model.step, fields, name, "mit")
  return hub.upload(staged, name)


def test_what_is_pushed_is_read_back(server, tmp_path):
  """The checkpoint, also after the next push, which leaves one."""
  config = plane()
  run = runs.build(config)
  folder = tmp_path / "run"
  for step in (20, 40):
    state = begin(run, folder, step)
    assert push(config, folder).endswith(f"/{NAME}")
    server.repos[NAME]["theirs.json"] = b"{}"
  files = server.repos[NAME]
  assert "theirs.json" in files
  assert server.private == {NAME: True}
  steps = {
    path.split("/")[1] for path in files if path.startswith("checkpoint")
  }
  assert steps == {"40"}
  assert files["config.json"] == (folder / "config.json").read_bytes()
  assert b"step 40" in files["README.md"]
  assert b"diffusers" not in files["README.md"]

  other = plane(model__mlp__width=4, train__init_from=f"hf:{NAME}")
  fields = configs.flatten(other.to_dict())
  taken = pretrained.taken_over(fields, (), tmp_path / "new")
  assert taken == {"model.mlp.width": 8}
  other.update_from_flattened_dict(taken)
  started = workdir.start_from(
    pathlib.Path(other.train.init_from),
    jax.jit(run.initial_state)(),
    runs.build(other),
    sharding.device_mesh(),
  )
  assert_same(started.params, state.ema_params)


def test_card_says_what_it_is_of():
  """Every figure, with what it was measured by; and no folder of ours."""
  config = plane(
    objective__lam=0.7,
    data__corruption__fraction=0.25,
    data__data_dir="/home/me/data",
    evaluation__inception_weights="/home/me/inception.pth",
  )
  run = runs.build(config)
  evaluation = {
    "step": 20,
    "weights": "ema",
    "sampling": run.sampling._asdict(),
    "evaluation": run.evaluation._asdict(),
    "measures": {"distance": 0.123456, "spread": 2.0},
  }
  fields = configs.flatten(config.to_dict())
  told = card.write_card(fields, evaluation, 40, NAME, "mit", True)
  _, head, _ = told.split("---\n", 2)
  assert yaml.safe_load(head) == {
    "license": "mit",
    "library_name": "diffusers",
    "pipeline_tag": "unconditional-image-generation",
    "tags": ["diffusion", "rad_jax", config.objective.name],
  }
  for text in (
    "| Data | oblique_plane, points |",
    "| Corruption | 25% of the examples: gaussian, strength 0.2 |",
    f"| Method | {config.objective.name}, lambda 0.7 |",
    "| Process | ddpm, linear schedule, 50 timesteps |",
    "| measure | at step 20 (this is step 40), ema |",
    "| distance | 0.1235 |",
    "num_steps 4, sampler ddpm, stop_sigma 0.0,",
    "num_samples 4000",
    f'DDPMPipeline.from_pretrained("{NAME}")',
    f"--config.train.init_from=hf:{NAME}",
  ):
    assert text in told
  assert "/home" not in told
  untold = card.write_card(fields, {}, 40, NAME, "mit", False)
  assert "None were taken." in untold and "DDPMPipeline" not in untold


def test_diffusers_reads_the_folder_that_is_pushed(tmp_path, monkeypatch):
  """Where it has such a network; the checkpoint goes with it."""
  (tmp_path / "checkpoints/20/state").mkdir(parents=True)
  (tmp_path / "config.json").write_text("{}")
  written = []
  monkeypatch.setattr(
    pretrained, "export", lambda *given: written.append(given)
  )
  fields = configs.flatten(plane().to_dict())
  for _ in range(2):
    folder = card.write(tmp_path, "params", 20, fields, NAME, "mit")
    assert (folder / "checkpoints/20/state").is_dir()
    assert "DDPMPipeline" in (folder / "README.md").read_text()
  assert written == [("params", folder, fields)] * 2


def test_a_revision_is_asked_for(server):
  server.repos[NAME] = {"config.json": b"{}"}
  assert (hub.local(f"hf:{NAME}@v1") / "config.json").read_text() == "{}"


def test_what_was_fetched_serves_without_the_hub(server, client):
  server.repos[NAME] = {"config.json": b"{}", "big.bin": b"0"}
  folder = hub.local(f"hf:{NAME}")
  assert [path.name for path in folder.iterdir()] == ["config.json"]
  client(closed_port())
  assert hub.local(f"hf:{NAME}") == folder


def closed_port():
  with socket.create_server(("127.0.0.1", 0)) as free:
    return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
  "name, told",
  [
    ("someone/none", r"no such repository.*\(404\).*`hf auth login`"),
    ("someone/its-private", r"no such repository.*\(401\).*hf auth login"),
    ("not a name", "type --hub=owner/name, or hf:owner/name"),
  ],
)
def test_what_is_not_on_the_hub_is_one_line(server, name, told, capfd, caplog):
  with pytest.raises(hub.HubError, match=told) as error:
    hub.local(f"hf:{name}")
  assert_secret(error, capfd, caplog)


@pytest.mark.parametrize(
  "name, token, told",
  [
    (NAME, "hf_wrong", r"\(401\)"),
    ("someone/its-broken", TOKEN, "status 400"),
    ("", TOKEN, "'' is no repository: type --hub=owner/name"),
  ],
)
def test_what_cannot_be_pushed_is_one_line(
  server, client, tmp_path, name, token, told, capfd, caplog
):
  client(os.environ["HF_ENDPOINT"], token)
  (tmp_path / "hub").mkdir()
  with pytest.raises(hub.HubError, match=told) as error:
    hub.upload(tmp_path / "hub", name)
  assert_secret(error, capfd, caplog)


def test_no_hub_is_one_line(client, capfd, caplog):
  client(closed_port())
  with pytest.raises(hub.HubError, match="cannot be reached") as error:
    hub.local(f"hf:{NAME}")
  assert_secret(error, capfd, caplog)


def assert_secret(error, capfd, caplog):
  """One line; the token is not in it, nor in what --traceback would show."""
  assert "\n" not in str(error.value)
  told = "".join(traceback.format_exception(error.value))
  shown = [told, *capfd.readouterr(), caplog.text]
  assert not any(TOKEN in text or "hf_wrong" in text for text in shown)


def test_without_its_library_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(hub.HubError, match="pip install huggingface_hub"):
    hub.local(f"hf:{NAME}")
