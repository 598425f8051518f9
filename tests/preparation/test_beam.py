"""The pipeline with Apache Beam's DirectRunner where it is installed, and what we ask of it with a
stand-in."""

import sys
import types

import pytest

from videomar_jax.io.files import sha256
from videomar_jax.preparation import beam as pipelines
from videomar_jax.preparation import run
from videomar_jax.preparation.beam import prepare_with_beam


def files(output):
    return {
        path.relative_to(output).as_posix(): sha256(path)
        for path in output.rglob("*")
        if path.is_file()
    }


def test_the_direct_runner_makes_the_same_bytes(task, prepared):
    pytest.importorskip(
        "apache_beam", reason="Apache Beam is not installed: pip install apache-beam"
    )
    this = task()
    assert prepare_with_beam(this, ["--runner=DirectRunner"])["clips"] == 13
    assert files(this.output) == files(prepared)


class StandIn:
    """The five names of Apache Beam that the pipeline uses: a collection is a list, a transform a
    function of it."""

    def __init__(self):
        self.options, self.elements = None, None

    def install(self, monkeypatch):
        module = types.ModuleType("apache_beam")
        module.Pipeline, module.Create = self.pipeline, self.create
        module.Reshuffle, module.Map = self.reshuffle, self.map
        options = types.ModuleType("apache_beam.options")
        pipeline_options = types.ModuleType("apache_beam.options.pipeline_options")
        pipeline_options.PipelineOptions = list
        for added in (module, options, pipeline_options):
            monkeypatch.setitem(sys.modules, added.__name__, added)

    def pipeline(self, options):
        self.options = options
        return _Collection(None)

    def create(self, elements):
        self.elements = list(elements)
        return _Transform(lambda _: list(elements))

    def reshuffle(self):
        return _Transform(lambda elements: elements[::-1])

    def map(self, function, *arguments):
        return _Transform(lambda elements: [function(element, *arguments) for element in elements])


class _Transform:
    def __init__(self, function):
        self.function = function

    def __rrshift__(self, label):
        return self


class _Collection:
    def __init__(self, elements):
        self.elements = elements

    def __or__(self, transform):
        return _Collection(transform.function(self.elements))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def beam(monkeypatch):
    stand_in = StandIn()
    stand_in.install(monkeypatch)
    yield stand_in
    pipelines._open.cache_clear()


def test_every_shard_is_an_element_and_the_bytes_are_the_same(task, prepared, beam):
    this = task()
    manifest = prepare_with_beam(this, ["--runner=DirectRunner"])
    assert manifest["clips"] == 13 and beam.options == ["--runner=DirectRunner"]
    assert beam.elements == list(range(len(manifest["shards"])))
    assert files(this.output) == files(prepared)


def test_the_pipeline_continues_where_another_preparation_stopped(task, prepared, beam):
    this = task()
    run.prepare(this, 0, 2)
    assert prepare_with_beam(this)["clips"] == 13
    assert beam.elements == [1, 3, 5, 7], "only what process 1 of 2 would have made"
    assert files(this.output) == files(prepared)
    beam.elements = None
    assert prepare_with_beam(this)["clips"] == 13 and beam.elements is None


def test_a_bundle_that_is_tried_again_changes_nothing(task, prepared, beam):
    this = task()
    prepare_with_beam(this)
    work = pipelines.WorkerOptions(str(this.videos), str(this.output), None, 2)
    assert pipelines.make_shard(0, work) == "clips-train.array_record-00000-of-00006"
    assert files(this.output) == files(prepared)


def test_without_beam_the_error_says_how_to_get_it(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    this = task()
    with pytest.raises(ValueError, match=r"pip install .*videomar_jax\[beam\]"):
        prepare_with_beam(this)
    assert not this.output.exists()
