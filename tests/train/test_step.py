"""The training steps against a plain loop and their formulas, on one device and two; evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import optax
import pytest
from flax import nnx
from step_programs import CONFIG, EVERY_OPTION, fetched, mesh_of, needs_two_devices, program_of, train

from lstm_mnist_jax import model
from lstm_mnist_jax.config import AugmentationConfig, ModelConfig, OptimizerConfig
from lstm_mnist_jax.data import Dataset, Examples
from lstm_mnist_jax.data.shuffle import permutation
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.training import make_program
from lstm_mnist_jax.training.evaluation import Evaluator, batch_size
from lstm_mnist_jax.training.step import count_steps


def test_it_is_the_plain_loop_over_flax_layers(tiny_dataset):
    """40 steps, two and a half epochs, written out with Flax's own RNN, autodiff and the formula of the loss."""
    state = train(tiny_dataset, 40)

    classifier = model.Classifier(CONFIG.model, (5, 5), 3, rngs=nnx.Rngs(0))
    graph = nnx.split(classifier, nnx.Param)[0]

    @jax.jit
    def gradient(params, images, labels):
        def loss(params):
            network = nnx.merge(graph, params)
            outputs = images.astype(jnp.float32) / 255
            for layer in network.rnn.layers:
                outputs = nnx.RNN(layer.cell)(outputs)
            logits = network.dense(outputs[:, -1])
            return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

        return jax.value_and_grad(loss)(params)

    params, losses, norms = train(tiny_dataset).params, [], []
    mu = nu = jax.tree.map(np.zeros_like, params)
    order = np.concatenate([permutation(CONFIG.seed, number, 130) for number in range(3)])[: 40 * 8]
    for step, batch in enumerate(order.reshape(40, 8)):
        images, labels = tiny_dataset.train.images[batch], tiny_dataset.train.labels[batch]
        loss, grads = jax.device_get(gradient(params, images, labels))
        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mu, grads)
        nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, nu, grads)
        rate = 0.01 * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        params = jax.tree.map(lambda p, m, v, rate=rate: p - rate * m / (np.sqrt(v) + 1e-8), params, mu, nu)
        losses.append(float(loss))
        norms.append(np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads))))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), state.params, params)
    assert int(state.step) == 40
    # 130 // 8 = 16 steps an epoch: the sums are those of the third epoch, steps 32 to 39.
    np.testing.assert_allclose(state.epoch_sums.loss, sum(losses[32:]), rtol=1e-3)
    np.testing.assert_allclose(state.epoch_sums.gradient_norm, sum(norms[32:]), rtol=1e-3)
    assert np.mean(losses[-8:]) < np.mean(losses[:8])


@needs_two_devices
def test_two_devices_train_like_one(tiny_dataset):
    one, two = (train(tiny_dataset, 40, devices=devices) for devices in (1, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-4), one.params, two.params)
    assert int(one.epoch_sums.correct) == pytest.approx(int(two.epoch_sums.correct), abs=1)
    np.testing.assert_allclose(one.epoch_sums.loss, two.epoch_sums.loss, rtol=1e-3)


def test_the_first_number_that_is_not_finite_is_found(tiny_dataset):
    diverging = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e38))
    state = train(tiny_dataset, 30, config=diverging)
    found = int(state.first_bad_step)
    assert 0 < found < 30
    assert int(train(tiny_dataset, found, config=diverging).first_bad_step) == -1
    assert int(train(tiny_dataset, found + 1, config=diverging).first_bad_step) == found


def test_a_batch_may_be_the_whole_set_but_not_more(tiny_dataset):
    whole = dataclasses.replace(CONFIG, batch_size=130)
    assert int(train(tiny_dataset, 3, config=whole).step) == 3
    with pytest.raises(ConfigError, match="batch_size is 131, but there are only 130 training examples"):
        train(tiny_dataset, 1, config=dataclasses.replace(CONFIG, batch_size=131))
    few = dataclasses.replace(tiny_dataset, train=tiny_dataset.validation[:5])
    with pytest.raises(ConfigError, match=r"5 or less. The validation split has .* reduce --validation-examples"):
        count_steps(CONFIG, few)


