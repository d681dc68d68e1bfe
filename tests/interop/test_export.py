"""Graphs: against onnxruntime, and a process that has JAX alone."""

import subprocess
import sys

import numpy as np
import pytest
from parameters import drawn
from scipy.special import softmax
from stacks import STACKS, apply, assert_close

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.interop import export
from lstm_mnist_jax.interop.weights import from_params


@pytest.mark.parametrize("image_shape", [(6, 5), (6, 5, 3)])
def test_onnxruntime_computes_the_same(config, rng, image_shape):
    onnxruntime = pytest.importorskip("onnxruntime")
    params = drawn(config, image_shape)
    data = export.to_onnx(params, image_shape, ("one", "two", "three"))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["classes"].split("\n") == ["one", "two", "three"]
    images = rng.integers(0, 256, (7, *image_shape)).astype(np.uint8)
    expected = np.asarray(apply(params, images, config))
    for batch in (1, 4, 7):
        probabilities, logits = session.run(["probabilities", "logits"], {"images": images[-batch:]})
        assert_close(logits, expected[-batch:])
        assert_close(probabilities, softmax(expected[-batch:], axis=-1))


def test_an_unknown_pooling_is_not_exported(params):
    graph = export._OnnxGraph(None)
    with pytest.raises(NotImplementedError, match="'median'"):
        export._onnx_pooled(graph, "sequence", "final", "median", from_params(params))


def test_onnx_files_hold_onnxs_own_lstms(params, config):
    import onnx

    graph = onnx.load_from_string(export.to_onnx(params, (6, 5))).graph
    assert [node.op_type for node in graph.node].count("LSTM") == len(config.hidden_features)


STABLEHLO_PROGRAM = """
import sys
import jax, numpy as np
images = np.load("images.npy")
for name in sys.argv[1:]:
    exported = jax.export.deserialize(bytearray(open(f"{name}.stablehlo", "rb").read()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for batch in (1, len(images)):
        np.savez(f"{name}-{batch}.npz", **exported.call(images[:batch]))
assert not any(name.startswith(("lstm_mnist_jax", "flax")) for name in sys.modules)
"""


@pytest.mark.slow
def test_a_program_with_jax_alone_runs_the_stablehlo_files(rng, tmp_path):
    images = rng.integers(0, 256, (7, 6, 5)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    configs = {"-".join(map(str, stack)): ModelConfig(hidden_features=stack) for stack in STACKS}
    for name, config in configs.items():
        (tmp_path / f"{name}.stablehlo").write_bytes(export.to_stablehlo(drawn(config), (6, 5), config=config))
    subprocess.run([sys.executable, "-c", STABLEHLO_PROGRAM, *configs], check=True, timeout=120, cwd=tmp_path)
    for name, config in configs.items():
        expected = np.asarray(apply(drawn(config), images, config))
        for batch in (1, 7):
            with np.load(tmp_path / f"{name}-{batch}.npz") as outputs:
                assert_close(outputs["logits"], expected[:batch])
                assert_close(outputs["probabilities"], softmax(expected[:batch], axis=-1))
