"""Every kind of corpus, and every error in naming one."""

import os
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from moe_jax.configuration import ConfigError
from moe_jax.data.config import DataConfig
from moe_jax.data.corpora import load_corpus
from moe_jax.data.python_source.python_source_dataset_builder import source_documents


def both_splits(corpus):
    return {split: list(corpus.documents(split)) for split in ("train", "validation")}


def error_of(config, *arguments):
    with pytest.raises(ConfigError) as caught:
        load_corpus(config, *arguments)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.fixture(scope="session")
def prepared_cache(tmp_path_factory):
    """A cache with the interpreter's own sources, prepared once."""
    cache = tmp_path_factory.mktemp("cache")
    load_corpus(DataConfig(), cache)
    return cache


class TestPythonSource:
    def test_it_has_megabytes_and_its_splits_share_no_document(self, prepared_cache):
        splits = both_splits(load_corpus(DataConfig(), prepared_cache))
        assert sum(len(text.encode()) for texts in splits.values() for text in texts) > 5e6
        assert all(text for texts in splits.values() for text in texts)
        everything = splits["train"] + splits["validation"]
        assert len(set(everything)) == len(everything)
        assert 0.01 < len(splits["validation"]) / len(everything) < 0.12

    def test_documents_come_in_the_order_of_their_paths(self, prepared_cache):
        documents = source_documents("stdlib", 0.05)
        assert [document.key for document in documents] == sorted(document.key for document in documents)
        splits = both_splits(load_corpus(DataConfig(), prepared_cache))
        for split, texts in splits.items():
            assert texts == [document.text() for document in documents if document.split == split]

    def test_what_is_prepared_is_read_again_and_never_by_another_fraction(self, prepared_cache):
        first = load_corpus(DataConfig(), prepared_cache)
        folders = set((prepared_cache / "corpora").iterdir())
        assert load_corpus(DataConfig(), prepared_cache).digest == first.digest
        assert set((prepared_cache / "corpora").iterdir()) == folders
        other = load_corpus(DataConfig(validation_fraction=0.2), prepared_cache)
        assert other.digest != first.digest
        assert len(list(other.documents("validation"))) > len(list(first.documents("validation")))

    def test_preparing_says_so_in_one_line(self, tmp_path, monkeypatch, capsys):
        small_library(tmp_path, monkeypatch)
        load_corpus(DataConfig(validation_fraction=0.5), tmp_path / "cache")
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err == "Preparing python_source: 6 documents\n"

    def test_installed_adds_the_packages(self, tmp_path, monkeypatch):
        small_library(tmp_path, monkeypatch)
        config = DataConfig(corpus="python_source/installed", validation_fraction=0.5)
        corpus = load_corpus(config, tmp_path / "cache")
        texts = {text for texts in both_splits(corpus).values() for text in texts}
        assert texts == {*(f"module = {i}\n" for i in range(6)), "package = 1\n"}

    def test_another_interpreter_gets_other_data(self, tmp_path, monkeypatch):
        library = small_library(tmp_path, monkeypatch)
        config = DataConfig(validation_fraction=0.5)
        before = load_corpus(config, tmp_path / "cache")
        (library / "module0.py").write_text("changed = 0\n")
        after = load_corpus(config, tmp_path / "cache")
        assert after.digest != before.digest
        assert "changed = 0\n" in [text for texts in both_splits(after).values() for text in texts]
        assert "changed = 0\n" not in [text for texts in both_splits(before).values() for text in texts]

    def test_a_fraction_that_leaves_a_split_empty_is_refused_before_anything_is_written(self, tmp_path):
        line = error_of(DataConfig(validation_fraction=1e-9), tmp_path)
        assert line.startswith("data.validation_fraction is 1e-09; accepted: a fraction that puts a document")
        assert list(tmp_path.iterdir()) == []


