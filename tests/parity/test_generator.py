"""Our DALL·E and its text normalizer beside the published dalle-mini package, on random checkpoints of its layouts.

Its VQGAN is published only as source: the golden vectors in tests/golden/generator stand for it.
"""

import json
from pathlib import Path

import pytest

from services.generator.dalle.conversion.convert import convert
from services.generator.dalle.conversion.verify import compare
from services.generator.dalle.text.normalizer import TextNormalizer, read_word_costs
from tests.parity.conftest import ask, beyond_tolerance

pytestmark = pytest.mark.parity

WORD_LIST = Path(__file__).parents[1] / "golden" / "generator" / "text" / "enwiki-words-frequency.txt"
SMALL_VOCABULARY = {"image_vocab_size": 64, "bos_token_id": 64, "pad_token_id": 64, "eos_token_id": 64}
LARGE_VOCABULARY = {"image_vocab_size": 95, "bos_token_id": 65, "pad_token_id": 65, "eos_token_id": 65}
CASES = {
    "mini_scan": {"use_scan": True, "use_bias": False, "use_glu": True} | SMALL_VOCABULARY,
    "mega_scan": {"use_scan": True, "use_bias": False, "use_glu": True} | LARGE_VOCABULARY,
    "mega_unscanned": {"use_scan": False, "use_bias": False, "use_glu": True} | LARGE_VOCABULARY,
    "bias_ffn_ln_scale": {"use_scan": True, "use_bias": True, "use_glu": False, "force_ln_scale": True}
    | SMALL_VOCABULARY,
}
# "<person>" is left out: the package replaces it at random.
PROMPTS = [
    "a red house under a full moon",
    "  Two   CATS, sitting.on a mat!!! ",
    "it's 1,000,000 o'clock & 3/4 past, I'm “late”",
    "#sunset #mountainview over the sea",
    "<b>bold</b> &amp; <i>italic</i> https://example.org/a?b=c",
    "😀 crème brûlée — naïve café 北京",
    "soooooo goooood!!!! viii (a) [b] {c} a_b\\c",
    "",
    '"',
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = {"text": {"prompts": PROMPTS, "word_list": str(WORD_LIST)}}
    return ask("dalle_mini_oracle", "jax", tmp_path_factory.mktemp("dalle_mini"), CASES | text)


@pytest.mark.parametrize("case", CASES)
def test_dalle_computes_what_the_published_package_does(case: str, answers: Path, tmp_path: Path) -> None:
    convert(answers / case, tmp_path / "dalle", "dalle")
    assert beyond_tolerance(compare(tmp_path / "dalle", "dalle", answers / case)) == []


def test_a_prompt_is_normalized_as_the_published_package_does(answers: Path) -> None:
    normalize = TextNormalizer(read_word_costs(WORD_LIST))
    expected = json.loads((answers / "text" / "normalized.json").read_text("utf-8"))
    assert [normalize(prompt) for prompt in PROMPTS] == expected
