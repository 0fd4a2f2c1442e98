"""A toy car in three dimensions, painted with its exact mask, for synthetic segmentation data.

The car is a handful of polygons: a body and a cabin stretched from their side views, windows, wheels and lamps. A
camera projects them, and every polygon goes to the image and to the mask alike, so the mask is exact to the pixel.
Lengths are in metres; x points forward, y to the left, z up from the ground.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

BODY, GLASS, WHEEL = 1, 2, 3  # the parts, and their classes when n_classes is 4

# Where the windscreen starts and ends and the rear window starts and ends, as shares of the length from the middle.
STATIONS = {
    "saloon": (0.20, 0.04, -0.20, -0.37),
    "hatchback": (0.22, 0.06, -0.34, -0.47),
    "estate": (0.24, 0.10, -0.41, -0.48),
    "van": (0.36, 0.24, -0.45, -0.49),
    "pickup": (0.19, 0.06, -0.10, -0.15),
}
HEIGHTS = {"saloon": 1.42, "hatchback": 1.50, "estate": 1.70, "van": 1.95, "pickup": 1.78}
PAINTS = ((225, 225, 222), (28, 28, 32), (128, 132, 138), (150, 24, 28), (26, 58, 128), (72, 84, 62), (168, 140, 96))


@dataclass
class Car:
    """The properties of one car. Lengths in metres; x points forward, y to the left, z up from the ground."""

    name: str
    length: float
    width: float
    height: float
    wheel: float  # radius
    stations: np.ndarray  # (4,), see STATIONS
    paint: np.ndarray  # (3,), RGB in 0 to 255


@dataclass
class Camera:
    """A pinhole that looks along y, level with the ground."""

    focal: float  # pixels
    distance: float  # metres from the middle of the car
    height: float  # metres above the ground
    centre: tuple[float, float]  # the pixel it looks at, which lies on the horizon

    def project(self, points: np.ndarray) -> np.ndarray:
        """Turn points (N, 3) in metres into pixels (N, 2)."""
        depth = points[:, 1] + self.distance
        column = self.centre[0] + self.focal * points[:, 0] / depth
        row = self.centre[1] - self.focal * (points[:, 2] - self.height) / depth
        return np.stack([column, row], axis=1)


class Canvas:
    """The image and its mask, painted together. Colours are RGB in 0 to 255."""

    def __init__(self, size: tuple[int, int], camera: Camera):
        self.size = size
        self.camera = camera
        self.image = Image.new("RGB", size)
        self.parts = Image.new("L", size, 0)  # 0 is the background
        self.brush = ImageDraw.Draw(self.image)
        self.part_brush = ImageDraw.Draw(self.parts)

    def polygon(self, points: np.ndarray, colour, part: int = 0) -> None:
        """Fill the polygon with these corners (N, 3) in metres. Part 0 leaves the mask as it is."""
        corners = [tuple(corner) for corner in self.camera.project(points).tolist()]
        self.brush.polygon(corners, fill=to_rgb(colour))
        if part:
            self.part_brush.polygon(corners, fill=part)


def to_rgb(colour) -> tuple[int, int, int]:
    return tuple(np.clip(np.asarray(colour), 0, 255).astype(int).tolist())


def design_car(seed: int, car: int) -> Car:
    rng = np.random.default_rng([seed, car, 0])  # view 0 is the car itself: the views count from 1
    name = rng.bytes(6).hex()
    kind = list(STATIONS)[rng.integers(len(STATIONS))]
    return Car(
        name=name,
        length=rng.uniform(4.0, 5.0),
        width=rng.uniform(1.72, 1.95),
        height=HEIGHTS[kind] * rng.uniform(0.96, 1.05),
        wheel=rng.uniform(0.30, 0.37),
        stations=np.array(STATIONS[kind]) + rng.uniform(-0.015, 0.015, 4),
        paint=np.array(PAINTS[rng.integers(len(PAINTS))]) + rng.uniform(-18, 18, 3),
    )


def cut_corners(points: np.ndarray, times: int) -> np.ndarray:
    """Round an open line (N, 2) by Chaikin's corner cutting. The two ends stay."""
    for _ in range(times):
        near, far = 0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]
        middle = np.stack([near, far], axis=1).reshape(-1, 2)[1:-1]
        points = np.concatenate([points[:1], middle, points[-1:]])
    return points