def small_library(tmp_path, monkeypatch):
    """Puts a library of six documents, one of them twice, and one package in place of the interpreter's."""
    library, packages = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    packages.mkdir(parents=True)
    for i in range(6):
        (library / f"module{i}.py").write_text(f"module = {i}\n")
    (library / "same.py").write_text("module = 5\n")
    (library / "empty.py").touch()
    (library / "latin.py").write_bytes(b"# \xe9\n")
    (library / "binary.so").write_bytes(b"text")
    (library / "lock.py").symlink_to("nowhere")
    (packages / "package.py").write_text("package = 1\n")
    (packages / "same.py").write_text("module = 5\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library if name == "stdlib" else packages))
    return library


class TestTextFiles:
    def test_files_are_split_by_their_content_and_come_in_the_order_of_their_paths(self, tmp_path):
        (tmp_path / "deep").mkdir()
        texts = [f"document {i}\n" for i in range(40)]
        for i, text in enumerate(texts):
            (tmp_path / ("deep" if i < 20 else "") / f"{i:02}.txt").write_text(text)
        (tmp_path / "zero.txt").touch()
        config = DataConfig(corpus=f"text_files:{tmp_path}/**/*.txt", validation_fraction=0.3)
        corpus = load_corpus(config)
        splits = both_splits(corpus)
        assert sorted(splits["train"] + splits["validation"]) == sorted(texts)
        assert splits["train"] == [text for text in texts[20:] + texts[:20] if text in splits["train"]]
        (tmp_path / "deep" / "00.txt").rename(tmp_path / "zzz.txt")
        moved = load_corpus(config)
        assert {split: set(texts) for split, texts in both_splits(moved).items()} == {
            split: set(texts) for split, texts in splits.items()
        }
        assert moved.digest != corpus.digest

    def test_the_digest_does_not_depend_on_where_the_files_are(self, tmp_path):
        for folder in ("here", "there"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "a.txt").write_text("text\n" * 100)
        first, second = (load_corpus(DataConfig(corpus=f"text_files:{tmp_path}/{f}/*")) for f in ("here", "there"))
        assert first.digest == second.digest

    def test_several_patterns_that_overlap_give_each_file_once(self, tmp_path):
        for i in range(40):
            (tmp_path / f"{i}.txt").write_text(f"document {i}")
        corpus = load_corpus(
            DataConfig(corpus=f"text_files:{tmp_path}/1*.txt,{tmp_path}/*.txt", validation_fraction=0.3)
        )
        assert sum(map(len, both_splits(corpus).values())) == 40

    def test_a_single_file_validates_on_its_tail(self, tmp_path):
        paragraphs = [f"paragraph {i:02} é\n\n" for i in range(100)]
        (tmp_path / "book.txt").write_text("".join(paragraphs))
        corpus = load_corpus(DataConfig(corpus=f"text_files:{tmp_path}/book.txt", validation_fraction=0.1))
        splits = both_splits(corpus)
        assert splits["train"] + splits["validation"] == ["".join(paragraphs[:90]), "".join(paragraphs[90:])]
        other = load_corpus(DataConfig(corpus=f"text_files:{tmp_path}/book.txt", validation_fraction=0.2))
        assert other.digest != corpus.digest

    def test_files_that_all_fall_in_one_split_validate_on_their_tails(self, tmp_path):
        for i in range(3):
            (tmp_path / f"{i}.txt").write_text(f"line {i}\n" * 1000)
        splits = both_splits(load_corpus(DataConfig(corpus=f"text_files:{tmp_path}/*", validation_fraction=0.01)))
        assert [len(texts) for texts in splits.values()] == [3, 3]

    def test_line_ends_stay_as_they_are(self, tmp_path):
        (tmp_path / "dos.txt").write_bytes(b"line\r\n" * 100)
        splits = both_splits(load_corpus(DataConfig(corpus=f"text_files:{tmp_path}/dos.txt")))
        assert splits["train"][0] + splits["validation"][0] == "line\r\n" * 100

    def test_a_mark_of_byte_order_is_no_text(self, tmp_path):
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"line\n" * 100)
        splits = both_splits(load_corpus(DataConfig(corpus=f"text_files:{tmp_path}/a.txt")))
        assert splits["train"][0] + splits["validation"][0] == "line\n" * 100

    def test_names_may_hold_what_patterns_are_made_of(self, tmp_path):
        for name in ("a[1].txt", "b,c.txt"):
            (tmp_path / name).write_text(f"{name} " * 100)
            corpus = load_corpus(DataConfig(corpus=f"text_files:{tmp_path}/{name}"))
            assert all(text.strip().startswith(name) for texts in both_splits(corpus).values() for text in texts)

    def test_names_may_hold_bytes_that_are_not_utf8_and_line_ends(self, tmp_path):
        for name in (b"caf\xe9.txt", b"a\nb.txt"):
            path = tmp_path / os.fsdecode(name)
            path.write_text("line\n" * 100)
            splits = both_splits(load_corpus(DataConfig(corpus=f"text_files:{path}")))
            assert splits["train"][0] + splits["validation"][0] == "line\n" * 100
            path.write_bytes(b"\xff")
            assert "accepted: text in UTF-8" in error_of(DataConfig(corpus=f"text_files:{path}"))

    def test_a_file_with_nul_characters_is_named(self, tmp_path):
        (tmp_path / "wide.txt").write_bytes(("line\n" * 100).encode("utf-16-le"))
        line = error_of(DataConfig(corpus=f"text_files:{tmp_path}/*"))
        assert line.endswith("wide.txt: character 1 is NUL, as in UTF-16 or in what is no text")

    def test_a_pattern_without_a_file_is_named(self, tmp_path):
        (tmp_path / "a.txt").write_text("text")
        line = error_of(DataConfig(corpus=f"text_files:{tmp_path}/a.txt,{tmp_path}/b.txt"))
        assert line.startswith("data.corpus is 'text_files:")
        assert line.endswith(f"'{tmp_path}/b.txt' matches none")

    def test_a_file_not_in_utf8_is_named(self, tmp_path):
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
        line = error_of(DataConfig(corpus=f"text_files:{tmp_path}/*"))
        assert "accepted: text in UTF-8" in line
        assert f"{tmp_path}/latin.txt" in line

    def test_a_file_that_cannot_be_read_is_named(self):
        """The memory of this process begins where nobody can read."""
        line = error_of(DataConfig(corpus="text_files:/proc/self/mem"))
        assert line == "/proc/self/mem cannot be read: Input/output error; accepted: a file that can be read"

    def test_an_empty_corpus_is_refused(self, tmp_path):
        (tmp_path / "a.txt").touch()
        assert error_of(DataConfig(corpus=f"text_files:{tmp_path}/*")).endswith("accepted: a corpus that is not empty")

    def test_a_file_too_short_to_split_is_refused(self, tmp_path):
        (tmp_path / "a.txt").write_text("abc")
        assert "validation has none of the 1" in error_of(DataConfig(corpus=f"text_files:{tmp_path}/*"))


