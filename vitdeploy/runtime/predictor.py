"""``load``: an artifact, open and ready to say what is on images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts import Artifact, OnnxModel, open_artifact
from vitdeploy.artifacts.bundle import Bundle, is_bundle, read_bundle
from vitdeploy.backends.opening import open_session
from vitdeploy.errors import ArtifactError, DataError, GraphError, UsageError
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.preprocess import to_input
from vitdeploy.preprocess.ahead import map_ahead, thread_count
from vitdeploy.records import ModelSpec, Preprocess
from vitdeploy.runtime.choosing import choose
from vitdeploy.runtime.images import Images, NamedImage, each_image, is_single
from vitdeploy.runtime.prediction import Prediction, predictions
from vitdeploy.sessions import Session, SessionOptions

BATCH = 16

OnError = Callable[[str, DataError], None]
"""Told the name of an image that cannot be read, and why."""


def load(
    source: Bundle | Artifact | Path | str,
    *,
    public_key: Path | str | None = None,
    options: SessionOptions = SessionOptions(),
) -> Predictor:
    """Open a bundle, an ONNX model, an engine or a checkpoint for predictions; only a checkpoint needs torch.

    Of a bundle every file is compared with its digest, and the first engine that this machine can run is opened, one
    that ``verify`` rebuilt here, or else a graph.

    Args:
        source: A bundle (folder or zip) or an artifact, open or by its path.
        public_key: The key (Ed25519, PEM) of the owner who must have signed the bundle; None takes any.
        options: Where it runs.
    Raises:
        ArtifactError: It is missing, damaged, not signed by the owner, or carries no preprocessing.
        BackendError: Its runtime is not installed, or cannot run it on this machine.
        UsageError: ``public_key`` is no such key, or is given for what is no bundle by its path.
    """
    if isinstance(source, str | Path) and (Path(source).is_dir() or is_bundle(Path(source))):
        source, public_key = read_bundle(source, public_key), None
    if public_key is not None:
        raise UsageError("a bundle alone is signed: name it by its path")
    if isinstance(source, Bundle):
        choice = choose(source, options)
        return Predictor(choice.artifact, options, choice.graph)
    return Predictor(open_artifact(source), options)


class Predictor:
    """A model that is open: images in, classes or features out. A context manager; several threads may share it.

    Images are, one or several, in a list, a column of a table or from an iterator: a file, by its path, its bytes, open
    in mode "rb", or as datasets of Hugging Face keep it, ``{"bytes": …, "path": …}``; a folder, of which all images
    count; an image of Pillow; an array of uint8, [H, W], [H, W, C] or [N, H, W, C], red first (of OpenCV's frames
    ``frame[..., ::-1]``). They are resized, cropped and normalised as the training's evaluation did.

    It cannot be pickled or copied, since what a runtime holds is its process's: ``batch_predictor`` makes what can.
    """

    def __init__(
        self, artifact: Artifact, options: SessionOptions = SessionOptions(), graph: OnnxModel | None = None
    ) -> None:
        if artifact.manifest.preprocess is None:
            raise ArtifactError(f"{str(artifact.path)!r} carries no preprocessing, so an image cannot become its input")
        self.artifact = artifact
        self.preprocess: Preprocess = artifact.manifest.preprocess
        self.model: ModelSpec = artifact.manifest.model
        self._options = options
        self._graph = artifact if isinstance(artifact, OnnxModel) else graph
        self._lock = threading.Lock()
        self._session: Session = open_session(artifact, options)
        self._features: Session | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty where the model does not name them."""
        return self.model.classes

    def predict(self, images: Images, *, top: int = 5) -> list[Prediction]:
        """Return the ``top`` most likely classes of each image, in the order given; of one image, a list of one.

        Raises:
            UsageError: ``top`` is less than 1, or there are no images.
            DataError: An image cannot be read; ``stream`` goes on past those.
        """
        found = list(self.stream(images, top=top))
        if not found:
            raise UsageError("no images were given, expected at least one")
        return found

    def stream(
        self, images: Images, *, top: int = 5, batch: int = BATCH, on_error: OnError | None = None
    ) -> Iterator[Prediction]:
        """Yield a prediction for each image, in order, while the next ones are decoded and preprocessed in threads.

        At most two batches are decoded ahead, so memory does not grow with the number of images. With ``batch=1``, of
        a source that waits, such as a camera, each prediction comes as soon as it is computed.

        Args:
            images: As for ``predict``.
            top: How many classes.
            batch: How many images run at a time.
            on_error: Called for an image that cannot be read, such as an empty frame, or None in place of one, which is
                then left out; None raises.
        Raises:
            UsageError: ``top`` or ``batch`` is less than 1.
            DataError: An image cannot be read and ``on_error`` is None, or ``images`` are none.
        """
        if top < 1 or batch < 1:
            raise UsageError(f"top={top} and batch={batch}: expected at least 1")
        return self._stream(images, top, batch, on_error)

    def _stream(self, images: Images, top: int, batch: int, on_error: OnError | None) -> Iterator[Prediction]:
        for names, pixels in self._batches(images, batch, on_error):
            yield from predictions(names, self._run(self._session, pixels), self.model, top)

    def outputs(self, images: Images) -> NDArray[np.float32]:
        """Return what the model computes of each image, [n, outputs]: for a classifier the logits.

        Raises:
            UsageError: There are no images.
            DataError: An image cannot be read.
        """
        return self._all(self._session, images)

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return the features of each image, [n, D]: the outputs of a model without classes, else what its head reads.

        An engine gives nothing but its logits: where it comes from a bundle, its graph is run under ONNX Runtime.

        Raises:
            UsageError: There are no images.
            GraphError: The model has no single head whose input is the features, or is an engine or a checkpoint with
                classes.
            DataError: An image cannot be read.
        """
        return self._all(self._feature_session(), images)

    def _feature_session(self) -> Session:
        if self.model.task == "features":
            return self._session
        if self._features is None:
            self._features = self._open_features()
        return self._features

    def _open_features(self) -> Session:
        if self._graph is None:
            raise GraphError(
                f"{str(self.artifact.path)!r} gives its classes alone: load its ONNX model, or a bundle of both"
            )
        plan = self._graph.manifest.plan
        if plan is not None and "stream" in plan.rotated:
            raise GraphError(
                f"the features of {str(self._graph.path)!r} are in another basis, because its stream is rotated: "
                "take them from its FP32 graph, or quantize without the step 'streams'"
            )
        from vitdeploy.backends.onnxruntime import open_graph, saturates_here
        from vitdeploy.graph.head_input import find_head_input

        graph = self._graph.load()
        features = find_head_input(graph)
        graph.graph.outputs[:] = [features]
        return open_graph(graph, self._options, exact_integers=saturates_here(self._graph.manifest))

    def read(self, images: Images, batch: int = BATCH) -> Iterator[tuple[str, NDArray[np.uint8] | DataError]]:
        """Yield the name of each image and its pixels, [H, W, C] resized and cropped, or why there are none."""

        def one(image: NamedImage) -> tuple[str, NDArray[np.uint8] | DataError]:
            try:
                return image.name, image.pixels(self.preprocess)
            except DataError as error:
                return image.name, error

        if is_single(images):
            return map(one, each_image(images))
        return map_ahead(one, each_image(images), ahead=max(2 * batch, 2 * thread_count()))

    def run(self, pixels: NDArray[np.uint8], *, features: bool = False) -> NDArray[np.float32]:
        """Return the outputs, or the features, [n, D], of pixels as ``read`` gives them, [n, H, W, C].

        Raises:
            GraphError: As for ``embed``.
            BackendError: The runtime failed.
        """
        return self._run(self._feature_session() if features else self._session, pixels)

    def _all(self, session: Session, images: Images) -> NDArray[np.float32]:
        parts = [self._run(session, pixels) for _, pixels in self._batches(images, BATCH, None)]
        if not parts:
            raise UsageError("no images were given, expected at least one")
        return np.concatenate(parts)

    def _run(self, session: Session, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        inputs = to_input(pixels, self.preprocess)
        with self._lock:
            return run_batch(session, inputs, self.artifact.manifest.batch_limits)

    def _batches(
        self, images: Images, batch: int, on_error: OnError | None
    ) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
        """Yield names and pixels [b, H, W, C] of up to ``batch`` images, which all have one size."""
        names: list[str] = []
        held: list[NDArray[np.uint8]] = []
        for name, outcome in self.read(images, batch):
            if isinstance(outcome, DataError):
                if on_error is None:
                    raise outcome
                on_error(name, outcome)
                continue
            if held and outcome.shape != held[0].shape:
                yield names, np.stack(held)
                names, held = [], []
            names.append(name)
            held.append(outcome)
            if len(held) == batch:
                yield names, np.stack(held)
                names, held = [], []
        if held:
            yield names, np.stack(held)

    def close(self) -> None:
        """Release what the runtime holds; a second call does nothing."""
        self._session.close()
        if self._features is not None:
            self._features.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "an open model goes to no other process: load it there, or take a batch_predictor, which can be pickled"
        )

    def __repr__(self) -> str:
        return f"<Predictor of {self.artifact!r} on {self._session.provider}>"
