"""Ray's workers in the place of this process: the same choice, and a machine less in the middle of it."""

from __future__ import annotations

import pytest
from tiny_runs import parts, pool_rows, read_jsonl, save, scores

ray = pytest.importorskip("ray")

from adg_plugin import select  # noqa: E402
from adg_plugin.errors import ADGError  # noqa: E402
from adg_plugin.store import RunFolder  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(400)]

ROWS = 1000
SETTINGS = {"budget": 20, "num_samples": 3, "max_new_tokens": 8, "ray_block_rows": 25, "device": "cpu"}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with room for one worker each, and a head that has none."""
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inline")
    model = save(folder / "model")
    chosen = select(pool_rows(ROWS), model=model, config=SETTINGS, output_dir=folder / "run", show_progress=False)
    return model, chosen


def by_ray(model, run, **settings):
    config = {**SETTINGS, "executor": "ray", **settings}
    return select(pool_rows(ROWS), model=model, config=config, output_dir=run, show_progress=False)


def test_workers_choose_what_this_process_chooses(cluster, inline, tmp_path):
    model, expected = inline
    chosen = by_ray(model, tmp_path / "run")
    assert chosen.ids == expected.ids
    assert scores(chosen.run_dir) == scores(expected.run_dir)
    before = parts(chosen.run_dir)
    assert by_ray(model, tmp_path / "run", budget=30).manifest["rows"]["selected"] == 30
    assert parts(chosen.run_dir) == before  # nothing is sampled again


def test_a_worker_with_other_weights_is_refused(cluster, inline, tmp_path, monkeypatch):
    from adg_plugin.engines import ray as ray_pool

    model, _ = inline
    monkeypatch.setattr(ray_pool.RayEngine, "__init__", _with_another_identity(ray_pool.RayEngine.__init__))
    with pytest.raises(ADGError, match="this worker finds other weights there than the process that started it"):
        by_ray(model, tmp_path / "run")


def _with_another_identity(init):
    return lambda self, config, identity, **options: init(self, config, "another", **options)


def test_no_cluster_is_named(inline, tmp_path, monkeypatch):
    model, _ = inline
    monkeypatch.setattr("ray.is_initialized", lambda: False)

    def fail(**options):
        raise ConnectionError(f"Could not find any running Ray instance at {options['address']}")

    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(ADGError, match=r"ray_address is '10\.0\.0\.1:6379': there is no such cluster \(Could not find"):
        by_ray(model, tmp_path / "run", ray_address="10.0.0.1:6379")


def test_a_node_that_goes_in_the_middle_costs_its_block_only(cluster, inline, tmp_path, monkeypatch):
    """Last in this file: the cluster has one worker less afterwards."""
    from adg_plugin.engines.ray import RayEngine

    ray_cluster, nodes = cluster
    model, expected = inline
    gone, run_on = [], RayEngine.run

    def run(self, prompts):
        for number, result in enumerate(run_on(self, prompts)):
            if number == 100:
                assert len({node["NodeID"] for node in ray.nodes() if node["Alive"]}) == 3
                ray_cluster.remove_node(nodes[0], allow_graceful=False)
                gone.append(number)
            yield result

    monkeypatch.setattr(RayEngine, "run", run)
    chosen = by_ray(model, tmp_path / "run", ray_min_workers=2)
    assert gone
    assert len({node["NodeID"] for node in ray.nodes() if node["Alive"]}) == 2
    assert chosen.ids == expected.ids
    found = list(RunFolder.read(chosen.run_dir).results())
    assert len(found) == len({r.id for r in found}) == ROWS
    assert read_jsonl(chosen.path) == read_jsonl(expected.path)
