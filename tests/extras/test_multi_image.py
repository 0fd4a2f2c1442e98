import contextlib
import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

import extras.multi_image
from callbacks.callback import Callback
from data.Carvana import CarvanaDataset, build_carvana
from data.data_entry import fingerprint
from data.dataloader import BatchFetcher
from data.loader import UpdateLoader
from data.masks import load_mask, scan_masks
from data.pairs import find_pairs
from extras.functional import fit
from extras.multi_image import MultiImageDataset, build_multi_image
from tools.synthetic.make_carvana_like import make_carvana_like
from trainer_seg_on_carvana import TrainerSeg
from utils.errors import UserError

SIZE = (24, 16)  # width and height
NAMES = [f"s{i}" for i in range(6)]
AS_CARVANA = {"name_ends": ["", "_mask"], "group_until": "_"}


def write(folder, names=NAMES, extension="png", offset=0, size=SIZE):
    """Write colour images that tell by their pixels who they are and where in the image they stand."""
    folder.mkdir(exist_ok=True)
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    for name in names:
        who = np.full_like(rows, offset + 10 * int(re.sub(r"\D", "", name) or 0))
        pixels = np.stack([who, rows, columns], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.{extension}")
    return folder


def write_masks(folder, names=NAMES):
    """Write masks with the values 0, 3 and 200, as grey levels; classes change from pixel to pixel."""
    folder.mkdir(exist_ok=True)
    rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    for name in names:
        Image.fromarray(np.array([0, 3, 200], dtype=np.uint8)[(rows + columns) % 3]).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def dirs(tmp_path):
    """Three directories of images of six samples, with different extensions."""
    return [write(tmp_path / "a"), write(tmp_path / "b", extension="bmp", offset=1),
            write(tmp_path / "c", extension="tif", offset=2)]  # fmt: skip


class RandomFlip:
    """Flips all images it is given or none of them."""

    def __call__(self, *images):
        flips = torch.rand(()) < 0.5
        images = [image.flip(-1) if flips else image for image in images]
        return images if len(images) > 1 else images[0]


def is_flipped(image):
    return bool(image[2, 0, 0] > image[2, 0, -1])


# ---- pairing ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_sample_has_the_image_of_its_name_of_every_directory(dirs, count):
    dataset = MultiImageDataset(dirs[:count])
    assert len(dataset) == 6 and dataset.names == NAMES and dataset.groups == NAMES and not dataset.is_random
    for index in (0, 3, -1):
        sample = dataset[index]
        assert isinstance(sample, tuple) and len(sample) == count
        for which, image in enumerate(sample):
            assert image.shape == (3, 16, 24) and image.dtype == torch.float32 and type(image) is torch.Tensor
            assert image[0].unique().tolist() == pytest.approx([(which + 10 * (index % 6)) / 255])
    with pytest.raises(IndexError):
        dataset[6]


def test_names_may_have_an_end_of_their_own_in_each_directory(tmp_path):
    dirs = [write(tmp_path / "a", ["s0", "s1"]), write(tmp_path / "b", ["s0_mask", "s1_mask"], offset=1)]
    dataset = MultiImageDataset(dirs, name_ends=("", "_mask"))
    assert dataset.names == ["s0", "s1"] and dataset.files[1] == (str(dirs[0] / "s1.png"), str(dirs[1] / "s1_mask.png"))
    with pytest.raises(UserError, match=r"b lacks 2 of 4 names: s0, s1"):
        MultiImageDataset(dirs)


def test_directories_that_differ_are_refused_with_what_is_missing_where(dirs):
    (dirs[1] / "s1.bmp").unlink()
    (dirs[2] / "s4.tif").unlink()
    write(dirs[0], ["s9"])
    with pytest.raises(UserError) as refusal:
        MultiImageDataset(dirs)
    text = str(refusal.value)
    assert f"{dirs[1]} lacks 2 of 7 names: s1, s9;" in text and f"{dirs[2]} lacks 2 of 7 names: s4, s9." in text
    assert f"{dirs[0]} lacks" not in text and "\n" not in text and "s3" not in text


def test_many_differences_are_counted_and_shortened(tmp_path):
    few, many = write(tmp_path / "few", ["s0"]), write(tmp_path / "many", [f"s{i:04d}" for i in range(1200)])
    with pytest.raises(UserError) as refusal:
        MultiImageDataset([few, many])
    text = str(refusal.value)
    assert "lacks 1,200 of 1,201 names: s0000, s0001" in text and "and 1190 more (1200 in all)" in text
    assert "many lacks 1 of 1,201 names: s0." in text and len(text) < 500 + 3 * len(str(many))


def test_two_files_of_one_name_are_refused(dirs):
    write(dirs[1], ["s2"], extension="png")
    with pytest.raises(UserError, match=r"b has names with more than one file: s2\.bmp, s2\.png"):
        MultiImageDataset(dirs)


def test_a_directory_that_is_missing_empty_or_a_file_is_named(dirs, tmp_path):
    with pytest.raises(UserError, match=r"There is no directory .*none\.$"):
        MultiImageDataset([dirs[0], tmp_path / "none"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"There is no directory .*file"):
        MultiImageDataset([dirs[0], tmp_path / "file"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"There is no file with one of the extensions bmp, gif, .* in .*empty"):
        MultiImageDataset([dirs[0], tmp_path / "empty"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dirs": "photos"}, "dirs must be a list"), ({"dirs": []}, "dirs must be a list"),
        ({"dirs": [1]}, "dirs must be a list"), ({"kinds": "images"}, "'images' is unknown.*did you mean 'image'"),
        ({"kinds": ["image"]}, "kinds has 1 entries for 3 directories"), ({"kinds": [1, 2, 3]}, "1 is unknown"),
        ({"loader": [None]}, "loader has 1 entries"), ({"transforms": [None] * 4}, "transforms has 4 entries"),
        ({"name_ends": [""]}, "name_ends has 1 entries"), ({"name_ends": [1, 2, 3]}, "name_ends must be texts"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_one_line(dirs, arguments, words):
    with pytest.raises(UserError, match=words) as refusal:
        MultiImageDataset(**{"dirs": dirs, **arguments})
    assert "\n" not in str(refusal.value)


def test_hidden_files_and_directories_below_are_passed_over(dirs):
    (dirs[0] / ".DS_Store").touch()
    (dirs[0] / ".hidden.png").touch()
    (dirs[0] / "below").mkdir()
    assert len(MultiImageDataset(dirs)) == len(MultiImageDataset(dirs, extensions=None)) == 6


def test_some_of_the_samples(dirs):
    dataset = MultiImageDataset(dirs, group_of=lambda name: name[0])
    part = dataset.select([4, 1])
    assert part.names == ["s4", "s1"] and part.groups == ["s", "s"] and torch.equal(part[1][2], dataset[1][2])
    assert len(dataset) == 6 and fingerprint(part) != fingerprint(dataset)


def test_the_fingerprint_changes_with_a_file(dirs):
    before = MultiImageDataset(dirs).fingerprint()
    assert MultiImageDataset(dirs).fingerprint() == before
    write(dirs[2], ["s3"], extension="tif", size=(25, 16))
    assert MultiImageDataset(dirs).fingerprint() != before


# ---- loading ---------------------------------------------------------------------------------------------------------
def test_a_file_that_is_no_image_is_named_when_it_is_read(dirs):
    (dirs[1] / "s2.bmp").write_text("no image")
    dataset = MultiImageDataset(dirs)
    assert len(dataset[1]) == 3
    with pytest.raises(UserError, match=r"s2\.bmp cannot be read as an image"):
        dataset[2]
    (dirs[0] / "s3.png").unlink()
    with pytest.raises(UserError, match=r"s3\.png cannot be read as an image \(.*No such file"):
        dataset[3]


def load_array(path):
    """A user-defined loader."""
    return np.load(path)


def test_a_loader_of_your_own_for_all_or_for_one_directory(dirs, tmp_path):
    (tmp_path / "depth").mkdir()
    for i, name in enumerate(NAMES):
        np.save(tmp_path / "depth" / f"{name}.npy", np.full((16, 24), 0.5 + i, dtype=np.float32))
    both = [dirs[0], tmp_path / "depth"]
    dataset = MultiImageDataset(both, kinds=("image", "mask"), loader=(None, load_array), extensions=("png", "npy"))
    image, depth = dataset[2]
    assert image.shape == (3, 16, 24) and depth.dtype == torch.float32 and depth.unique().tolist() == [2.5]
    (depth,) = MultiImageDataset([tmp_path / "depth"], loader=load_array, extensions=None)[1]
    assert depth.shape == (1, 16, 24) and depth.unique().tolist() == [1.5]


@pytest.mark.parametrize("load", [
    Image.open, lambda path: np.array(Image.open(path).convert("RGB")),
    lambda path: Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=256),
    lambda path: torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1),
])  # fmt: skip
def test_a_loader_may_give_a_picture_an_array_or_a_tensor(tmp_path, load):
    directory = write(tmp_path / "a", size=(16, 16))
    (image,), (expected,) = MultiImageDataset([directory], loader=load)[3], MultiImageDataset([directory])[3]
    assert image.dtype == torch.float32 and torch.equal(image, expected)


def test_what_a_loader_may_not_give_and_what_it_raises(dirs):
    with pytest.raises(UserError, match=r"The loader gave a str for .*s0\.png"):
        MultiImageDataset(dirs, loader=str)[0]
    with pytest.raises(ZeroDivisionError) as error:
        MultiImageDataset(dirs, loader=lambda path: 1 / 0)[0]
    assert str(dirs[0] / "s0.png") in error.value.__notes__[0]


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_a_mask_holds_the_numbers_of_its_file(tmp_path, mode):
    (tmp_path / "masks").mkdir()
    classes = np.array([[0, 1, 7], [7, 1, 0]], dtype=np.uint8)
    if mode == "1":
        classes = classes.clip(max=1)
        mask = Image.fromarray(classes * 255).convert("1")
    elif mode == "P":
        mask = Image.fromarray(classes)
        mask = mask.convert("P")
        mask.putpalette([9, 9, 9, 200, 0, 0, *[0] * 15, 0, 0, 255])
    else:
        mask = Image.fromarray(classes.astype(np.uint16 if mode == "I;16" else np.uint8))
    mask.save(tmp_path / "masks" / "s0.png")
    (loaded,) = MultiImageDataset([tmp_path / "masks"], kinds="mask")[0]
    assert loaded.dtype == torch.int64 and (loaded.numpy() == classes * (255 if mode == "1" else 1)).all()


def test_a_mask_of_colours_is_refused_and_the_loader_for_it_named(tmp_path):
    directory = write(tmp_path / "masks")
    with pytest.raises(UserError, match=r"s0\.png \(mode RGB\) holds colours.*data\.masks\.load_mask"):
        MultiImageDataset([directory], kinds="mask")[0]


# ---- transforms ------------------------------------------------------------------------------------------------------
def test_joint_transforms_do_the_same_to_all_images(dirs):
    dataset = MultiImageDataset(dirs, RandomFlip())
    found = {tuple(map(is_flipped, dataset[0])) for _ in range(40)}
    assert found == {(False,) * 3, (True,) * 3} and dataset.is_random
    alone = MultiImageDataset(dirs, [RandomFlip()] * 3)  # each draws by itself: what the check above would see
    assert len({tuple(map(is_flipped, alone[0])) for _ in range(40)}) > 2


def test_a_random_crop_of_torchvision_takes_the_same_place_in_images_and_masks(tmp_path):
    images, masks = write(tmp_path / "a"), write_masks(tmp_path / "m")
    crop = v2.Compose([v2.RandomCrop((8, 9)), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()])
    dataset, places = MultiImageDataset([images, images, masks], crop, kinds=("image", "image", "mask")), set()
    for _ in range(20):
        first, second, mask = dataset[1]
        assert torch.equal(first, second) and mask.shape == (8, 9)
        rows, columns = (first[1:] * 255).round().long()  # of the whole image
        assert torch.equal(mask, torch.tensor([0, 3, 200])[(rows + columns) % 3])
        places.add((int(rows[0, 0]), int(columns[0, 0])))
    assert len(places) > 5


def test_masks_are_not_mixed_and_keep_their_values_where_images_do_not(tmp_path):
    dirs = [write(tmp_path / "a"), write_masks(tmp_path / "m")]
    change = v2.Compose([v2.ColorJitter(0.9), v2.Resize((7, 11)), v2.RandomRotation((30, 30))])
    (image, mask), (plain, _) = (MultiImageDataset(dirs, t, kinds=("image", "mask"))[2] for t in (change, None))
    assert set(mask.unique().tolist()) <= {0, 3, 200} and image.shape[1:] == mask.shape == (7, 11)
    assert image.max() != plain.max()
    _, mixed = MultiImageDataset(dirs, change)[2]  # as an image, which the check above would see
    assert len((mixed * 255).round().unique()) > 3


def test_each_directory_may_have_transforms_of_its_own(dirs):
    blur = v2.GaussianBlur(5, 2.0)
    first, second, third = MultiImageDataset(dirs, [v2.Resize((8, 12)), None, blur])[0]
    assert first.shape == (3, 8, 12) and second.shape == third.shape == (3, 16, 24)
    plain = MultiImageDataset(dirs)[0]
    assert torch.equal(second, plain[1]) and not torch.equal(third, plain[2])


def test_transforms_get_bytes_that_know_what_they_are(dirs):
    seen = []
    MultiImageDataset(dirs, lambda *images: seen.extend(images) or images)[0]
    assert all(type(image) is tv_tensors.Image and image.dtype == torch.uint8 for image in seen) and len(seen) == 3


def test_what_transforms_make_of_a_sample_is_what_it_is(dirs):
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)])
    (image,), (plain,) = MultiImageDataset(dirs[:1], normalize)[1], MultiImageDataset(dirs[:1])[1]
    assert torch.allclose(image, (plain - 0.5) / 0.25)
    sample = MultiImageDataset(dirs, lambda *images: (images[0], 7, "text"))[0]
    assert sample[1:] == (7, "text")


def test_transforms_that_make_more_or_fewer_images_are_refused(dirs):
    with pytest.raises(UserError, match="The transforms made 2 of 3 images"):
        MultiImageDataset(dirs, lambda *images: images[:2])[0]


def test_images_of_different_sizes_are_named_when_the_transforms_fail(dirs):
    write(dirs[1], ["s2"], extension="bmp", size=(20, 16))
    dataset = MultiImageDataset(dirs, v2.RandomCrop((8, 8)))
    assert len(dataset[1]) == 3
    with pytest.raises(UserError, match=r"The images of 's2' have different sizes, 24 x 16, 20 x 16, 24 x 16 pixels"):
        dataset[2]
    with pytest.raises(ZeroDivisionError):
        MultiImageDataset(dirs, lambda *images: 1 / 0)[1]  # of one size: the fault is another


def test_samples_lie_in_memory_as_they_look_whatever_the_decoder_does(tmp_path):
    dirs = [write(tmp_path / "a", extension="jpg")]
    assert not extras.multi_image.load_pixels(dirs[0] / "s0.jpg").is_contiguous()  # else the check would show nothing
    for transforms in (None, v2.RandomCrop((8, 8)), v2.ToDtype(torch.float32, scale=True)):
        assert MultiImageDataset(dirs, transforms)[0][0].is_contiguous()


# ---- the same samples everywhere -------------------------------------------------------------------------------------
JITTER = v2.Compose([
    v2.RandomResizedCrop((12, 20), scale=(0.4, 1.0)), v2.ToDtype(torch.float32, scale=True), v2.ColorJitter(0.4, 0.4),
])  # fmt: skip


def batches(dataset, num_workers, epoch=1, start=0):
    loader = UpdateLoader(dataset, 4, seed=3, num_workers=num_workers)
    return [batch for update in loader.updates(epoch, start) for batch in update.micro_batches]


def differ(first, second):
    return any(not torch.equal(x, y) for a, b in zip(first, second, strict=True) for x, y in zip(a, b, strict=True))


class Unseeded:
    """Draws from a generator of its own, which nobody seeds."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, image):
        return image + torch.rand((), generator=self.generator)


def test_samples_are_the_same_with_any_number_of_workers_and_from_the_middle_of_an_epoch(dirs):
    dataset = MultiImageDataset(dirs, JITTER)
    alone = batches(dataset, 0)
    assert len(alone) == 2 and not differ(alone, batches(dataset, 2))
    assert not differ(alone[1:], batches(dataset, 0, start=4)) and not differ(alone[1:], batches(dataset, 2, start=4))
    assert differ(alone, batches(dataset, 0, epoch=2))
    own = MultiImageDataset(dirs[:1], Unseeded())  # what the checks above would see
    assert differ(batches(own, 0)[1:], batches(own, 0, start=4))


def test_samples_do_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    """The contrast of torchvision takes a mean, which threads sum up in parts."""
    write(tmp_path / "a", size=(900, 700))
    dataset = MultiImageDataset([tmp_path / "a"], v2.Compose([v2.ToDtype(torch.float32, scale=True),
                                                             v2.ColorJitter(contrast=0.5)]))  # fmt: skip

    def samples(num_threads):
        torch.set_num_threads(num_threads)
        try:
            fetcher = BatchFetcher(dataset)
            return [fetcher.sample(0, index) for index in range(6)], torch.get_num_threads()
        finally:
            torch.set_num_threads(1)

    one, two = samples(1), samples(2)
    assert not differ(one[0], two[0]) and (one[1], two[1]) == (1, 2)
    monkeypatch.setattr(extras.multi_image, "one_thread", contextlib.nullcontext)
    assert differ(one[0], samples(2)[0])


def test_a_data_set_can_be_sent_to_another_process(dirs):
    dataset = pickle.loads(pickle.dumps(MultiImageDataset(dirs, JITTER)))
    assert dataset.names == NAMES and len(dataset[0]) == 3


# ---- the parts of a task ---------------------------------------------------------------------------------------------
CUT = {"train_val_sample_rate": 1, "test_sample_rate": 4, "val_split": 4}


def test_the_parts_are_those_of_carvana(cars):
    both = {"carvana": build_carvana(cars, **CUT), "multi": build_multi_image(
        ["train", "train_masks"], data_dir=cars, **AS_CARVANA, **CUT)}  # fmt: skip
    for part, carvana in both["carvana"].items():
        multi = both["multi"][part]
        assert multi.names == carvana.names and multi.groups == carvana.groups
        assert fingerprint(multi) == fingerprint(carvana)
    assert "masks: 24 files scanned, mode P, values 0, 255 -> classes 0, 1 with " in both["multi"]["val"].report
    assert both["multi"]["val"].summary == (
        "24 samples of 2 images, in 6 groups; using 16 for train, 4 for val, 4 for test")  # fmt: skip


@pytest.mark.parametrize("augment", [False, True])
def test_the_samples_are_those_of_carvana_bit_for_bit(cars, augment):
    pairs = find_pairs(cars)
    carvana = CarvanaDataset(pairs, scan_masks(pairs.paths(1))[0], augment=augment)
    multi = build_multi_image(["train", "train_masks"], data_dir=cars, augment=augment, **AS_CARVANA, **CUT)["train"]
    assert multi.is_random == augment
    num_flipped = 0
    for seed, name in enumerate(multi.names):
        index = pairs.names.index(name)
        torch.manual_seed(seed)
        image, mask = multi[seed]
        torch.manual_seed(seed)
        assert all(torch.equal(a, b) for a, b in zip((image, mask), carvana[index], strict=True))
        num_flipped += not torch.equal(mask, torch.from_numpy(carvana.read(index)[1]))
    assert (num_flipped > 2) == augment


def test_sizes_channels_and_kinds_follow_the_options(cars):
    datasets = build_multi_image(["train", "train_masks", "train"], data_dir=cars, kinds=("image", "mask", "image"),
                                 name_ends=["", "_mask", ""], patch_size=32, n_channels=1, mode="padding",
                                 augment=True, **CUT)  # fmt: skip
    image, mask, again = datasets["train"][0]
    assert image.shape == (1, 32, 32) and mask.shape == (32, 32) and torch.equal(image, again)
    image, mask, again = datasets["val"][0]
    assert image.shape == (1, 64, 96) and mask.shape == (64, 96)
    assert [dataset.is_random for dataset in datasets.values()] == [True, False, False]


def test_a_mask_of_another_size_is_refused(cars, tmp_path):
    make_carvana_like(tmp_path, cars=3, views=4, size=(96, 64))
    (path, *_) = sorted((tmp_path / "train_masks").iterdir())
    Image.new("1", (64, 96)).save(path)
    build = partial(build_multi_image, ["train", "train_masks"], data_dir=tmp_path, patch_size=32, **AS_CARVANA, **CUT)

    def load_all():
        return [sample for dataset in build().values() for sample in dataset]

    with pytest.raises(UserError, match=f"has 96 x 64 pixels, but {re.escape(str(path))} has 64 x 96.*EXIF"):
        load_all()
    image_path, exif = tmp_path / "train" / path.name.replace("_mask.gif", ".jpg"), Image.Exif()
    exif[0x0112] = 6
    with Image.open(image_path) as image:
        image.save(image_path, exif=exif)
    assert len(load_all()) == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_channels": 2}, "--n_channels 2"), ({"mode": "paddin"}, "did you mean 'padding'"),
        ({"patch_size": 0}, "--patch_size 0"), ({"group_until": ""}, "group_until must be a text"),
        ({"group_until": 3}, "group_until must be a text"), ({"dirs": "train"}, "dirs must be a list"),
        ({"draft": 3}, "draft must be true or false"), ({"white": "4095"}, "white '4095' is no level"),
        ({"dirs": ["train", "tarin_masks"]}, "There is no directory .*tarin_masks"),
        ({"name_ends": None}, "train_masks lacks 24 of 48 names"), ({"kinds": "image"}, None),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused_in_one_line(cars, arguments, words):
    arguments = {"dirs": ["train", "train_masks"], "data_dir": cars, **AS_CARVANA, **CUT, **arguments}
    if words is None:
        assert build_multi_image(**arguments)["train"][0][1].shape == (3, 64, 96)
        return
    with pytest.raises(UserError, match=words) as refusal:
        build_multi_image(**arguments)
    assert "\n" not in str(refusal.value)


# ---- runs ------------------------------------------------------------------------------------------------------------
FLAGS = ("--data_type", "MultiImage", "--augment", "--data_args",
         '{"dirs": ["train", "train_masks"], "name_ends": ["", "_mask"], "group_until": "_"}')  # fmt: skip


class StopAfter(Callback):
    """Asks to stop after an update."""

    def __init__(self, update: int):
        self.update = update

    def on_update_end(self, trainer, values) -> None:
        trainer.should_stop = trainer.progress.update == self.update


def test_a_run_ends_with_the_same_bits_after_a_stop_and_with_loading_processes(train, build, differences):
    whole = train(*FLAGS, task=TrainerSeg)
    part = build(*FLAGS, task=TrainerSeg, callbacks=[StopAfter(3)])  # of 4 updates in an epoch
    part.train()
    assert part.progress.update == 3
    resumed = build("--resume", part.run_dir.path, "--num_workers", 2, task=TrainerSeg)
    resumed.train()
    assert differences(whole.state_dict(), resumed.state_dict(), ignore=("seconds", "options", "callbacks")) == []
    other = train(*FLAGS, "--no-augment", task=TrainerSeg)  # what the check above would see
    assert differences(whole.networks["model"].state_dict(), other.networks["model"].state_dict())


class Denoiser(torch.nn.Module):
    """Returns its own loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, noisy, clean):
        return (self.body(noisy) - clean).square().mean()