def shell(car: Car, profile: np.ndarray, half_width: np.ndarray) -> list[np.ndarray]:
    """Stretch a side view (N, 2), in shares of length and height, over a width (N,): N - 1 strips and two sides."""
    x, z = profile[:, 0] * car.length, profile[:, 1] * car.height
    left, right = np.stack([x, half_width, z], axis=1), np.stack([x, -half_width, z], axis=1)
    strips = [np.stack([left[i], left[i + 1], right[i + 1], right[i]]) for i in range(len(x) - 1)]
    return [*strips, left, right]


def half_widths(car: Car, profile: np.ndarray) -> np.ndarray:
    """Half the width of the car at points of its side view: narrower at nose and tail, at the sills and the roof."""
    x, z = profile[:, 0], profile[:, 1]
    plan = 1 - 0.16 * np.abs(2 * x) ** 5
    section = np.where(z < 0.56, 1 - 0.9 * (z - 0.40) ** 2, 0.97 - 0.55 * (z - 0.56))
    return car.width / 2 * plan * section


def body_shell(car: Car) -> list[np.ndarray]:
    screen, _, _, rear = car.stations
    profile = [(0.48, 0.15), (0.505, 0.20), (0.505, 0.40), (0.47, 0.51), (screen, 0.57), (0, 0.60), (rear, 0.61)]
    profile += [(-0.48, 0.59), (-0.505, 0.42), (-0.505, 0.22), (-0.48, 0.16)]
    profile = cut_corners(np.array(profile), times=2)
    return shell(car, profile, half_widths(car, profile))


