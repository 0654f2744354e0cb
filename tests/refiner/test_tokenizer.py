import json

import pytest

from services.errors import ModelError
from services.pytorch.clip_tokenizer import (
    Tokenizer,
    byte_pairs,
    clean_clip_text,
    clip_merges,
    clip_vocab,
    read_merges,
)
from services.refiner.text.tokenizer import BERT_VOCAB, read_tokenizer, wordpiece


@pytest.fixture(scope="module")
def bert():
    return Tokenizer(wordpiece(BERT_VOCAB.read_text("utf-8").splitlines()), 77)


@pytest.fixture(scope="module")
def clip():
    merges = clip_merges()
    return Tokenizer(byte_pairs(clip_vocab(merges), merges), 77, clean=clean_clip_text)


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_token_ids_agree_with_the_published_tokenizer(golden, name, request):
    tokenizer = request.getfixturevalue(name)
    texts = json.loads((golden.folder / f"{name}_tokenizer.json").read_text("utf-8"))
    assert tokenizer.encode([text["text"] for text in texts]).tolist() == [text["ids"] for text in texts]


def test_a_long_text_is_cut_and_keeps_its_end(bert):
    [row] = bert.encode(["word " * 200])
    assert (len(row), row[-1]) == (77, bert.end_token)


def test_merges_are_read_with_and_without_a_header():
    assert read_merges('"bpe_simple_vocab_16e6.txt#version: 0.2\ni n\nt h</w>\n') == [
        ("i", "n"),
        ("t", "h</w>"),
    ]


@pytest.mark.parametrize("line", ["in", "i n g"])
def test_a_merge_that_is_no_pair_is_refused(line):
    with pytest.raises(ModelError, match="two pieces"):
        read_merges(line)


def test_a_folder_without_a_tokenizer_explains_what_belongs_there(tmp_path):
    with pytest.raises(ModelError, match=r"vocab\.txt, or vocab\.json with merges\.txt"):
        read_tokenizer(tmp_path, num_tokens=8, vocab_size=100)


def test_a_vocabulary_without_an_end_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\nhouse\n")
    with pytest.raises(ModelError, match=r"missing \[SEP\]"):
        read_tokenizer(tmp_path, num_tokens=8, vocab_size=100)


def test_a_vocabulary_larger_than_the_network_s_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\nhouse\n")
    with pytest.raises(ModelError, match="has 4 tokens, the network knows 3"):
        read_tokenizer(tmp_path, num_tokens=8, vocab_size=3)


@pytest.mark.parametrize("text", ["{", '{"model": 7}'])
def test_a_damaged_tokenizer_file_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="cannot be read"):
        read_tokenizer(tmp_path, num_tokens=8, vocab_size=100)


def test_a_tokenizer_file_is_preferred_to_a_vocabulary(tmp_path):
    wordpiece(["[UNK]", "[CLS]", "house", "[SEP]"]).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\nhouse\n")
    tokenizer = read_tokenizer(tmp_path, num_tokens=5, vocab_size=4)
    assert tokenizer.encode(["a house"]).tolist() == [[1, 0, 2, 3, 0]]