@pytest.mark.parametrize(("num_workers", "num_epochs"), [(2, (2,)), (0, (1, 2))])
def test_fit_ends_with_the_same_weights_with_loading_processes_and_after_a_resume(
    dirs, tmp_path, num_workers, num_epochs
):
    def weights(where, num_workers, *num_epochs):
        resume = None
        for number in num_epochs:
            model = Denoiser()
            run = fit(model, torch.optim.SGD(model.parameters(), lr=0.1), None, MultiImageDataset(dirs[:2], JITTER), 4,
                      num_epochs=number, num_workers=num_workers, seed=0, resume=resume, logger=["csv"],
                      output_dir=str(tmp_path / where), gpu_devices="cpu")  # fmt: skip
            resume = run.run_dir.path
        return model.body.weight.detach()

    plain = weights("whole", 0, 2)
    assert torch.equal(plain, weights("other", num_workers, *num_epochs))
    assert not torch.equal(plain, weights("short", 0, 1))


@pytest.mark.parametrize("data_type", ["MultiImage", "extras.multi_image:build_multi_image"])
def test_the_command_line_trains_and_evaluates(command, cars, small, tmp_path, data_type):
    flags = [*small(TrainerSeg), *FLAGS, "--data_type", data_type, "--n_epoch", 1, "--seed", 0]
    done = command("trainer_seg_on_carvana.py", *flags, "--output_dir", tmp_path / "runs")
    assert done.returncode == 0 and "24 samples of 2 images, in 6 groups" in done.stdout + done.stderr, done.stderr
    (path,) = (tmp_path / "runs").glob("*/UNet_best_ckpt.pth")
    done = command("eval_seg_on_carvana.py", "--model_path", path, "--save_path", tmp_path / "test",
                   *(["--data_type", data_type] if ":" in data_type else []))  # fmt: skip
    assert done.returncode == 0 and "dice" in done.stdout, done.stderr


