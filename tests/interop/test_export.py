"""Graphs: against onnxruntime, and a process that has JAX alone."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from stacks import assert_close

from lstm_mnist_jax import model
from lstm_mnist_jax.interop import export


@pytest.mark.parametrize("image_shape", [(6, 5), (6, 5, 3)])
def test_onnxruntime_computes_the_same(config, rng, image_shape):
    onnxruntime = pytest.importorskip("onnxruntime")
    params = model.init(config, jax.random.key(3), image_shape, 3)
    data = export.to_onnx(params, image_shape, ("one", "two", "three"))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["classes"].split("\n") == ["one", "two", "three"]
    for batch in (1, 4, 7):
        images = rng.integers(0, 256, (batch, *image_shape)).astype(np.uint8)
        probabilities, logits = session.run(["probabilities", "logits"], {"images": images})
        expected = model.apply(params, images, config)
        assert_close(logits, np.asarray(expected))
        assert_close(probabilities, np.asarray(jax.nn.softmax(expected)))


def test_onnx_files_hold_onnxs_own_lstms(params, config):
    import onnx

    graph = onnx.load_from_string(export.to_onnx(params, (6, 5))).graph
    assert [node.op_type for node in graph.node].count("LSTM") == len(config.hidden_features)


STABLEHLO_PROGRAM = """
import sys
import jax, numpy as np
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
for batch in (1, len(images)):
    outputs = exported.call(images[:batch])
np.savez(sys.argv[3], **outputs)
assert not any(name.startswith(("lstm_mnist_jax", "flax")) for name in sys.modules)
assert exported.platforms == ("cpu", "cuda", "tpu")
"""


def test_a_program_with_jax_alone_runs_the_stablehlo_file(params, config, rng, tmp_path):
    images = rng.integers(0, 256, (5, 6, 5)).astype(np.uint8)
    (tmp_path / "model.stablehlo").write_bytes(export.to_stablehlo(params, (6, 5)))
    np.save(tmp_path / "images.npy", images)
    paths = [str(tmp_path / name) for name in ("model.stablehlo", "images.npy", "outputs.npz")]
    subprocess.run([sys.executable, "-c", STABLEHLO_PROGRAM, *paths], check=True, timeout=120)
    outputs, logits = np.load(tmp_path / "outputs.npz"), np.asarray(model.apply(params, images, config))
    assert_close(outputs["logits"], logits)
    assert_close(outputs["probabilities"], np.asarray(jax.nn.softmax(logits)))