def test_a_run_longer_than_positions_can_count_is_refused(tiny_dataset):
    most = (2**31 - 1) // (16 * 8)
    make_program([dataclasses.replace(CONFIG, epochs=most)], tiny_dataset, mesh_of(1))
    with pytest.raises(ConfigError, match=f"epochs is {most + 1:,}, but data .* can be trained on for {most:,}\\."):
        make_program([dataclasses.replace(CONFIG, epochs=most + 1)], tiny_dataset, mesh_of(1))


@pytest.mark.slow
def test_colour_images_train_too(rng):
    def examples(n):
        return Examples(rng.integers(0, 256, (n, 6, 5, 3), np.uint8), rng.integers(0, 3, n).astype(np.int32), 3)

    dataset = Dataset(examples(40), examples(10), examples(10), ("a", "b", "c"), "made up")
    program = make_program([CONFIG], dataset, mesh_of(1))
    assert np.isfinite(program.run_steps(program.init(), 10).epoch_sums.loss)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=needs_two_devices)])
def test_evaluation_counts_every_example_of_every_split_once(rng, devices):
    splits = {
        f"{size}": Examples(rng.integers(0, 256, (size, 6, 5), np.uint8), rng.integers(0, 4, size).astype(np.int32), 5)
        for size in (1, 7, 33, 1031)
    }
    params = jax.jit(lambda key: model.init(CONFIG.model, key, (6, 5), 5))(jax.random.key(0))
    evaluated = Evaluator(CONFIG.model, splits, mesh_of(devices))(jax.tree.map(lambda leaf: leaf[None], params))

    for name, examples in splits.items():
        (found,) = evaluated[name]
        logits = numpy_lstm.classify(params, examples.images)
        right = logits.argmax(axis=1) == examples.labels
        assert found.accuracy == right.mean()
        np.testing.assert_allclose(found.loss, numpy_lstm.cross_entropy(logits, examples.labels), rtol=1e-5)
        for label in range(5):
            assert found.count[label] == (examples.labels == label).sum()
            assert found.correct[label] == right[examples.labels == label].sum()


@pytest.mark.parametrize(
    ("shares", "most", "size"),
    [([5000, 10000], 512, 500), ([625, 1250], 512, 313), ([21, 33], 512, 21), ([1], 512, 1), ([10], 1, 1)],
)
def test_batches_of_an_evaluation_are_large_and_need_little_padding(shares, most, size):
    assert batch_size(shares, most) == size


def test_the_optimizer_state_is_optax(tiny_dataset):
    state = train(tiny_dataset, 3)
    assert optax.tree.get(state.opt_state, "count") == 3


@pytest.mark.slow
@needs_two_devices
def test_random_numbers_do_not_depend_on_the_number_of_devices(tiny_dataset):
    one, two = (train(tiny_dataset, 40, config=EVERY_OPTION, devices=devices) for devices in (1, 2))
    for name in ("params", "average"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-4), getattr(one, name), getattr(two, name))
    np.testing.assert_allclose(one.epoch_sums.loss, two.epoch_sums.loss, rtol=1e-3)


def first_step(dataset, step=0, **changes):
    """Loss and change of the parameters of a step over the whole set, without augmentation unless in `changes`."""
    program = program_of(dataset, dataclasses.replace(CONFIG, batch_size=130, **changes))
    state = program.init()
    before = fetched(state).params
    state = fetched(program.run_steps(state._replace(step=jax.device_put(np.int32([step]))), 1))
    return float(state.epoch_sums.loss), jax.tree.map(np.subtract, state.params, before)


@pytest.mark.slow
def test_every_step_has_its_own_augmentation(tiny_dataset):
    """The same images in every batch: without augmentation, the same loss with the same parameters."""
    plain, shifted = (
        [first_step(tiny_dataset, step, **changes)[0] for step in range(3)]
        for changes in ({}, {"augmentation": AugmentationConfig(shift_pixels=2.0)})
    )
    assert np.ptp(plain) < 1e-4
    assert np.ptp(shifted) > 1e-3