def cabin_shell(car: Car) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the faces of the cabin and its windows."""
    screen, roof_front, roof_rear, rear = car.stations
    top = ((roof_front + roof_rear) / 2, 1)
    profile = np.array([(screen, 0.56), (roof_front, 0.95), top, (roof_rear, 0.96), (rear, 0.58)])
    faces = shell(car, profile, half_widths(car, profile))
    windows = [shrink(faces[0], 0.86), shrink(faces[3], 0.80)]
    pillar = (screen + roof_front + roof_rear + rear) / 4
    low, high = 0.62, 0.91
    front = [np.interp(z, [0.56, 0.95], [screen, roof_front]) - 0.02 for z in (low, high)]
    back = [np.interp(z, [0.58, 0.96], [rear, roof_rear]) + 0.03 for z in (low, high)]
    panes = [
        [(front[0], low), (front[1], high), (pillar + 0.008, high), (pillar + 0.008, low)],
        [(pillar - 0.008, low), (pillar - 0.008, high), (back[1], high), (back[0], low)],
    ]
    for pane in panes:
        outline = np.array(pane)
        windows += shell(car, outline, half_widths(car, outline))[-2:]
    return faces, windows


def shrink(face: np.ndarray, factor: float) -> np.ndarray:
    return face.mean(axis=0) + factor * (face - face.mean(axis=0))


def details(car: Car) -> list[tuple[np.ndarray, tuple[int, int, int]]]:
    """Lamps, grille and number plates at both ends, as faces with a colour."""
    half, found = car.width / 2, []
    for end, lamp in ((1, (235, 235, 225)), (-1, (165, 20, 24))):
        x = end * 0.503 * car.length
        boxes = [((0.42, 0.78), (0.38, 0.46), lamp), ((-0.78, -0.42), (0.38, 0.46), lamp)]
        boxes += [((-0.26, 0.26), (0.27, 0.33), (214, 214, 206))]
        if end == 1:
            boxes += [((-0.38, 0.38), (0.36, 0.44), (30, 30, 32))]
        for (y0, y1), (z0, z1), colour in boxes:
            corners = [(x, y * half, z * car.height) for y, z in ((y0, z0), (y1, z0), (y1, z1), (y0, z1))]
            found.append((np.array(corners), colour))
    return found


def disc(centre: tuple[float, float, float], radius: float, num_corners: int = 40) -> np.ndarray:
    """The corners (N, 3) of an upright disc that faces sideways."""
    angle = np.linspace(0, 2 * np.pi, num_corners, endpoint=False)
    return np.array(centre) + radius * np.stack([np.cos(angle), np.zeros_like(angle), np.sin(angle)], axis=1)


class Painter:
    """Paint one view of one car, from the far parts to the near ones."""

    def __init__(self, canvas: Canvas, car: Car, angle: float, light: np.ndarray):
        self.canvas = canvas
        self.car = car
        self.light = light / np.linalg.norm(light)
        cosine, sine = np.cos(angle), np.sin(angle)
        self.turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        self.eye = np.array([0, -canvas.camera.distance, canvas.camera.height])

    def face(self, points: np.ndarray, middle: np.ndarray, colour, part: int, shine: float = 0.14) -> None:
        """Paint a face (N, 3) if its outside, the side away from `middle`, shows."""
        points, middle = points @ self.turn.T, middle @ self.turn.T
        centroid = points.mean(axis=0)
        following = np.roll(points, -1, axis=0)
        normal = np.cross(points - centroid, following - centroid).sum(axis=0)  # Newell's method
        normal = normal / (np.linalg.norm(normal) + 1e-9)
        if normal @ (centroid - middle) < 0:
            normal = -normal
        if normal @ (self.eye - centroid) <= 0:
            return
        brightness = 0.5 + 0.5 * max(0.0, normal @ self.light)
        reflection = 255 * shine * max(0.0, normal[2])  # of the bright ceiling
        self.canvas.polygon(points, np.asarray(colour) * brightness + reflection, part)

    def shadow(self) -> None:
        """Darken the floor below the car. The mask does not hold the shadow."""
        canvas, car = self.canvas, self.car
        veil = Image.new("L", canvas.size, 0)
        angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        x, y = 0.55 * car.length * np.cos(angle), 0.62 * car.width * np.sin(angle)
        floor = np.stack([x, y, np.zeros_like(x)], axis=1) @ self.turn.T
        floor[:, :2] -= 0.35 * self.light[:2]
        ImageDraw.Draw(veil).polygon([tuple(p) for p in canvas.camera.project(floor).tolist()], fill=190)
        veil = veil.filter(ImageFilter.BoxBlur(canvas.size[0] / 60))
        canvas.image.paste((18, 18, 20), mask=veil)

    def wheels(self, near: bool) -> None:
        """Paint the treads (`near` False, before the body) or the outer sides (`near` True, over the body)."""
        car = self.car
        for x in (0.31 * car.length, -0.31 * car.length):
            for side in (1, -1):
                outer = side * car.width * 0.492
                middle = np.array([x, 0, car.wheel])
                if near:
                    self.face(disc((x, outer, 1.05 * car.wheel), 1.12 * car.wheel), middle, (14, 14, 15), BODY, 0)
                    self.face(disc((x, outer, car.wheel), car.wheel), middle, (38, 38, 40), WHEEL, 0)
                    self.face(disc((x, outer, car.wheel), 0.66 * car.wheel), middle, (190, 192, 196), WHEEL)
                    self.face(disc((x, outer, car.wheel), 0.52 * car.wheel, 5), middle, (96, 98, 102), WHEEL)
                else:
                    for share in np.linspace(0.75, 1, 12):
                        rim = disc((x, share * outer, car.wheel), car.wheel) @ self.turn.T
                        self.canvas.polygon(rim, (26, 26, 28), WHEEL)

    def seams(self) -> None:
        """Paint the gaps between the doors, the sill and the handles."""
        car, middle = self.car, np.zeros(3)
        front, back = car.stations[0] - 0.02, max(car.stations[3] + 0.05, -0.2)
        boxes = [(x, x + 0.003, 0.24, 0.58) for x in (front, (front + back) / 2, back)]
        boxes += [(x + 0.02, x + 0.05, 0.50, 0.515) for x in ((front + back) / 2, back)]
        boxes += [(-0.22, 0.22, 0.18, 0.22)]
        for x0, x1, z0, z1 in boxes:
            outline = np.array([(x0, z0), (x1, z0), (x1, z1), (x0, z1)])
            for face in shell(car, outline, half_widths(car, outline))[-2:]:
                self.face(face, middle, 0.35 * car.paint, BODY, 0)

    def paint(self) -> None:
        car = self.car
        heart = np.array([0, 0, 0.4 * car.height])
        self.shadow()
        self.wheels(near=False)
        for face in body_shell(car):
            self.face(face, heart, car.paint, BODY)
        self.seams()
        self.wheels(near=True)
        for points, colour in details(car):
            self.face(points, heart, colour, BODY)
        cabin, windows = cabin_shell(car)
        heart = np.array([car.stations.mean() * car.length, 0, 0.7 * car.height])
        for face in cabin:
            self.face(face, heart, car.paint, BODY)
        for face in windows:
            self.face(face, heart, (44, 52, 60), GLASS, 0.30)
