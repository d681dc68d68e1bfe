"""Deliberate faults: shows that the suite finds each of them.

    python tests/faults.py                    every fault: each must make one of its tests fail
    python tests/faults.py "gate order" crc   those whose names contain one of these words
    python tests/faults.py --show             prints the failures too, as a developer would read them
    python tests/faults.py --root ANOTHER     on another checkout of the repository

Each fault is made in a copy of the working tree; the tests of the files named here run on it until one fails. Add a
fault for each new part. A fault that no test finds is a missing test.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "lstm_mnist_jax"


@dataclass(frozen=True)
class Fault:
    """In `file` of the package, `old` becomes `new`; one of the tests in `tests` (names of files) must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def fault(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(name, file, old, new, tests)


FAULTS = [
    # The precision of matrix products.
    fault("a gradient given by hand has JAX's own precision", "rnn/derivatives.py",
          "with jax.default_matmul_precision(self.call.precision):", "with jax.default_matmul_precision(None):",
          "test_precision.py"),
    fault("the predictions after each step have JAX's own precision", "introspection.py",
          "with model.precision_of(config):\n        if not config.bidirectional:",
          "if True:\n        if not config.bidirectional:", "test_precision.py"),
    # The recurrence.
    fault("gate order", "rnn/xla_loops.py", "return 0.5 * i + 0.5, 0.5 * f + 0.5, g,",
          "return 0.5 * f + 0.5, 0.5 * i + 0.5, g,", "test_recurrence.py"),
    fault("a factor of the backward loop is forgotten", "rnn/xla_loops.py", "[g * i * (1 - i),",
          "[g * (1 - i),", "test_recurrence.py"),
    fault("the bias has no gradient of its first step", "rnn/xla_loops.py", "jnp.sum(gradients, (0, 1))",
          "jnp.sum(gradients[1:], (0, 1))", "test_recurrence.py", "test_rnn.py"),
    fault("inputs without a sharding go through automatic axes", "rnn/sharding.py",
          "if not any(map(any, specs)) and", "if False and", "test_sharding.py"),
    fault("the last carry of a padded sequence is one step early", "rnn/scan.py", "jnp.clip(lengths - 1, 0,",
          "jnp.clip(lengths - 2, 0,", "test_rnn.py", "test_stack.py"),
    fault("remat counts each sequence's length from the start of every chunk", "rnn/scan.py", "lengths - start, 0,",
          "lengths, 0,", "test_stack.py"),
    fault("the gradient of a bfloat16 state is kept in bfloat16", "rnn/products.py",
          "return wider_dtype(dtype, jnp.float32)", "return jnp.dtype(dtype)", "test_stack.py"),
    fault("lengths of int8 are clipped in their own dtype", "rnn/layers.py", ".bits < 32:", ".bits < 8:",
          "test_lstm.py"),
    fault("a reset passes the gradient of h to the step before it", "rnn/native/lstm.h", "        dh = Vector{};\n",
          "", "test_every_option.py"),
    fault("resets divide the steps read backwards as those read forwards", "rnn/scan.py",
          "if call.reverse and resets is not None:", "if False:", "test_every_option.py"),
    fault("the recurrent bias has no gradient of its first step", "rnn/gated.py", "jnp.sum(d_recurrent, (0, 1))",
          "jnp.sum(d_recurrent[1:], (0, 1))", "test_every_option.py"),
    fault("devices that share a batch each compute all of it", "rnn/native/kernel.py",
          '"b": batch, "f": features}', '"f": features}', "test_sharding.py"),
    fault("the recurrent bias is not added where nnx.GRUCell has one bias", "rnn/weights.py",
          'values["bias"] + second', 'values["bias"] + 0 * second', "test_weights.py"),
    fault("a truncated library of the kernel is loaded", "rnn/native/build.py",
          'if path.stem.rpartition("-")[2] == content:', "if True:", "test_native_build.py"),
    fault("a damaged library of a wheel is loaded", "rnn/native/build.py", 'if path.stem != f"prebuilt-{content}":',
          "if False:", "test_native_build.py"),
    fault("an error in the second C++ file is not seen", "rnn/native/build.py", "_require_none(compiler, other())",
          "other()", "test_native_build.py"),
    fault("of two libraries of a wheel, any is loaded", "rnn/native/build.py", "if len(paths) > 1:", "if False:",
          "test_wheel_library.py"),
    fault("a loop's result of another width is declared", "rnn/native/kernel.py",
          "state_dtype(first.dtype) if result.is_wide else first.dtype", "first.dtype", "test_pallas.py"),
    fault("a wheel's library takes loops with FMA where there is none", "rnn/native/choice.h",
          "!has_xgetbv || !has_fma ||", "!has_xgetbv ||", "test_loops.py"),
    fault("a deep copy of a layer is not recognized", "rnn/equations.py",
          'getattr(function, "_cache_miss", function) is getattr(other, "_cache_miss", other)', "function is other",
          "test_rnn.py"),
    fault("zoneout keeps what it should replace", "rnn/gated.py", "return jnp.where(kept, before, after)",
          "return jnp.where(kept, after, before)", "test_noise.py"),
    fault("the GRU's update gate is inverted", "rnn/cells.py", "r * recurrent[2])\n    return (n + z * (h - n),)",
          "r * recurrent[2])\n    return (h + z * (n - h),)", "test_gru.py"),
    fault("the compiled kernel forgets the bias", "rnn/native/lstm.h", "sums[j][gate][r] = bias;",
          "sums[j][gate][r] = Vector{};", "test_native.py"),
    fault("the compiled kernel adds the projected inputs of another gate", "rnn/native/vectors.h",
          "(r * N + n) * hidden", "r * N * hidden", "test_native.py", "test_gru.py"),
    fault("the compiled kernel projects the inputs of another step", "rnn/native/loops.cc",
          "job.inputs + t * job.batch", "job.inputs + n * job.batch", "test_native.py"),
    fault("the compiled kernel projects the inputs of another row where sequences begin anew", "rnn/native/loops.cc",
          "moved.inputs += row * step.features;", "", "test_gru.py"),
    fault("the compiled kernel adds the projected inputs of another row where sequences begin anew",
          "rnn/native/loops.cc", "moved.projected += C::kGates * row * hidden;", "moved.projected += 0;",
          "test_loops.py"),
    fault("the compiled gradient of the recurrent weights leaves out the initial state", "rnn/native/weight_gradient.h",
          "add(job.initial, 0, 0, job.batch);", "add(job.inputs, 0, 0, job.batch);", "test_native.py"),
    fault("the compiled gradient of the recurrent weights pairs wrong steps in a reverse layer",
          "rnn/native/weight_gradient.h", "add(job.inputs, job.batch, 0, all", "add(job.inputs, 0, 0, all",
          "test_native.py"),
    fault("threads that share the rows of a compiled gradient of weights leave one out", "rnn/native/ffi.cc",
          "rows * (part + 1) / parts, 0, 0", "rows * (part + 1) / parts - (parts > 1), 0, 0", "test_native.py"),
    fault("networks under a vmap share one gradient of the weights", "rnn/native/kernel.py",
          'loop.signature.summed != "b" and not has_own_weights', "not has_own_weights", "test_native.py"),
    fault("devices that share a batch do not add up the gradients of the weights", "rnn/native/kernel.py",
          "found if over is None or loop.signature.projects else jax.lax.psum(found, over)", "found",
          "test_sharding.py"),
    fault("the compiled kernel does not halve the weights of sigmoids", "rnn/native/vectors.h",
          "* Factor<Gates>(gate)", "", "test_native.py", "test_native_build.py"),
    fault("predictions hold all projected inputs", "rnn/native/projection.py",
          " and math.prod(sizes) <= PROJECTED_BYTES", "", "test_native.py"),
    fault("devices that divide the features do not add up what they project", "rnn/native/projection.py",
          "projected if over is None else jax.lax.psum(projected, over)", "projected", "test_sharding.py"),
    fault("the compiled backward loop takes the cell state of its own step", "rnn/native/lstm.h",
          "dc * Load(previous_c + at, count) * SigmoidSlope(f)", "dc * Load(step.state + at, count) * SigmoidSlope(f)",
          "test_native.py"),
    fault("the compiled GRU has another gate order", "rnn/native/gru.h",
          "const Vector r = Tanh(sums[i]), z = Tanh(sums[rows + i]),",
          "const Vector z = Tanh(sums[i]), r = Tanh(sums[rows + i]),", "test_native.py"),
    fault("a factor of the GRU's compiled backward loop is forgotten", "rnn/native/gru.h",
          "dn * Load(step.recurrents + at, count) * SigmoidSlope(r)", "dn * SigmoidSlope(r)", "test_native.py"),
    fault("gradients of matrices pair wrong rows where one device has them all", "rnn/products.py",
          "cpu=_outer_of_rows, default", "cpu=lambda a, b: _outer_of_rows(a[::-1], b), default", "test_recurrence.py"),
    fault("the Pallas kernel of a GPU reads h of the step at hand", "rnn/pallas.py", "at.hs[n, before, b, inner])",
          "at.hs[n, t, b, inner])", "test_pallas.py"),
    fault("the Pallas kernel of a TPU starts every step from the initial carry", "rnn/pallas.py",
          "@pl.when(pl.program_id(2) == 0)", "@pl.when(pl.program_id(2) >= 0)", "test_pallas.py"),
    fault("a factor of the Pallas kernels' gradient is forgotten", "rnn/pallas.py", "f * (1 - f) * c_before",
          "f * (1 - f)", "test_pallas.py"),
    fault("the Pallas kernel of a GPU keeps the gradient before a reset", "rnn/pallas.py",
          "value = jnp.where(reset, 0.0, value)", "pass", "test_pallas.py", "test_every_option.py"),
    # The classifier and its training.
    fault("pixels are scaled by 1/256", "model.py", "* (1 / 255)", "* (1 / 256)", "test_model.py"),
    fault("dropout does not scale up what it keeps", "model.py", "(width,)) / keep for", "(width,)) * 1.0 for",
          "test_model.py", "test_step.py"),
    fault("Adam's epsilon stands under the root", "training/optimizer.py", "(jnp.sqrt(v) + epsilon_hat)",
          "jnp.sqrt(v + epsilon_hat)", "test_optimizer.py"),
    fault("the learning rate is that of the next step", "training/step.py", "rate_at(state.step), every",
          "rate_at(state.step + 1), every", "test_step.py", "test_optimizer.py", "test_program.py"),
    fault("an epoch's sums contain the last step of the epoch before", "training/step.py",
          "state.step % steps_per_epoch == 0", "(state.step - 1) % steps_per_epoch == 0", "test_step.py"),
    fault("the EMA of the weights is one step behind", "training/step.py", "averaged(state.average, params,",
          "averaged(state.average, state.params,", "test_step.py"),
    fault("programs with another label smoothing are taken for the same", "training/program.py",
          'unused = ["selection_metric",', 'unused = ["label_smoothing", "selection_metric",', "test_step.py"),
    fault("padding counts in the evaluation's loss", "training/evaluation.py",
          "jnp.where(real, model.softmax_cross_entropy(logits, jnp.where(real, labels, 0)), 0).sum()",
          "model.softmax_cross_entropy(logits, jnp.where(real, labels, 0)).sum()", "test_step.py", "test_feed.py"),
    fault("on accelerators, test-time augmentation shifts no image", "training/evaluation.py",
          "jax.vmap(moved)(offsets)", "jax.vmap(moved)(0 * offsets)", "test_program.py"),
    fault("every epoch has the same order", "data/shuffle.py", "(seed, number)", "(seed, 0)",
          "test_shuffle.py"),
    fault("ruled lines are ink", "data/ink.py", "covered.sum(axis=1) >= LINE * width",
          "covered.sum(axis=1) > width", "test_normal_form.py"),
    fault("digits are searched for wherever classes have their names", "data/normal_form.py",
          "if is_size and are_alike.mean() >= 0.75", "if True", "test_normal_form.py"),
    fault("the boxes beside a digit's are digits", "data/ink.py", "if any(_alike(piece, frame) for frame in frames)",
          "if piece in frames", "test_normal_form.py"),
    fault("the hole of a thick digit is a digit on a sheet", "data/digits.py", " and one.thick < 0.3 * other.thick", "",
          "test_normal_form.py"),
    fault("a sheet in a rim is a digit that fills its picture", "data/digits.py", "> RECTANGULAR *", "> 9 *",
          "test_normal_form.py"),
    fault("what a shadow leaves of ruled lines is a digit", "data/signs.py", "if long >= least[not is_flat] * wide:",
          "if False:", "test_photographs.py"),
    fault("a minus between digits is left out without a word", "data/signs.py",
          "across <= reach * 0.8 * size and down <= reach * 0.4 * tall", "False", "test_photographs.py"),
    fault("smaller digits are left out without a word", "data/signs.py", "if piece.height >= least_digit", "if False",
          "test_photographs.py"),
    fault("a bracket is a 1", "data/signs.py", "return bool(wide) and all(", "return False and all(",
          "test_photographs.py"),
    fault("a plus is a 4", "data/signs.py", " or is_cross(digit)", "", "test_photographs.py"),
    fault("a sign close to a digit is a stroke of it", "data/digits.py", "if is_low and _are_apart(",
          "if False and _are_apart(", "test_photographs.py"),
    fault("digits in a shadow on ruled paper are left out", "data/digits.py", " or _is_blurred(piece, sharpest)", "",
          "test_photographs.py"),
    fault("a comma below the line is a 1", "data/signs.py", "other.height) and overlap > 0:",
          "other.height) and overlap > 0.6 * tall:", "test_photographs.py"),
    fault("a digit in a shadow is left out", "data/signs.py", "1 < light <= SHADOW", "False", "test_photographs.py"),
    fault("a broken digit is a frame", "data/ink.py", "return all((side == number).any() for side in",
          "return any((side == number).any() for side in", "test_photographs.py"),
    fault("the page does not say what it has not read", "report/page/normal_form.js", "marks.length && UNREAD", "false",
          "test_page_normal_form.py"),
    fault("strokes of a digit are apart where the pen was lifted", "data/digits.py", "APART = 0.15", "APART = 0.01",
          "test_photographs.py"),
    fault("a stroke that reaches the border is left out", "data/digits.py",
          " if piece.cut and _goes_on(piece, inner, labels)]", " if False]", "test_photographs.py"),
    fault("strokes in a shadow are a blot", "data/ink.py", "if darker.max() < least:", "if True:",
          "test_photographs.py"),
    fault("a line of digits does not slope", "data/digits.py", "for other in line[-2:]", "for other in line[:2]",
          "test_normal_form.py"),
    fault("a line of digits does not slope on the page", "report/page/digits.js", "line.slice(-2)", "line.slice(0, 2)",
          "test_page_normal_form.py"),
    fault("the threshold of novelty is from the training images", "data/novelty.py",
          "features = features_of(held_out)", "features = features[: len(held_out)]", "test_novelty.py"),
    fault("the quadrants of a gradient are mixed up", "data/novelty.py", "np.arctan2(down, right)",
          "np.arctan2(down, np.abs(right))", "test_novelty.py"),
    fault("a turned page is turned the other way", "data/novelty.py", "-turns * DIRECTIONS // 4",
          "turns * DIRECTIONS // 4", "test_novelty.py"),
    fault("the width of two digits does not count", "data/novelty.py", "scores * widths > self.pair_threshold",
          "scores > self.pair_threshold + 1e9", "test_photographs.py"),
    fault("the page's warnings have another threshold", "report/page/novelty.js",
          "= score > spec.threshold;", "= score > 2 * spec.threshold;",
          "test_page_pictures.py"),
    fault("the width of two digits does not count on the page", "report/page/novelty.js",
          "score * width > spec.pair_threshold", "score > spec.pair_threshold", "test_page_pictures.py"),
    fault("a rotation turns half as far", "data/augment.py", "math.radians(config.rotation_degrees)",
          "math.radians(config.rotation_degrees / 2)", "test_augment.py"),
    fault("a resumed run is one step off", "training/run.py",
          "return LatestAndBest(*program.from_saved(tuple(saved))), record",
          "states = LatestAndBest(*program.from_saved(tuple(saved)))\n"
          "    return states._replace(newest=states.newest._replace(step=states.newest.step + 1)), record",
          "test_resume.py"),
    fault("a resumed run does not print that 64-bit numbers were switched on or off", "training/run_folder.py",
          '    "x64": "jax_enable_x64",\n', "", "test_resume.py"),
    fault("a run goes on after an exception in on_epoch", "training/loop.py", "failure = error", "failure = None",
          "test_resume.py"),
    fault("checksums are not compared", "training/checkpoint.py", "if expected[name] != found[name]:", "if False:",
          "test_checkpoint.py", "test_train.py"),
    fault("the best of equals is the latest", "training/loop.py", "or value > member.best_score",
          "or value >= member.best_score", "test_selection.py", "test_train.py"),
    fault("a run of a sweep has the state of the first one", "training/checkpoint.py", "np.asarray(leaf)[place]",
          "np.asarray(leaf)[0]",
          "test_train_and_sweep.py", "test_comparison.py"),
    fault("a run of a sweep that is resumed keeps the metrics of all", "training/new_run.py",
          "read_metrics(folder.metrics, folder.member) if", "read_metrics(folder.metrics) if", "test_results.py"),
    fault("one checkpoint too many is kept", "training/checkpoint.py", "finished[: -self._keep]:",
          "finished[: -self._keep - 1]:", "test_checkpoint.py"),
    fault("processes with other numbers of devices train together", "training/mesh.py",
          "if len(set(map(len, shown))) > 1:", "if False:", "test_processes.py"),
    # Sweeps, statistics and reports.
    fault("a confidence interval of a mean divides by n", "statistics.py", "ddof=1", "ddof=0",
          "test_sweep.py", "test_comparison.py"),
    fault("a mean of two seeds has a confidence interval", "statistics.py", "if count < 3:", "if count < 2:",
          "test_sweep.py"),
    fault("a confidence interval of an accuracy is too wide", "statistics.py", "z**2 / (4 * n**2))",
          "z**2 / (4 * n))", "test_diagnosis.py"),
    fault("a confidence band has another curve's colour", "report/comparison.py",
          '*np.clip(ends, 0, 100), color=style["color"]',
          '*np.clip(ends, 0, 100), color=series_style(number + 1)["color"]', "test_comparison.py",
          "test_report_style.py"),
    fault("calibration counts in the next bin", "report/diagnosis.py", "* BINS).astype(int) - 1, 0,",
          "* BINS).astype(int), 0,", "test_diagnosis.py"),
    fault("saliency is of the loss, not of the class's probability", "introspection.py",
          "return -model.softmax_cross", "return model.softmax_cross", "test_reading.py"),
    fault("the page reads another weight", "report/page/network.js",
          "      h[n] = gateOf(at(3));", "      h[n] = gateOf(at(1));",
          "test_page_network.py"),
    fault("the page centres a digit by its box", "report/page/normal_form.js", "const wanted = Math.round(length / 2 -",
          "const wanted = Math.floor(length / 2 -", "test_page_normal_form.py"),
    fault("ruled lines are ink on the page", "report/page/ink.js", "columns, length - least)) continue;",
          "columns, -1)) continue;", "test_page_normal_form.py"),
    fault("pieces that nearly touch are apart on the page", "report/page/ink.js", "const gap = 2 * reach + 1;",
          "const gap = 1;", "test_page_normal_form.py"),
    fault("a box of a photograph shows its first digit", "report/page/main.js", "pad.show(photo.digits[number].pixels",
          "pad.show(photo.digits[0].pixels", "test_page_pictures.py"),
    fault("the boxes on a photograph are half a digit aside", "report/page/photo.js", "x: left + wide / 2,",
          "x: left,", "test_page_pictures.py"),
    fault("a figure's boxes are at other digits", "report/boxes.py", "corner = left * wide - margin",
          "corner = top * wide - margin", "test_boxes.py"),
    # Files of other programs, data and the command line.
    fault("TF1's forget bias is not added", "interop/tf1.py", "bias[hidden : 2 * hidden] += np.float32(forget_bias)",
          "bias[hidden : 2 * hidden] += np.float32(0)", "test_tf1.py"),
    fault("inputs are folded with the mean of another scale", "interop/inputs.py", "-self.mean / self.std",
          "-self.mean", "test_inputs.py"),
    fault("a linear layer before the LSTM loses its bias", "interop/weights.py",
          "bias = cell.bias + np.broadcast_to(shift, len(kernel)) @ kernel", "bias = cell.bias", "test_heads.py"),
    fault("lstm2 comes before lstm", "interop/assembly.py", r'r"(\d+|[./])"', r'r"(\d+)"', "test_torch.py"),
    fault("a parameter without axes is left out", "interop/assembly.py", 'if "float" in str(array.dtype) and name not',
          'if array.shape and "float" in str(array.dtype) and name not', "test_flax.py"),
    fault("two cells of Linen as wide as their inputs are always two layers", "interop/flax.py",
          "readings = [imported for imported in readings if imported.weights.steps is None]", "readings = readings[:1]",
          "test_directions.py"),
    fault("the pooling of both directions is guessed", "interop/formats.py",
          "if config.bidirectional and format_name !=", "if False and format_name !=", "test_directions.py"),
    fault("a GRU's second bias is dropped", "interop/weights.py", "    if needed:\n", "    if needed and False:\n",
          "test_directions.py"),
    fault("both directions at the last step are their final states", "model.py", 'case "last_step":',
          'case "last_step" if False:', "test_directions.py"),
    fault("Keras 2's hard sigmoid has the slope of Keras 3's", "model.py", "jnp.clip(0.2 * x", "jnp.clip(x / 6",
          "test_model.py"),
    fault("a TF1 graph's logits are not compared", "interop/tf1_graph.py", "axis=-1) <= limit)", "axis=-1) <= 1e9)",
          "test_tf1_graph.py"),
    fault("the forget bias in TF1's graph is not read", "interop/tf1_graph.py", "_decimal(cell.added.get(2, 0.0))",
          "0.0", "test_tf1_graph.py"),
    fault("dropout in a TF1 graph keeps its scale", "interop/tf1_run.py", "                    return before\n",
          "                    pass\n", "test_tf1_graph.py"),
    fault("TF1's relu cell is imported with tanh", "interop/tf1.py", "with_network(**network.fields)",
          'with_network(**{**network.fields, "activation": "tanh"})', "test_tf1_graph.py"),
    fault("PyTorch's second bias is dropped", "rnn/weights.py", '+ own.pop("recurrent_bias")',
          '+ 0 * own.pop("recurrent_bias")', "test_weights.py"),
    fault("PyTorch's second bias is dropped from a classifier", "interop/weights.py", "[biases[0] + biases[1]] if",
          "[biases[0]] if", "test_torch.py"),
    fault("ONNX's gates are taken for this package's", "interop/onnx/operators.py", "ONNX_GATES[kind], gates)",
          "gates, gates)", "test_onnx.py"),
    fault("the scale of an ONNX graph's input is dropped", "interop/onnx/__init__.py",
          "inputs.fold(to_params(weights))", "to_params(weights)", "test_onnx.py"),
    fault("any time step of an ONNX graph is the last", "interop/onnx/__init__.py",
          "np.array_equal(features, _by_example(expected))", "features.shape == _by_example(expected).shape",
          "test_onnx.py"),
    fault("attention of an ONNX graph may weight other steps", "interop/onnx/operators.py",
          "if not np.array_equal(source.under(weights), layer.by_step[time, example, 0]):", "if False:",
          "test_onnx.py"),
    fault("the config of any model is read", "interop/huggingface.py", "if kind != MODEL_TYPE:",
          "if kind is None:", "test_huggingface.py"),
    fault("a pickle may name what it likes", "interop/torch_file/pickles.py",
          "refused = top in sys.stdlib_module_names and", "refused = False and", "test_torch_file.py"),
    fault("a tensor begins where its storage does", "interop/torch_file/tensors.py", "flat[tensor.offset :]",
          "flat[0 * tensor.offset :]", "test_torch_file.py"),
    fault("the first of several sets of weights is taken", "interop/torch_file/__init__.py",
          "if choose and len(left) > 1:", "if choose and len(left) > 9:", "test_torch_file.py"),
    fault("a TF checkpoint's checksums are not compared", "interop/tf_checkpoint/bundle.py",
          "if masked_crc32c(data) != entry", "if False and masked_crc32c(data) != entry",
          "test_tf_checkpoint.py"),
    fault("Keras's LSTM that reads backwards is taken", "interop/keras_config.py", '"go_backwards": (False,)',
          '"go_backwards": (False, True)', "test_keras_refused.py"),
    fault("the halves of a CuDNNLSTM's bias are not added", "interop/keras.py",
          "biases = np.split(bias, 2)", "biases = np.split(bias, 2)[:1]", "test_keras.py"),
    fault("the gates of Keras's GRU keep their order", "interop/keras.py", "order = KERAS_GATES[GATES[cell]], GATES",
          "order = GATES[cell], GATES", "test_keras.py"),
    fault("the directions of Keras's layers are concatenated, whatever their merge_mode", "interop/keras_config.py",
          'if config.get("merge_mode", "concat") != "concat":', "if False:", "test_keras_refused.py"),
    fault("what Keras's layers add to the features is dropped", "interop/keras_folding.py",
          "own * gain, before * gain + shift", "own * gain, before * gain", "test_keras.py"),
    fault("Keras's layers are in the order of their names", "interop/keras.py",
          "for layer in file.layers if layer in stored", "for layer in sorted(file.layers) if layer in stored",
          "test_keras.py"),
    fault("a truncated IDX file is read", "data/idx.py", "    if len(data) != size:", "    if len(data) > size:",
          "test_idx.py", "test_sources.py"),
    fault("EMNIST lies on its side", "data/idx.py", "return images.swapaxes(1, 2)", "return images",
          "test_sources.py"),
    fault("a validation split of sorted labels is from the front", "data/splits.py", 'if how == "front":',
          'if how != "stratified":', "test_splits.py"),
    fault("pixel10 is before pixel2", "data/csv_table.py", "key=lambda place: digits[place])",
          "key=lambda place: names[place])", "test_tables.py"),
    fault("a cached set is used though a picture has changed", "data/cache.py",
          '{entry.path} {status.st_size} {status.st_mtime_ns}', '{entry.path}', "test_image_folder.py"),
    fault("class 10 is before class 2", "data/image_folder.py", 'part[0] in "0123456789"', 'part[0] in ""',
          "test_image_folder.py"),
    fault("an image of Pillow is an array of its indices", "data/pictures.py", "isinstance(given, pillow.Image) and",
          "False and", "test_pictures.py"),
    fault("a photograph is not turned upright", "data/pictures.py", "return ImageOps.exif_transpose(image)",
          "return image", "test_pictures.py"),
    fault("integers of 0 and 1 are almost black", "data/pictures.py", "if 0 < brightest <= most * VISIBLE:",
          "if False:", "test_damaged_pictures.py"),
    fault("a run that learned nothing ends like another", "training/metrics.py",
          "all(each.validation_accuracy < most and", "all(each.validation_accuracy < 0 and", "test_selection.py"),
    fault("a sweep without a useful run ends like another", "sweeps.py",
          "learned = len(useless) <", "learned = 0 <", "test_train_and_sweep.py"),
    fault("an option without effect is accepted", "config/options.py",
          "if name in names and not any(", "if False and not any(", "test_space.py"),
    fault("a run folder is taken for data", "data/sources.py",
          "for folder in (path, *parents):", "for folder in ():", "test_sources.py"),
    fault("the message does not name the folder", "training/checkpoint.py",
          'f"{directory} has no checkpoint {name!r}', 'f"The run has no checkpoint {name!r}',
          "test_train.py"),
    fault("a mistake of the user's ends with exit code 1", "cli/main.py", "return _failed(2)", "return _failed(1)",
          "test_user_errors.py"),
    fault("a comma between integers of an option is an error", "cli/parsing.py",
          'words = " ".join(words).replace(",", " ").split()', "words = list(words)", "test_user_errors.py"),
    fault("`import` does not say that accuracies may be of training images", "data/splits.py",
          '(*dataset.cut_splits, "validation")', "()", "test_import_export.py"),
    fault("`predict` gives the answer of another picture", "cli/predict.py", "for each in probabilities])",
          "for each in probabilities[::-1]])", "test_predict.py"),
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only faults whose names contain one of these words")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout to try")
    parser.add_argument("--show", action="store_true", help="print what pytest prints of each failure")
    options = parser.parse_args()
    chosen = [each for each in FAULTS if not options.words or any(word in each.name for word in options.words)]
    missed = [each.name for each in chosen if not found(each, options.root.resolve(), options.show)]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults are found by the tests.")
    for name in missed:
        print(f"not found: {name}")
    return 1 if missed or not chosen else 0


def found(fault: Fault, root: Path, show: bool) -> bool:
    """Makes the fault in a copy of the tree; whether a test fails there, rather than pytest itself."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repo"
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__"))
        file = copy / PACKAGE / fault.file
        text = file.read_text("utf-8")
        if text.count(fault.old) < 1 or not fault.old:
            raise SystemExit(f"{fault.name}: {fault.file} does not contain {fault.old!r} any more.")
        file.write_text(text.replace(fault.old, fault.new), "utf-8")
        tests = [path for name in fault.tests for path in sorted((copy / "tests").rglob(name))]
        cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "compiled_with_faults")}
        command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", *tests]
        began = time.perf_counter()
        done = subprocess.run(
            list(map(str, command)), cwd=copy, env=os.environ | cache | {"PYTHONPATH": str(copy)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        first = failed[0].removeprefix("tests/") if failed else "no test failed"
        print(f"{fault.name}: {first} ({time.perf_counter() - began:.0f} s)", flush=True)
        if show or (done.returncode not in (0, 1)):
            print(done.stdout[-6_000:], done.stderr[-2_000:])
        return done.returncode == 1 and bool(failed)


if __name__ == "__main__":
    sys.exit(main())
