import contextlib
import functools
import hashlib
import http.server
import json
import os
import random
import shutil
import sys
import tarfile
import threading

import pytest
import torch

from callbacks.callback import Callback
from data.Carvana import build_carvana
from data.data_entry import with_found
from data.dataloader import BatchFetcher
from data.loader import EvalLoader, UpdateLoader
from data.sampler import epoch_order
from engine.options.foreign import harmless_options
from engine.options.parser import Options
from extras.shards.dataset import build_carvana_shards, parse_index, window_order
from extras.shards.make_shards import make_shards
from extras.shards.store import ShardStore
from options import train_parser
from tools.synthetic.make_carvana_like import make_carvana_like
from trainer_seg_on_carvana import TrainerSeg
from utils.errors import UserError

CUT = {"train_val_sample_rate": 1.0, "test_sample_rate": 4.0, "val_split": 4.0, "split_seed": 0}
NUM_TRAIN, NUM_SHARDS = 16, 6  # of the train part, three samples in each but the last
SIZES = [3, 3, 3, 3, 3, 1]


@pytest.fixture(scope="module")
def made(cars, tmp_path_factory):
    """The shards of 16, 4 and 4 samples, three in each. Tests only read them."""
    directory = tmp_path_factory.mktemp("shards")
    make_shards(cars, directory, samples_per_shard=3, **CUT)
    return directory


@pytest.fixture
def shards(made, tmp_path):
    """A copy of them, to be damaged."""
    return shutil.copytree(made, tmp_path / "shards")


@pytest.fixture
def server(made):
    """A server of the shards: its URL, the names that were asked for, and what to send instead."""
    asked, instead = [], {}

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            asked.append(name)
            if name not in instead:
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(instead[name])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=made)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked, instead
        running.shutdown()
        thread.join()


def build(directory, **settings):
    return build_carvana_shards(directory, **{"patch_size": 32, **CUT, **settings})


def largest(made):
    return max(path.stat().st_size for path in made.glob("train-*.tar"))


def held(cache):
    """The bytes in a cache, those of a shard that is being fetched included."""
    return sum(path.stat().st_size for path in cache.iterdir() if path.name != ".lock")


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- the samples -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", [{}, {"mode": "padding", "n_channels": 1}])
def test_a_sample_is_that_of_the_files_bit_for_bit(cars, made, settings):
    files, shards = build_carvana(cars, **{"patch_size": 32, **CUT, **settings}), build(made, **settings)
    for part, dataset in shards.items():
        assert dataset.names == files[part].names and dataset.groups == files[part].groups
        assert not dataset.is_random and len(dataset) == len(files[part]) > 0
        for index in range(len(dataset)):
            assert equal(dataset[index], files[part][index])


def test_what_is_random_in_a_sample_is_that_of_the_files(cars, made):
    files = BatchFetcher(build_carvana(cars, patch_size=32, augment=True, **CUT)["train"], seed=3)
    shards = BatchFetcher(build(made, augment=True)["train"], seed=3)
    for index in range(NUM_TRAIN):
        assert equal(shards.sample(1, index), files.sample(1, index))
    assert not equal(shards.sample(1, 0), shards.sample(2, 0))


def test_values_that_are_ignored_stay_so_in_shards(tmp_path):
    make_carvana_like(tmp_path / "cars", cars=6, views=4, size=(48, 32), n_classes=3)
    cut = CUT | {"ignored_values": [255]}
    make_shards(tmp_path / "cars", tmp_path / "made", samples_per_shard=9, **cut)
    of_files = build_carvana(tmp_path / "cars", patch_size=32, **cut)["train"]
    assert of_files[0][1].unique().tolist() == [-100, 0, 1]
    for more in ({}, {"ignored_values": [255]}):
        assert equal(build(tmp_path / "made", **more)["train"][0], of_files[0])
    made = build(tmp_path / "made")
    found = with_found(Options(ignored_values=None, mask_values=None), made)
    assert found.ignored_values == [255] and build(tmp_path / "made", ignored_values=[255])
    with pytest.raises(UserError, match="--ignored_values was decided when these shards were made"):
        build(tmp_path / "made", ignored_values=[0])


def test_the_values_of_a_checkpoint_are_the_classes_of_shards_too(made):
    plain, turned = build(made)["train"], build(made, mask_values=[255, 0])["train"]
    assert plain.found_options == {"mask_values": [0, 255]} and turned.found_options == {"mask_values": [255, 0]}
    assert torch.equal(turned[0][1], 1 - plain[0][1])
    with pytest.raises(UserError, match="holds the value 255, but the classes are 0, 127"):
        build(made, mask_values=[0, 127])


