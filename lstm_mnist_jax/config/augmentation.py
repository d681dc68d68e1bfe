"""What is done to the images that a training sees."""

from dataclasses import dataclass

from lstm_mnist_jax.config.checked import Checked, require


@dataclass(frozen=True)
class AugmentationConfig(Checked):
    """Distortions of the training images, drawn anew for each image at each step. Zero is none."""

    rotation_degrees: float = 0.0
    """Turn by up to so many degrees either way."""
    scaling: float = 0.0
    """Stretch or shrink each axis by a factor of up to 1 + this."""
    shear: float = 0.0
    """Slant sideways, by up to so many pixels a row."""
    shift_pixels: float = 0.0
    """Move by up to so many pixels along each axis."""
    flip_probability: float = 0.0
    """Swap left and right of so many of the images."""
    elastic_pixels: float = 0.0
    """Standard deviation, in pixels, of smooth random displacements (elastic distortion)."""
    elastic_spacing: float = 6.0
    """Pixels over which those displacements are alike."""
    erasing_probability: float = 0.0
    """Blank out a random rectangle of so many of the images (random erasing)."""
    erasing_size: float = 0.5
    """The longest that a side of that rectangle can be, as a share of the image's."""
    mixup_alpha: float = 0.0
    """Mix pairs of images, and their labels, in shares that Beta(mixup_alpha, mixup_alpha) draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.rotation_degrees <= 180, "rotation_degrees", self.rotation_degrees, "0 to 180")
        for name in ("scaling", "shear", "shift_pixels", "elastic_pixels", "mixup_alpha"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(self.elastic_spacing >= 1, "elastic_spacing", self.elastic_spacing, "1 or more")
        for name in ("flip_probability", "erasing_probability"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        require(0 < self.erasing_size <= 1, "erasing_size", self.erasing_size, "above 0, and at most 1")

    @property
    def moves_pixels(self) -> bool:
        """Whether images are resampled."""
        kinds = ("rotation_degrees", "scaling", "shear", "shift_pixels", "flip_probability", "elastic_pixels")
        return any(getattr(self, name) for name in kinds)
