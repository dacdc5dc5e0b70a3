"""What a bag of words achieves on the reviews that the LSTM is trained on.

pip install -e ".[bench]"
python -m benchmarks.tfidf

TF-IDF and logistic regression, on the split and the tokens of `experiments.tasks.imdb`: trained on
the texts that `experiments.sentiment` is trained on, evaluated on the same test texts. All settings
are scikit-learn's defaults but C, the inverse of the regularization: it is chosen on the validation
texts, as the network's epoch is. Seconds are of all of this, from texts in memory to test accuracy,
on one core: median and range. They are CPU seconds, which other jobs on the machine change little.
"""

import statistics
import time

import sklearn
from absl import app, flags
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tqdm import trange

from experiments import command, figures
from experiments.run import versions
from experiments.tasks import imdb
from experiments.tasks.task import Part

FEATURES = {"words": (1, 1), "words and pairs": (1, 2)}
PARTS: tuple[Part, ...] = ("valid", "test")
STRENGTHS = (1.0, 10.0)  # C, the inverse of the regularization


def evaluate(reviews: dict[Part, imdb.Texts], ngrams: tuple[int, int]) -> tuple[float, float]:
    """The C that is best on the validation texts, and its accuracy on the test texts."""
    vectorizer = TfidfVectorizer(
        tokenizer=imdb.tokenize,
        token_pattern=None,  # pyright: ignore[reportArgumentType]  # a tokenizer needs none
        lowercase=False,  # tokenize does it
        ngram_range=ngrams,
    )
    train = vectorizer.fit_transform(reviews["train"].texts)
    valid, test = (vectorizer.transform(reviews[part].texts) for part in PARTS)
    models = [
        LogisticRegression(C=strength, max_iter=1000).fit(train, reviews["train"].labels)
        for strength in STRENGTHS
    ]
    best = max(models, key=lambda model: model.score(valid, reviews["valid"].labels))
    return best.C, float(best.score(test, reviews["test"].labels))


def row(name: str, reviews: dict[Part, imdb.Texts], runs: int) -> list[str]:
    """The result, which all runs must agree on, and the seconds of a run."""
    results, seconds = set(), []
    for _ in trange(runs, desc=name, leave=False):
        start = time.process_time()
        results.add(evaluate(reviews, FEATURES[name]))
        seconds.append(time.process_time() - start)
    ((strength, accuracy),) = results
    spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
    return [name, f"{strength:g}", f"{accuracy:.2%}", f"{statistics.median(seconds):.1f}", spread]


def main(argv: list[str]) -> None:
    """Print the table."""
    command.start(argv)
    reviews = imdb.load()
    rows = [row(name, reviews, flags.FLAGS.runs) for name in FEATURES]
    used = versions() | {"scikit-learn": sklearn.__version__}
    print(" ".join(f"{name} {version}," for name, version in used.items()))
    print(figures.table(["TF-IDF of", "C", "test accuracy", "CPU seconds", "range"], rows))


if __name__ == "__main__":
    flags.DEFINE_integer("runs", 5, "How often each is trained.", lower_bound=1)
    app.run(main)