def test_reading_in_place_needs_no_library(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert len(build(made)["train"][0]) == 2
    with pytest.raises(UserError, match="pip install webdataset"):
        build("http://127.0.0.1:1")


# ---- the order -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("window", [1, 2, 4])
def test_an_order_has_each_sample_once_and_few_shards_at_a_time(window):
    shard_of = [shard for shard, size in enumerate(SIZES) for _ in range(size)]
    order = window_order(SIZES, window, 0, 0)
    assert sorted(order) == list(range(sum(SIZES)))
    seen = [shard_of[index] for index in order]
    done = 0
    while done < len(seen):  # each window holds whole shards, which come nowhere else
        size = next(n for n in range(1, len(seen) + 1)
                    if n == sum(SIZES[s] for s in set(seen[done : done + n]))
                    and len(set(seen[done : done + n])) == min(window, len(set(seen[done:]))))  # fmt: skip
        assert not set(seen[done : done + size]) & set(seen[done + size :])
        done += size
    assert window == 1 or len(set(seen[:3])) > 1 or len(set(seen[3:6])) > 1  # mixed


def test_an_order_depends_on_seed_and_epoch_alone():
    orders = {(seed, epoch): window_order(SIZES, 2, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    torch.manual_seed(5)
    assert all(window_order(SIZES, 2, *position) == order for position, order in orders.items())
    assert len(set(map(tuple, orders.values()))) == 4


@pytest.mark.parametrize("window", [6, 100])
def test_a_window_of_all_shards_gives_the_order_of_the_files(window):
    assert window_order(SIZES, window, 7, 2) == epoch_order(sum(SIZES), 7, 2)


@pytest.mark.parametrize(("num_workers", "micro"), [(0, None), (0, 2), (2, 3)])
def test_each_sample_comes_once_in_an_epoch(made, num_workers, micro):
    dataset = build(made, shuffle_shards=2)["train"]
    loader = UpdateLoader(dataset, 5, micro, seed=4, num_workers=num_workers)
    for epoch in (0, 1):
        updates = list(loader.updates(epoch))
        indices = [index for update in updates for index in update.indices]
        assert sorted(indices) == list(range(NUM_TRAIN)) and indices == dataset.epoch_order(4, epoch)
        images = torch.cat([images for update in updates for images, _ in update.micro_batches])
        assert all(torch.equal(image, dataset[index][0]) for image, index in zip(images, indices, strict=True))


# ---- whole runs ------------------------------------------------------------------------------------------------------
class InterruptAfter(Callback):
    """Stops a run after an update, as Ctrl-C does."""

    def __init__(self, update):
        self.update = update

    def on_update_end(self, trainer, values):
        if trainer.progress.update == self.update:
            raise KeyboardInterrupt


def flags_of(directory, window, *flags):
    return ("--data_type", "CarvanaShards", "--data_dir", directory, "--shuffle_shards", window, "--augment", *flags)


def test_a_run_on_shards_ends_with_the_weights_of_the_files(train, made, weights, differences):
    files = train("--augment", task=TrainerSeg)
    assert differences(weights(train(*flags_of(made, 6), task=TrainerSeg)), weights(files)) == []
    assert differences(weights(train(*flags_of(made, 2), task=TrainerSeg)), weights(files)) != []


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_a_resume_in_the_middle_of_an_epoch_is_bitwise_equal(train, build, made, before, after, weights, differences):
    whole = train(*flags_of(made, 2), task=TrainerSeg)
    with pytest.raises(KeyboardInterrupt):
        trainer = build(*flags_of(made, 2, "--num_workers", before), task=TrainerSeg, callbacks=[InterruptAfter(6)])
        trainer.train()
    resumed = train("--resume", trainer.run_dir.path, "--num_workers", after, "--micro_batch_size", 5, task=TrainerSeg)
    assert trainer.progress.update == 6 and resumed.progress.update == whole.progress.update == 8
    assert differences(weights(resumed), weights(whole)) == []


def test_a_resume_may_change_the_cache_but_not_the_order(train, build, server, tmp_path, weights, differences, made):
    url, _, _ = server
    cache = ("--shard_cache_dir", tmp_path / "cache", "--shard_cache_gb", 2 * largest(made) / 1e9)
    with pytest.raises(KeyboardInterrupt):
        trainer = build(*flags_of(url, 2, *cache), task=TrainerSeg, callbacks=[InterruptAfter(2)])
        trainer.train()
    path = trainer.run_dir.path
    with pytest.raises(UserError, match="--shuffle_shards 3 contradicts"):
        build("--resume", path, "--shuffle_shards", 3, task=TrainerSeg)
    resumed = train("--resume", path, "--shard_cache_dir", tmp_path / "other", task=TrainerSeg)
    assert resumed.opt.data_dir == url and held(tmp_path / "other") > 0
    assert differences(weights(resumed), weights(train(*flags_of(made, 2), task=TrainerSeg))) == []


def test_a_checkpoint_from_elsewhere_decides_neither_what_is_fetched_nor_where_to(tmp_path):
    path, new_parser = tmp_path / "UNet_best_ckpt.pth", functools.partial(train_parser, TrainerSeg)
    options = {"shard_cache_dir": "/somewhere", "shuffle_shards": 2, "mask_values": [0, 127, "#ff0000"]}
    expected = {"shuffle_shards": 2, "mask_values": [0, 127, "#ff0000"]}
    assert harmless_options(options, path, new_parser, [], []) == expected
    options["data_dir"] = "http://127.0.0.1:1/x"
    with pytest.raises(UserError, match=r"repeat: --data_dir http://127\.0\.0\.1:1/x"):
        harmless_options(options, path, new_parser, [], [])


# ---- the bounded directory -------------------------------------------------------------------------------------------
def test_an_epoch_runs_in_the_room_of_two_shards_and_fetches_each_once(made, server, tmp_path):
    (url, asked, _), bound = server, 2 * largest(made)
    assert bound < sum(path.stat().st_size for path in made.glob("train-*.tar"))
    dataset = build(url, shuffle_shards=2, shard_cache_dir=tmp_path / "cache", shard_cache_gb=bound / 1e9)["train"]
    in_place, most = build(made)["train"], 0
    for index in dataset.epoch_order(0, 0):
        assert equal(dataset[index], in_place[index])
        most = max(most, held(tmp_path / "cache"))
    assert bound / 2 < most <= bound
    assert sorted(asked) == ["index.json", *(f"train-{n:06d}.tar" for n in range(NUM_SHARDS))]


def test_loading_processes_share_the_room(made, server, tmp_path):
    (url, _, _), bound, cache = server, 2 * largest(made), tmp_path / "cache"
    dataset = build(url, shuffle_shards=2, shard_cache_dir=cache, shard_cache_gb=bound / 1e9)["train"]
    loader, in_place = UpdateLoader(dataset, 2, seed=0, num_workers=2), build(made)["train"]
    for update in loader.updates(0):
        images = torch.cat([images for images, _ in update.micro_batches])
        assert equal(images, torch.stack([in_place[index][0] for index in update.indices]))
        assert sum(path.stat().st_size for path in cache.glob("[0-9a-f]*.tar")) <= bound


@pytest.mark.parametrize(("often", "seldom"), [(0, 1), (1, 0)])
def test_the_shard_that_was_not_used_for_the_longest_time_goes(made, server, often, seldom, tmp_path):
    (url, asked, _), cache = server, tmp_path / "cache"
    cache.mkdir()
    (cache / "notes.tar").write_bytes(b"not a shard" * 10**5)
    (cache / f".{'0' * 64}.tar.999999.tmp").write_bytes(b"left by a process that was killed")
    dataset = build(url, shuffle_shards=2, shard_cache_dir=cache, shard_cache_gb=2 * largest(made) / 1e9)["train"]
    for shard in (often, seldom, often, 2, often, seldom):
        dataset[3 * shard]
    assert [int(name[6:12]) for name in asked[1:]] == [often, seldom, 2, seldom]
    assert (cache / "notes.tar").exists() and not list(cache.glob("*.tmp")) and not list(cache.glob(".*.tmp"))


def test_a_second_run_finds_what_the_first_one_fetched(made, server, tmp_path):
    url, asked, _ = server
    for _ in range(2):
        list(EvalLoader(build(url, shard_cache_dir=tmp_path)["val"], 2))
    assert sorted(asked) == ["index.json", "index.json", "val-000000.tar", "val-000001.tar"]


def test_shards_of_a_file_url_are_copied(made, tmp_path):
    dataset = build(f"file://{made}", shard_cache_dir=tmp_path / "cache")["test"]
    assert equal(dataset[0], build(made)["test"][0]) and held(tmp_path / "cache") > 0


def test_too_little_room_for_the_mixing_is_refused(made, server, tmp_path):
    with pytest.raises(UserError, match=r"--shard_cache_gb .* too small for --shuffle_shards 3: give"):
        build(server[0], shuffle_shards=3, shard_cache_dir=tmp_path, shard_cache_gb=2 * largest(made) / 1e9)


# ---- what goes wrong -------------------------------------------------------------------------------------------------
def damage(path, content):
    path.write_bytes(content)


FAULTS = {
    "changed": (lambda path: damage(path, path.read_bytes()[:600] + b"?" + path.read_bytes()[601:]), "SHA-256 differs"),
    "truncated": (lambda path: damage(path, path.read_bytes()[:-512]), r"19,968 bytes of 20,480"),
    "empty": (lambda path: damage(path, b""), "it has 0 bytes"),
    "missing": (lambda path: path.unlink(), "No such file"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "it is no plain file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_shard_is_refused_and_named_in_one_line(shards, fault):
    plant, said = FAULTS[fault]
    plant(shards / "train-000001.tar")
    dataset = build(shards)["train"]
    assert len(dataset[0]) == 2
    for _ in range(2):
        with pytest.raises(UserError, match=said) as raised:
            dataset[3]
        assert str(shards / "train-000001.tar") in str(raised.value) and "\n" not in str(raised.value)


def test_a_shard_that_changes_after_it_was_checked_is_noticed(shards):
    dataset = build(shards)["train"]
    assert len(dataset[3]) == 2
    FAULTS["changed"][0](shards / "train-000001.tar")
    with pytest.raises(UserError, match="SHA-256 differs"):
        dataset[3]


def test_a_pipe_in_place_of_a_shard_or_an_index_is_one_line(shards):
    for name, told in (("train-000000.tar", "cannot be read: it is no plain file"), ("index.json", "There is no ")):
        (shards / name).rename(shards / "aside")
        os.mkfifo(shards / name)
        with pytest.raises(UserError, match=told):
            build(shards)["train"][0]
        (shards / name).unlink()
        (shards / "aside").rename(shards / name)


@pytest.mark.parametrize("codes", [[], {}, [-1], [10**30], ["x"], None])
def test_an_index_with_impossible_values_is_one_line(shards, codes):
    index = json.loads((shards / "index.json").read_text())
    with pytest.raises(UserError, match="is no index of shards, or damaged"):
        parse_index(json.dumps(index | {"codes": codes}).encode(), "index.json")


def test_an_index_with_flipped_bits_is_read_or_refused(shards):
    content, chance = (shards / "index.json").read_bytes(), random.Random(0)
    for _ in range(200):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        with contextlib.suppress(UserError):
            parse_index(bytes(flipped), "index.json")


def test_the_samples_of_a_damaged_shard_can_be_left_out(shards):
    FAULTS["changed"][0](shards / "train-000001.tar")
    loader = UpdateLoader(build(shards)["train"], 5, max_bad_samples=3)
    loader.bad.warn = lambda message: None
    assert sum(len(images) for update in loader.updates(0) for images, _ in update.micro_batches) == NUM_TRAIN - 3
    assert sorted(loader.bad.reasons) == [3, 4, 5]
    with pytest.raises(UserError, match="--skip_bad_samples allows 2"):
        list(UpdateLoader(build(shards)["train"], 5, max_bad_samples=2).updates(0))


def edit(shards, change):
    index = json.loads((shards / "index.json").read_text())
    change(index, index["parts"]["train"][0])
    (shards / "index.json").write_text(json.dumps(index))


WRONG_INDEX = {
    "no json": (None, "no index of shards"),
    "format": (lambda index, shard: index.update(format=2), "format is 2"),
    "no parts": (lambda index, shard: index.pop("parts"), "parts"),
    "a path": (lambda index, shard: shard.update(file="train/../../x.tar"), "shard 'train/../../x.tar' of the train"),
    "another part": (lambda index, shard: shard.update(file="val-000000.tar"), "shard 'val-000000.tar' of the train"),
    "a digest": (lambda index, shard: shard.update(sha256="../x"), "the shard 'train-000000.tar'"),
    "no samples": (lambda index, shard: shard.update(samples=[]), "the shard 'train-000000.tar'"),
    "a name that leads out": (lambda index, shard: shard["samples"][0].__setitem__(0, "../x"), "in train-000000"),
    "a member that leads out": (lambda index, shard: shard["samples"][0][2].__setitem__(0, "../x"), "'../x' in train"),
    "before the shard": (lambda index, shard: shard["samples"][0][2].__setitem__(1, -512), "in train-000000.tar is"),
    "behind the shard": (lambda index, shard: shard["samples"][0][2].__setitem__(2, 10**9), "in train-000000.tar is"),
    "a fraction": (lambda index, shard: shard["samples"][0][2].__setitem__(1, 512.5), "in train-000000.tar is"),
    "doubled": (lambda index, shard: shard["samples"].append(shard["samples"][0]), "occurs twice"),
    "a leak": (lambda index, shard: shard["samples"][0].__setitem__(1, index["parts"]["val"][0]["samples"][0][1]),
               "a group in two parts"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG_INDEX)
def test_an_index_that_cannot_be_right_is_refused(shards, fault):
    change, said = WRONG_INDEX[fault]
    edit(shards, change) if change else (shards / "index.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match=said) as raised:
        build(shards)
    assert "index.json" in str(raised.value) and "\n" not in str(raised.value)


def test_an_index_is_not_believed_about_what_is_where(shards):
    edit(shards, lambda index, shard: shard["samples"][0][2].__setitem__(1, shard["samples"][1][2][1]))
    with pytest.raises(UserError, match=r"train-000000.tar does not hold .* where the index says"):
        build(shards)["train"][0]


def test_a_member_that_leads_out_of_the_directory_is_never_written(shards, contents):
    """Also when the digest fits: the shard was made so."""
    path = shards / "train-000000.tar"
    index = parse_index((shards / "index.json").read_bytes(), "")
    names = [member.name for sample in index["parts"]["train"][0].samples for member in (sample.image, sample.mask)]
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        first = next(iter(tar))
    first.name = "../" + names[0][3:]
    content = first.tobuf(tarfile.USTAR_FORMAT) + content[512:]
    path.write_bytes(content)
    edit(shards, lambda index, shard: shard.update(sha256=hashlib.sha256(content).hexdigest()))
    before = contents(shards.parent)
    with pytest.raises(UserError, match="does not hold"):
        build(shards)["train"][0]
    assert contents(shards.parent) == before


def test_no_shards_say_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match=r"extras\.shards\.make_shards"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train_val_sample_rate": 0.08, "val_split": 0.15}, "--train_val_sample_rate 1.0 --val_split 4.0"),
        ({"split_seed": 1}, "--split_seed 0"),
        ({"n_classes": 3}, "--n_classes 2"),
        ({"n_channels": 2}, "--n_channels 2"),
    ],
)
def test_an_option_that_does_not_fit_the_shards_is_refused(made, settings, said):
    with pytest.raises(UserError, match=said):
        build(made, **settings)
    build(made, n_classes=1)  # which means background and car, too


@pytest.mark.parametrize("location", ["pipe:cat x ://", "s3://bucket", "PIPE://x"])
def test_other_urls_are_refused(location, tmp_path):
    with pytest.raises(UserError, match="http, https, file"):
        ShardStore(location, tmp_path)


SENT = {
    "changed": lambda content: b"?" + content[1:],
    "short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "long": lambda content: content + bytes(10**7),
}


@pytest.mark.parametrize("fault", SENT)
def test_what_a_server_sends_is_checked_and_not_asked_for_again(made, server, fault, tmp_path):
    url, asked, instead = server
    dataset = build(url, shard_cache_dir=tmp_path)["train"]
    instead["train-000000.tar"] = SENT[fault]((made / "train-000000.tar").read_bytes())
    for _ in range(2):
        with pytest.raises(UserError, match=f"{url}/train-000000.tar is damaged"):
            dataset[0]
    assert asked.count("train-000000.tar") == 1 and held(tmp_path) == 0


def test_a_shard_that_the_server_does_not_have_is_named(made, server, tmp_path):
    url, _, _ = server
    with pytest.raises(UserError, match=rf"{url}/nothing/index.json cannot be read \(curl ended with 22\)"):
        build(f"{url}/nothing", shard_cache_dir=tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        build(f"file://{tmp_path}/nothing", shard_cache_dir=tmp_path)


def test_a_damaged_file_in_the_cache_is_named(server, tmp_path):
    dataset = build(server[0], shard_cache_dir=tmp_path)["val"]
    dataset[0]
    (kept,) = tmp_path.glob("*.tar")
    damage(kept, kept.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=f"{kept.name} is damaged.*Remove it, and copy"):
        build(server[0], shard_cache_dir=tmp_path)["val"][0]


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--shard_cache_dir .*file cannot be used"):
        build(server[0], shard_cache_dir=tmp_path / "file")["val"][0]
