"""Memory that runs out, compiled steps: what must not change what training computes."""

import resource

import training


def test_a_batch_that_does_not_fit_is_answered_by_one_that_does(script, bedrooms, tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_DATA, (3 << 29, 3 << 29))

    command = ["train_dcgan.py", "--data", bedrooms, "--size", 32, "--features", 8, "--device",
               "cpu", "--epochs", 1, "--out", tmp_path, "--name", "large", "--batch-size"]
    done = script(*command, 16384, preexec_fn=limited)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    words = "--batch-size 16384 does not fit into memory, "
    assert words in done.stderr
    assert [path.name for path in (tmp_path / "large").iterdir()] == ["args.json"]
    smaller = int(done.stderr.split(words)[1].split()[0]) // 4  # time is dear
    done = script(*command, smaller, preexec_fn=limited)
    assert done.returncode == 0, done.stderr  # into the same folder, where nothing was yet
    assert "peak memory" in done.stdout and training.find_checkpoints(tmp_path / "large")
