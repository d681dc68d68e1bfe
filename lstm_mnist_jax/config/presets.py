"""The named presets."""

from dataclasses import replace

from lstm_mnist_jax.config.options import AugmentationConfig, Config, DataConfig, ModelConfig, OptimizerConfig

ROWS = Config(
    epochs=80,
    selection_metric="loss",  # at 99.8 % of 5,000 images, one image more or less decides by accuracy
    model=ModelConfig(hidden_features=(192, 192), pooling="max", dense_stddev=0.05),
    optimizer=OptimizerConfig(
        learning_rate=0.005,
        weight_decay=0.01,
        ema_decay=0.999,
        clip_norm=1.0,
        schedule="cosine",
        warmup_epochs=1.0,
    ),
    augmentation=AugmentationConfig(
        rotation_degrees=12.0, scaling=0.12, shear=0.2, shift_pixels=2.0, elastic_pixels=1.0
    ),
)

PIXELS = replace(
    ROWS,
    epochs=120,
    model=ModelConfig("pixels", cell="ur_lstm", hidden_features=(256,), dense_stddev=0.05),
    optimizer=replace(ROWS.optimizer, learning_rate=0.001),
    augmentation=AugmentationConfig(
        rotation_degrees=8.0, scaling=0.08, shear=0.12, shift_pixels=1.0, elastic_pixels=0.7
    ),
)

PRESETS: dict[str, Config] = {
    "tutorial": Config(),
    "smoke": Config(
        epochs=2,
        data=DataConfig(train_examples=6_000),
        model=ModelConfig(hidden_features=(16, 32)),
    ),
    "rows": ROWS,
    "rows-fast": Config(
        epochs=9,
        tensorboard=False,  # to import its library can take as long as an epoch
        model=ModelConfig(dense_stddev=0.05),
        optimizer=OptimizerConfig(
            learning_rate=0.01, ema_decay=0.995, clip_norm=1.0, schedule="linear", warmup_epochs=0.2
        ),
        augmentation=AugmentationConfig(rotation_degrees=5.0, scaling=0.05, shear=0.05, shift_pixels=1.0),
    ),
    "pixels": PIXELS,
    "permuted": replace(PIXELS, model=replace(PIXELS.model, task="permuted")),
    "fashion": replace(
        ROWS,
        epochs=64,
        selection_metric="accuracy",  # which still rises while the loss does, in small steps beside 7 % of errors
        data=DataConfig(source="fashion-mnist"),
        model=replace(ROWS.model, dropout_rate=0.1),
        augmentation=AugmentationConfig(
            scaling=0.08,
            shift_pixels=1.5,
            flip_probability=0.5,
            erasing_probability=0.1,
            erasing_size=0.4,
            mixup_alpha=0.2,
        ),
    ),
}
