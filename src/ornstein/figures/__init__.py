"""Pictures: samples, the way to noise and back, loss curves, plans, and the figures of the lecture notes by name."""

from ornstein.figures.animate import ANIMATIONS, write_gif
from ornstein.figures.canvas import save
from ornstein.figures.classifier import accuracy_curve
from ornstein.figures.fan import fan_chart
from ornstein.figures.gallery import GALLERY, Scene
from ornstein.figures.images import calibration_picture, image_grid, loss_curve, plan_picture, restorations, strip
from ornstein.figures.restored import restored_picture
from ornstein.figures.series import held_out_forecast
from ornstein.figures.vectors import POINTS, journey, rows_picture

__all__ = [
    "ANIMATIONS",
    "GALLERY",
    "POINTS",
    "Scene",
    "accuracy_curve",
    "calibration_picture",
    "fan_chart",
    "held_out_forecast",
    "image_grid",
    "journey",
    "loss_curve",
    "plan_picture",
    "restorations",
    "restored_picture",
    "rows_picture",
    "save",
    "strip",
    "write_gif",
]