def test_what_the_command_line_lacks_is_told_in_one_line(command, cars, small, tmp_path):
    flags = [*small(TrainerSeg), "--data_type", "MultiImage", "--output_dir", tmp_path]
    for more, words in (
        ((), "needs the argument dirs: give it by --data_args"),
        (("--set", "data_args.drs=[]"), "takes no argument 'drs' (did you mean 'dirs'?)"),
        (("--data_args", '{"dirs": ["train", "none"]}'), f"There is no directory {cars}/none"),
        (("--data_args", '{"dirs": ["train", "train_masks"]}'), "lacks 24 of 48 names"),
    ):
        done = command("trainer_seg_on_carvana.py", *flags, *more)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_broken_image_is_left_out_or_ends_the_run_by_name(command, small, tmp_path):
    make_carvana_like(tmp_path / "cars", cars=6, views=4, size=(96, 64))
    broken = sorted((tmp_path / "cars" / "train").iterdir())[5]
    flags = [*small(TrainerSeg), *FLAGS, "--data_dir", tmp_path / "cars", "--n_epoch", 1, "--seed", 0,
             "--test_sample_rate", 4, "--output_dir", tmp_path / "runs"]  # fmt: skip
    broken.write_bytes(b"no image")
    done = command("trainer_seg_on_carvana.py", *flags)
    assert done.returncode == 2 and f"{broken} cannot be read as an image" in done.stderr
    assert "Traceback" not in done.stderr
    done = command("trainer_seg_on_carvana.py", *flags, "--skip_bad_samples", 1)
    assert done.returncode == 0 and f"{broken} cannot be read" in done.stdout + done.stderr, done.stderr


