"""Which artifact of a bundle runs here: the first engine that can, else a graph; and an engine built anew for here."""

from __future__ import annotations

from dataclasses import dataclass

from vitdeploy import environment
from vitdeploy.artifacts import Engine, OnnxModel, read_engine
from vitdeploy.artifacts.bundle import Bundle
from vitdeploy.backends import get_backend
from vitdeploy.backends.opening import default_builder, engine_backend
from vitdeploy.backends.tensorrt_backend import PlanBackend
from vitdeploy.errors import ArtifactError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.sessions import BuildTarget, SessionOptions
from vitdeploy.text import printable


@dataclass(frozen=True)
class Choice:
    """What runs here, the graph behind it, and for each engine that was passed over the reason."""

    artifact: Engine | OnnxModel
    graph: OnnxModel
    passed_over: tuple[str, ...] = ()


def choose(bundle: Bundle, options: SessionOptions = SessionOptions()) -> Choice:
    """Return the first engine that this machine can run, else one that was rebuilt here, else a graph.

    Among graphs, those that were quantized for another runtime than ONNX Runtime come last.
    """
    graphs = sorted(bundle.graphs(), key=lambda graph: graph.manifest.target not in (None, "onnxruntime"))
    passed_over: list[str] = []
    for engine in bundle.engines():
        reason = obstacle_to(engine, options)
        if reason is None:
            return Choice(engine, graph_of(engine, bundle), tuple(passed_over))
        passed_over.append(f"{engine.path.name}: {reason}")
    for graph in bundle.graphs():
        rebuilt = find_rebuilt(graph, options)
        if rebuilt is not None:
            return Choice(rebuilt, graph, tuple(passed_over))
    return Choice(graphs[0], graphs[0], tuple(passed_over))


def obstacle_to(engine: Engine, options: SessionOptions = SessionOptions()) -> str | None:
    """Return why an engine cannot run here, found without loading its plan; None where it can."""
    if options.device == "cpu" or options.provider is not None:
        return f"it runs on a GPU, and {options.provider or options.device!r} was asked for"
    try:
        backend: object = get_backend(engine_backend(engine))
    except ArtifactError as error:
        return str(error)
    assert isinstance(backend, PlanBackend)
    return backend.mismatch(engine) or backend.can_run()


def graph_of(engine: Engine, bundle: Bundle) -> OnnxModel:
    """Return the graph of a bundle that an engine was built from.

    Raises:
        ArtifactError: It is not in the bundle.
    """
    wanted = engine.manifest.parents.get("onnx")
    for graph in bundle.graphs():
        if graph.digest == wanted:
            return graph
    raise ArtifactError(f"{str(bundle.path)!r} lacks the graph that {engine.path.name!r} was built from")


def find_rebuilt(graph: OnnxModel, options: SessionOptions = SessionOptions()) -> Engine | None:
    """Return an engine that ``rebuild`` made of this graph, and that can run here."""
    folder = environment.cache_folder() / "engines"
    for path in sorted(folder.glob(f"{graph.digest[:32]}-*.engine")):
        try:
            engine = read_engine(path)
        except ArtifactError:
            continue  # damaged: as if it were not there
        if engine.manifest.parents.get("onnx") == graph.digest and obstacle_to(engine, options) is None:
            return engine
    return None


def rebuild(bundle: Bundle, progress: Progress = SILENT) -> Engine:
    """Build an engine for this machine from the graph of a bundle, into the cache folder, where ``choose`` finds it.

    The graph is that of the bundle's first engine, with its batch sizes; without engines the first graph that was not
    quantized for another runtime, with a static batch of 1.

    Raises:
        BackendError: No library that builds engines is installed, or it is unfit for this machine.
        BuildError: It refuses the graph.
    """
    engines, graphs = bundle.engines(), bundle.graphs()
    target = BuildTarget()
    if engines:
        graph, built = graph_of(engines[0], bundle), engines[0].manifest.build
        if built is not None:
            target = BuildTarget(batch=built.profiles or built.batch)
    else:
        graph = next((one for one in graphs if one.manifest.target in (None, "tensorrt")), graphs[0])
    name = default_builder()
    backend = get_backend(name)
    gpu = environment.current().compute_capability or "no-gpu"
    place = environment.cache_folder() / "engines" / f"{graph.digest[:32]}-{name}-{backend.version()}-{gpu}.engine"
    progress.note(printable(f"building {graph.path.name} with {name} {backend.version()}"))
    return backend.build(graph, place, target, progress)