@pytest.mark.slow
def test_label_smoothing_follows_its_formula(tiny_dataset):
    params = train(tiny_dataset).params
    logits = numpy_lstm.classify(params, tiny_dataset.train.images)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    of_labels = -log_p[np.arange(130), tiny_dataset.train.labels].mean()
    found, _ = first_step(tiny_dataset, label_smoothing=0.3)
    np.testing.assert_allclose(found, 0.7 * of_labels - 0.3 * log_p.mean(), rtol=1e-5)
    np.testing.assert_allclose(first_step(tiny_dataset)[0], of_labels, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {"augmentation": AugmentationConfig(mixup_alpha=1.0)},
    {"model": dataclasses.replace(CONFIG.model, dropout_rate=0.3)},
])  # fmt: skip
def test_mixup_and_dropout_change_the_loss(tiny_dataset, changes):
    assert abs(first_step(tiny_dataset, **changes)[0] - first_step(tiny_dataset)[0]) > 1e-3


@pytest.mark.slow
def test_the_learning_rate_is_that_of_the_step(tiny_dataset):
    warm = OptimizerConfig(warmup_epochs=4.0)  # an epoch is one step here
    (_, change), (_, whole) = (first_step(tiny_dataset, optimizer=numbers) for numbers in (warm, OptimizerConfig()))
    jax.tree.map(lambda part, all_of_it: np.testing.assert_allclose(4 * part, all_of_it, rtol=1e-3), change, whole)


@pytest.mark.slow
def test_the_ema_of_the_weights_follows_its_formula(tiny_dataset):
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(ema_decay=0.7))
    program = program_of(tiny_dataset, config)
    newest = program.init()
    state = fetched(newest)
    average = state.params["dense"]["kernel"]
    assert state.trained is state.average
    for step in range(30):
        newest = program.run_steps(newest, 1)
        state = fetched(newest)
        decay = min(0.7, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * state.params["dense"]["kernel"]
    np.testing.assert_allclose(state.average["dense"]["kernel"], average, rtol=1e-4)
    plain = train(tiny_dataset, 30)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain.params, state.params)
    assert plain.trained is plain.params


@pytest.mark.slow
def test_batch_doubling_halves_the_updates_and_changes_no_epoch(tiny_dataset):
    ramp = dataclasses.replace(CONFIG, batch_doubling_epochs=(1,))
    plain, ramped = (train(tiny_dataset, 16, config=config).params for config in (CONFIG, ramp))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, ramped)
    state = train(tiny_dataset, 48, config=ramp)
    assert optax.tree.get(state.opt_state, "count") == 16 + 16
    assert int(state.epoch_sums.steps) == 16


@pytest.mark.slow
@pytest.mark.parametrize("model_config", [
    ModelConfig(hidden_features=(4,), task="permuted", cell="ur_lstm"),
    ModelConfig(hidden_features=(4,), task="rows", sequence_length=15, cell="gru", pooling="mean"),
    ModelConfig(hidden_features=(4,), task="columns", cell="layer_norm_lstm", pooling="attention", bidirectional=True),
    ModelConfig(hidden_features=(4,), task="pixels", chrono_steps=30, pooling="max"),
])  # fmt: skip
def test_every_task_cell_and_pooling_trains(tiny_dataset, model_config):
    config = dataclasses.replace(CONFIG, model=model_config)
    first, last = (train(tiny_dataset, steps, config=config).epoch_sums.loss for steps in (16, 48))
    assert last < first


def test_steps_that_do_not_fit_the_images_are_refused_before_anything_is_compiled(tiny_dataset):
    config = dataclasses.replace(CONFIG, model=ModelConfig(hidden_features=(4,), sequence_length=7))
    with pytest.raises(ConfigError, match="sequence_length is 7, but an image of"):
        make_program([config], tiny_dataset, mesh_of(1))


def test_shifts_larger_than_the_image_are_refused(tiny_dataset):
    config = dataclasses.replace(CONFIG, augmentation=AugmentationConfig(shift_pixels=5.0))
    with pytest.raises(ConfigError, match="shift_pixels is 5, but images are 6 x 5"):
        make_program([config], tiny_dataset, mesh_of(1))