# ---- docs/data.md ----------------------------------------------------------------------------------------------------
def test_the_examples_of_the_page_run(root, tmp_path, monkeypatch):
    make_carvana_like(tmp_path / "Dataset" / "Carvana", cars=3, views=2, size=(96, 80))
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "data.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(block, names)
    photo, mask = names["photo"], names["mask"]
    assert (photo.dtype, photo.shape) == (torch.float32, (3, 64, 64)) and photo.min() >= 0 and photo.max() <= 1
    assert (mask.dtype, mask.shape) == (torch.int64, (64, 64)) and set(mask.unique().tolist()) <= {0, 1}
    for folder in ("noisy", "clean"):
        write(tmp_path / folder, size=(70, 66))
    datasets = names["denoising"](tmp_path, 1, 0.2, 0.2, split_seed=0)
    assert [len(datasets[part]) for part in ("train", "val", "test")] == [4, 1, 1]
    assert [part.is_random for part in datasets.values()] == [True, False, False]
    noisy, clean = datasets["train"][0]
    assert noisy.shape == (3, 64, 64) and torch.equal(noisy, clean)


def test_masks_of_your_own_colours_have_a_loader(tmp_path):
    """As docs/data.md says."""
    directory = tmp_path / "masks"
    directory.mkdir()
    Image.new("RGB", (4, 3), (255, 0, 0)).save(directory / "a.png")
    Image.new("RGB", (4, 3), (0, 0, 255)).save(directory / "b.png")
    class_map, _ = scan_masks(sorted(directory.iterdir()), n_classes=2)
    dataset = MultiImageDataset([directory], kinds="mask", loader=partial(load_mask, class_map=class_map))
    assert dataset[0][0].unique().tolist() == [1] and dataset[1][0].unique().tolist() == [0]
