"""--save_code leaves the code in the run's directory, once for its beginning and once for each resume."""

import tarfile


def test_the_code_of_the_beginning_and_of_a_resume_is_kept(train):
    run = train("--save_code", "--n_epoch", 1, "--limit_batches", 2)
    path = run.run_dir.path
    with tarfile.open(path / "code_at0.tar.gz") as archive:
        assert "trainer_vanilla.py" in archive.getnames()
    train("--resume", path, "--n_epoch", 2)
    assert {p.name for p in path.glob("code*")} == {"code_at0.tar.gz", "code_at2.tar.gz"}
    (log,) = path.glob("*_log.txt")
    assert "files in code_at0.tar.gz" in log.read_text()


def test_without_the_option_no_code_is_kept(vanilla_run):
    assert not list(vanilla_run.glob("code*"))