class Poems(tfds.core.GeneratorBasedBuilder):
    """A data set of a few lines, with the splits and the second line its test asks for."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits, second, **options):
        self._splits, self._second = splits, second
        super().__init__(**options)

    def _info(self):
        features = {"verse": tfds.features.Text(), "line": tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, count) for split, count in self._splits.items()}

    def _generate_examples(self, split, count):
        for i in range(count):
            yield i, {"verse": f"{split} {i}" if i != 1 else self._second, "line": i}


@pytest.fixture
def poems(tmp_path, monkeypatch):
    """Prepares the data set `poems` with the given splits and second line where TFDS looks for it."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    def prepare(second="", **splits):
        Poems(splits=splits, second=second, data_dir=tmp_path, file_format="array_record").download_and_prepare()
        return DataConfig(corpus="tfds:poems", text_feature="verse", validation_fraction=0.1)

    return prepare


class TestTfds:
    @pytest.mark.parametrize("held_out", ["validation", "test"])
    def test_a_split_held_out_by_the_data_set_validates(self, poems, held_out):
        corpus = load_corpus(poems(train=4, **{held_out: 3}))
        assert both_splits(corpus) == {
            "train": ["train 0", "train 2", "train 3"],
            "validation": [f"{held_out} 0", f"{held_out} 2"],
        }

    def test_without_one_the_last_examples_validate(self, poems):
        config = poems(train=20)
        splits = both_splits(load_corpus(config))
        assert splits["validation"] == ["train 18", "train 19"]
        assert splits["train"][-1] == "train 17"

    def test_the_digest_follows_the_content(self, poems, tmp_path):
        config = poems(train=20)
        digest = load_corpus(config).digest
        assert load_corpus(config).digest == digest
        shutil.rmtree(tmp_path / "poems")
        assert load_corpus(poems(train=20)).digest == digest
        shutil.rmtree(tmp_path / "poems")
        assert load_corpus(poems(train=20, second="changed")).digest != digest

    def test_it_needs_no_tensorflow(self, poems):
        load_corpus(poems(train=20))
        assert "tensorflow" not in sys.modules

    def test_a_data_set_that_is_not_prepared_says_how_to_prepare_it(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        line = error_of(DataConfig(corpus="tfds:poems/short"))
        assert line.startswith("data.corpus is 'tfds:poems/short'; accepted: a prepared data set")
        assert "tfds build poems/short --file_format=array_record" in line

    def test_a_data_set_in_another_format_says_which_is_read(self, poems, tmp_path):
        config = poems(train=20)
        info = tmp_path / "poems" / "1.0.0" / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        assert "--file_format=array_record" in error_of(config)

    @pytest.mark.parametrize("name", ["two words", "poems/short/1.0.0/x", "poems:", "1"])
    def test_a_name_that_cannot_be_a_data_set_is_refused(self, name, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        assert "a prepared data set" in error_of(DataConfig(corpus=f"tfds:{name}"))

    def test_a_text_feature_that_does_not_exist_lists_those_that_do(self, poems):
        poems(train=20)
        line = error_of(DataConfig(corpus="tfds:poems", text_feature="line"))
        assert line == "data.text_feature is 'line'; accepted: a text feature of tfds:poems, which has verse"

    def test_a_data_set_without_a_training_split_is_refused(self, poems):
        assert error_of(poems(test=3)).endswith("a data set with a split 'train'; this one has ['test']")

    def test_a_data_set_too_small_to_hold_examples_out_is_refused(self, poems):
        assert error_of(poems(train=2)).endswith("a corpus with examples; split validation has none")

    def test_text_not_in_utf8_says_which_example(self, poems):
        corpus = load_corpus(poems(train=20, second=b"caf\xe9"))
        with pytest.raises(ConfigError, match=r"accepted: text in UTF-8; example 1 of train: 'utf-8' codec"):
            list(corpus.documents("train"))


def test_a_name_of_no_kind_of_corpus_is_refused():
    with pytest.raises(ConfigError, match=r"corpus is 'c4'; accepted: python_source, .*tfds:NAME"):
        DataConfig(corpus="c4")
