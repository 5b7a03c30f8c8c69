"""The reading benchmark: it times each item in each way, and its cache is its own."""

import re

import pytest
from conftest import SCRIPTS


@pytest.mark.parametrize("flags", ["", "--crop True"])
def test_pictures_are_read_from_files_and_from_a_cache(pictures, script, monkeypatch, tmp_path, capsys, flags):
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))
    reads, module = [], "guided_diffusion.data.picture_cache.record_of"
    from guided_diffusion.data.picture_cache import record_of

    monkeypatch.setattr(module, lambda *args: reads.append(args[1].name) or record_of(*args))
    line = ["--data_dir", pictures, "--image_size 32 --items 3 --repeats 2 --cache_dir", tmp_path, flags]
    script("benchmarks/reading", line)
    out = capsys.readouterr().out
    assert re.search(r"ms an item.*\ndecoded +\S+ +\S+\.\.\S+ +1 x\nfilling .* x\ncached .* x\n", out)
    assert len(reads) == 2 * 3 and len(set(reads)) == 3  # once a round, in the epoch that fills the cache
    assert list(tmp_path.iterdir()) == []
