"""A textured plane with a sphere in front of it, ray-traced exactly from any camera, in NumPy."""

import numpy as np

PLANE_Z = 8.0
CENTRE, RADIUS = np.array([0.3, -0.2, 4.5]), 1.0


def _texture(points, scale, phase):
    """Smooth colours in [0, 1] of points in space; the finest wave is some 12 pixels long at 240x360."""
    x, y, z = np.moveaxis(points * scale, -1, 0)
    waves = [
        np.sin(3.1 * x + phase) * np.cos(2.3 * y) + 0.6 * np.sin(5.2 * y + 1.7 * z),
        np.cos(2.7 * x - 1.9 * y + phase) + 0.6 * np.sin(4.6 * x + 2.0 * z),
        np.sin(2.2 * y + 3.3 * z + phase) + 0.6 * np.cos(4.9 * x - 2.8 * y),
    ]
    return 0.5 + 0.5 * np.stack(waves, -1) / 1.6


def _hit(origin, directions):
    """Distance along each ray (in units of its direction) to the nearest surface, and whether that is the sphere."""
    with np.errstate(divide="ignore"):
        plane = (PLANE_Z - origin[2]) / directions[..., 2]
    plane = np.where(plane > 0, plane, np.inf)
    to_centre = origin - CENTRE
    a = (directions**2).sum(-1)
    b = (directions * to_centre).sum(-1)
    root = b**2 - a * ((to_centre**2).sum() - RADIUS**2)
    sphere = np.where(root >= 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
    sphere = np.where(sphere > 0, sphere, np.inf)
    return np.minimum(plane, sphere), sphere < plane


def render(K, camera_to_world, height, width):
    """Colours float32 [H, W, 3], z depth float32 [H, W] and the points seen, float64 [H, W, 3]."""
    K, pose = np.asarray(K, np.float64), np.asarray(camera_to_world, np.float64)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], -1)  # z = 1: distance is depth
    directions = rays @ pose[:3, :3].T
    depth, on_sphere = _hit(pose[:3, 3], directions)
    points = pose[:3, 3] + depth[..., None] * directions
    colors = np.where(on_sphere[..., None], _texture(points, 1.6, 2.0), _texture(points, 0.9, 0.0))
    return colors.astype(np.float32), depth.astype(np.float32), points


def seen_from_origin(points, K, height, width):
    """Which points the source camera (the identity) sees: inside its image and not behind anything."""
    K = np.asarray(K, np.float64)
    x = K[0, 0] * points[..., 0] / points[..., 2] + K[0, 2]
    y = K[1, 1] * points[..., 1] / points[..., 2] + K[1, 2]
    inside = (points[..., 2] > 0) & (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    first, _ = _hit(np.zeros(3), points)
    return inside & (first > 1 - 1e-6)


def psnr(a, b, where):
    """Peak signal-to-noise ratio in dB over the pixels of a mask, for values in [0, 1]."""
    return float(-10 * np.log10(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64))[where] ** 2)))


def iou(a, b):
    """Intersection over union of two masks."""
    return float((a & b).sum() / (a | b).sum())
