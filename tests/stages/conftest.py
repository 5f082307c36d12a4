"""One small checkpoint with redrawn weights and one exported graph, made once."""

import pytest
from tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_onnx(tiny_checkpoint):
    from vitdeploy.stages.export import ExportOptions, export

    options = ExportOptions(golden="digits:validation", reference="digits:test")
    return export(tiny_checkpoint.path, tiny_checkpoint.path.with_name("tiny.onnx"), options=options)
